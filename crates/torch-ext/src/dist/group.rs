//! Collectives: what all ranks do together.

use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::time::{Duration, Instant};

use tch::{TchError, Tensor};

use super::store::{Address, RawStore};
use super::{Error, Launch, Store, millis};
use crate::shim::{Raw, check, made, raw, returned};

/// Bytes of small tensors that go together, so that each message is worth its journey.
pub(super) const BUCKET: usize = 25 << 20;

#[repr(C)]
pub(super) struct RawGroup {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn d2v_group(
        store: *mut RawStore,
        nccl: c_int,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        address: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut RawGroup;
    fn d2v_has_nccl() -> c_int;
    fn d2v_group_leave(group: *mut RawGroup, error: *mut *mut c_char) -> c_int;
    fn d2v_group_free(group: *mut RawGroup);
    fn d2v_all_reduce(
        group: *mut RawGroup,
        tensors: *mut Raw,
        count: usize,
        bucket: usize,
        op: c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_broadcast(
        group: *mut RawGroup,
        tensors: *mut Raw,
        count: usize,
        bucket: usize,
        root: c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_all_gather(
        group: *mut RawGroup,
        tensor: Raw,
        out: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_reduce_scatter(
        group: *mut RawGroup,
        tensor: Raw,
        out: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_barrier(group: *mut RawGroup, error: *mut *mut c_char) -> c_int;
    fn d2v_monitored_barrier(
        group: *mut RawGroup,
        timeout_ms: i64,
        error: *mut *mut c_char,
    ) -> c_int;
}

/// What carries the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// For tensors on CPUs.
    Gloo,
    /// For tensors on NVIDIA GPUs.
    Nccl,
}

impl Backend {
    /// Whether this program was built with it.
    pub fn is_there(self) -> bool {
        // SAFETY: a constant of the shim.
        self == Self::Gloo || unsafe { d2v_has_nccl() } != 0
    }
}

/// How the ranks' values become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Added.
    Sum = 0,
    /// The largest.
    Max = 1,
}

/// The ranks of a run, seen from one of them.
#[derive(Debug)]
pub struct ProcessGroup {
    raw: *mut RawGroup,
    store: Store,
    launch: Launch,
    timeout: Duration,
    spent: Cell<Duration>,
    /// How often texts were gathered.
    gathered: Cell<u64>,
}

// SAFETY: LibTorch's group may be used from any thread, one at a time.
unsafe impl Send for ProcessGroup {}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: made by `d2v_group`, and freed once.
        unsafe { d2v_group_free(self.raw) }
    }
}

impl ProcessGroup {
    /// Meets the processes that the launcher's variables tell of (torchrun's, Slurm's, Kubeflow's); `None`:
    /// there are no such variables, and this process is alone. A collective that takes longer than
    /// `timeout` fails.
    ///
    /// # Errors
    /// [`Error::Launch`] if the variables make no sense, [`Error::Collective`] if the others do not come.
    pub fn from_env(backend: Backend, timeout: Duration) -> Result<Option<Self>, Error> {
        let launch = Launch::from_env()?;
        launch.map(|launch| Self::new(launch, backend, timeout)).transpose()
    }

    /// Meets the processes that `launch` tells of.
    ///
    /// # Errors
    /// [`Error::Collective`] if they do not come, or this program was built without `backend`.
    pub fn new(launch: Launch, backend: Backend, timeout: Duration) -> Result<Self, Error> {
        let (rank, size) = (launch.rank, launch.size);
        let failed = |reason: String| Error::new(rank, "making the group", reason);
        if !backend.is_there() {
            let reason = "this program was built without NCCL: it was not found beside LibTorch";
            return Err(failed(reason.into()));
        }
        let address = Address {
            host: &launch.host,
            port: launch.port,
            serve: rank == 0 && !launch.served,
            prefix: &launch.prefix,
        };
        let store = Store::connect(&address, rank, size, timeout)?;
        // With all on one machine nothing depends on what its name resolves to.
        let here = if launch.local_size == size { c"127.0.0.1" } else { c"" };
        let group = made(|error| {
            // SAFETY: the store is alive, and kept beside the group; the string outlives the call.
            unsafe {
                d2v_group(
                    store.raw(),
                    c_int::from(backend == Backend::Nccl),
                    rank as c_int,
                    size as c_int,
                    millis(timeout),
                    here.as_ptr(),
                    error,
                )
            }
        })
        .map_err(|e| failed(super::reason(&e)))?;
        Ok(Self {
            raw: group,
            store,
            launch,
            timeout,
            spent: Cell::default(),
            gathered: Cell::default(),
        })
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.launch.size
    }

