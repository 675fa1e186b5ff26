//! Gradients that are summed over ranks while the backward pass computes more: LibTorch's reducer of
//! DistributedDataParallel.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use tch::Tensor;

use super::group::{BUCKET, RawGroup};
use super::{Error, ProcessGroup, reason};
use crate::shim::{Raw, check, made, raw};

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
        waited: *mut i64,
        lost: *mut c_int,
        error: *mut *mut c_char,
    ) -> c_int;
}

/// Has the gradients of some parameters summed over the ranks of a group. All ranks make it with the same
/// parameters, in the same order.
#[derive(Debug)]
pub struct Ddp {
    raw: *mut RawDdp,
}

impl Drop for Ddp {
    fn drop(&mut self) {
        // SAFETY: made by `d2v_ddp`, and freed once. It keeps of the group what it needs.
        unsafe { d2v_ddp_free(self.raw) }
    }
}

impl Ddp {
    /// Of `params`, in the order in which the forward pass uses them: gradients that are there first set out
    /// first. Only variables that ask for gradients.
    ///
    /// # Errors
    /// [`Error::Collective`] if there are none, or the group was left.
    pub fn new(group: &ProcessGroup, params: &[Tensor]) -> Result<Self, Error> {
        let mut list: Vec<Raw> = params.iter().map(raw).collect();
        let (list, count) = (list.as_mut_ptr(), list.len());
        // SAFETY: `count` pointers to tensors that the slice keeps alive.
        let raw = made(|error| unsafe { d2v_ddp(group.raw(), list, count, BUCKET, error) })
            .map_err(|e| Error::new(group.rank(), "gradients", reason(&e)))?;
        Ok(Self { raw })
    }

    /// The backward pass of `loss`, after which all gradients, with what was in them before, are sums over
    /// ranks. A parameter that no rank has used keeps what it had. Not for losses behind
    /// [`checkpoint`](crate::checkpoint): what is hidden there would count as unused.
    ///
    /// # Errors
    /// [`Error::Collective`] if another rank is gone or does not answer in time, [`Error::Torch`] if the
    /// backward pass itself fails.
    pub fn backward(&self, group: &ProcessGroup, loss: &Tensor) -> Result<(), Error> {
        let (mut waited, mut lost) = (0, 0);
        // SAFETY: a live tensor; the numbers are written during the call alone.
        let done = check(|error| unsafe {
            d2v_ddp_backward(self.raw, raw(loss), &mut waited, &mut lost, error)
        });
        group.add_spent(Duration::from_nanos(waited.unsigned_abs()));
        done.map_err(|e| match lost {
            0 => Error::Torch(e),
            _ => Error::new(group.rank(), "gradients", reason(&e)),
        })
    }
}
