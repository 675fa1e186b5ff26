//! DistributedDataParallel: LibTorch's reducer sums gradients over ranks during the backward pass.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use tch::Tensor;

use super::group::{BUCKET, RawGroup};
use super::{Error, ProcessGroup, reason};
use crate::shim::{Raw, call_new, check, raw};

#[repr(C)]
struct RawDdp {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn d2v_ddp(
        group: *mut RawGroup,
        params: *mut Raw,
        count: usize,
        bucket: usize,
        error: *mut *mut c_char,
    ) -> *mut RawDdp;
    fn d2v_ddp_free(ddp: *mut RawDdp);
    fn d2v_ddp_backward(
        ddp: *mut RawDdp,
        loss: Raw,
        wait_ns: *mut i64,
        comm_failed: *mut c_int,
        error: *mut *mut c_char,
    ) -> c_int;
}

/// Sums the gradients of parameters over the ranks of a group, overlapped with the backward pass.
///
/// All ranks create it with the same parameters in the same order.
#[derive(Debug)]
pub struct Ddp {
    raw: *mut RawDdp,
}

// SAFETY: LibTorch's reducer may be used from any thread, by one thread at a time.
unsafe impl Send for Ddp {}

impl Drop for Ddp {
    fn drop(&mut self) {
        // SAFETY: created by `d2v_ddp` and freed once. It shares ownership of what it needs of the
        // group.
        unsafe { d2v_ddp_free(self.raw) }
    }
}

impl Ddp {
    /// Creates a reducer for `params`, which must require gradients.
    ///
    /// Pass them in the order the forward pass uses them: the buckets that fill first are reduced
    /// first.
    ///
    /// # Errors
    /// [`Error::Collective`] if `params` is empty or this process has left the group.
    pub fn new(group: &ProcessGroup, params: &[Tensor]) -> Result<Self, Error> {
        let mut list: Vec<Raw> = params.iter().map(raw).collect();
        let (list, count) = (list.as_mut_ptr(), list.len());
        // SAFETY: `list` holds `count` pointers to tensors that the slice keeps alive.
        let raw = call_new(|error| unsafe { d2v_ddp(group.raw(), list, count, BUCKET, error) })
            .map_err(|e| Error::new(group.rank(), "gradients", reason(&e)))?;
        Ok(Self { raw })
    }

    /// Runs the backward pass of `loss` and sums all gradients over ranks.
    ///
    /// Gradients accumulated before are part of the sums. The gradient of a parameter that no rank
    /// used is unchanged. Not for losses behind [`checkpoint`](crate::checkpoint): the reducer
    /// would treat the parameters inside as unused.
    ///
    /// # Errors
    /// [`Error::Collective`] if another rank exited or timed out, [`Error::Torch`] if the backward
    /// pass itself fails.
    pub fn backward(&self, group: &ProcessGroup, loss: &Tensor) -> Result<(), Error> {
        let (mut wait_ns, mut comm_failed) = (0, 0);
        // SAFETY: a live tensor; the numbers are written only during the call.
        let result = check(|error| unsafe {
            d2v_ddp_backward(self.raw, raw(loss), &mut wait_ns, &mut comm_failed, error)
        });
        group.add_collective_time(Duration::from_nanos(wait_ns.unsigned_abs()));
        result.map_err(|e| match comm_failed {
            0 => Error::Torch(e),
            _ => Error::new(group.rank(), "gradients", reason(&e)),
        })
    }
}