    /// How the processes were started.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// What a collective may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Small values that all ranks can read and write.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How long this rank has been in collectives so far, waiting for others included, and not counting
    /// what went on beside a backward pass.
    pub fn spent(&self) -> Duration {
        self.spent.get()
    }

    pub(super) fn add_spent(&self, more: Duration) {
        self.spent.set(self.spent.get() + more);
    }

    pub(super) fn raw(&self) -> *mut RawGroup {
        self.raw
    }

    fn timed<T>(
        &self,
        collective: &'static str,
        call: impl FnOnce() -> Result<T, TchError>,
    ) -> Result<T, Error> {
        let start = Instant::now();
        let result = call();
        self.add_spent(start.elapsed());
        result.map_err(|e| Error::new(self.rank(), collective, super::reason(&e)))
    }

    /// The ranks' `tensors`, each reduced with the others' of the same place, in place of what was there.
    /// Small ones travel together.
    ///
    /// # Errors
    /// [`Error::Collective`] if another rank is gone or does not answer in time.
    pub fn all_reduce(&self, tensors: &[Tensor], by: Reduce) -> Result<(), Error> {
        let mut list: Vec<Raw> = tensors.iter().map(raw).collect();
        let (list, count) = (list.as_mut_ptr(), list.len());
        self.timed("all_reduce", || {
            // SAFETY: `count` pointers to tensors that the slice keeps alive.
            check(|error| unsafe {
                d2v_all_reduce(self.raw, list, count, BUCKET, by as c_int, error)
            })
        })
    }

    /// Puts the values that `root` has in `tensors` in all ranks' place of them.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<(), Error> {
        let mut list: Vec<Raw> = tensors.iter().map(raw).collect();
        let (list, count) = (list.as_mut_ptr(), list.len());
        self.timed("broadcast", || {
            // SAFETY: `count` pointers to tensors that the slice keeps alive.
            check(|error| unsafe {
                d2v_broadcast(self.raw, list, count, BUCKET, root as c_int, error)
            })
        })
    }

    /// `(R, …)`: every rank's `tensor` `(…)`.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        self.timed("all_gather", || {
            // SAFETY: both tensors are alive.
            returned(|out, error| unsafe { d2v_all_gather(self.raw, raw(tensor), out, error) })
        })
    }

    /// This rank's part `(…)` of the sum of all ranks' `tensor` `(R, …)`.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce), and if the first dimension is not the number of ranks.
    pub fn reduce_scatter(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        self.timed("reduce_scatter", || {
            // SAFETY: both tensors are alive.
            returned(|out, error| unsafe { d2v_reduce_scatter(self.raw, raw(tensor), out, error) })
        })
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn barrier(&self) -> Result<(), Error> {
        // SAFETY: the group is alive.
        self.timed("barrier", || check(|error| unsafe { d2v_barrier(self.raw, error) }))
    }

    /// The same with a time of its own; rank 0 names all that did not come. Gloo's alone.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn monitored_barrier(&self, timeout: Duration) -> Result<(), Error> {
        self.timed("monitored_barrier", || {
            // SAFETY: the group is alive.
            check(|error| unsafe { d2v_monitored_barrier(self.raw, millis(timeout), error) })
        })
    }

    /// Every rank's text, by rank. For few and short ones: they go through the store, and stay there.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn gather_texts(&self, text: &str) -> Result<Vec<String>, Error> {
        let number = self.gathered.get();
        self.gathered.set(number + 1);
        let key = |rank: usize| format!("text/{number}/{rank}");
        self.store.set(&key(self.rank()), text)?;
        (0..self.size()).map(|rank| self.store.get(&key(rank), self.timeout)).collect()
    }

    /// Closes the connections: the others' collectives fail at once instead of after their timeout. The
    /// store stays.
    ///
    /// # Errors
    /// If LibTorch refuses.
    pub fn leave(&self) -> Result<(), Error> {
        // SAFETY: the group is alive; later collectives are refused.
        self.timed("leave", || check(|error| unsafe { d2v_group_leave(self.raw, error) }))
    }
}
