//! Process groups and their collectives.

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tch::{TchError, Tensor};

use super::store::{RawStore, StoreAddress};
use super::{Error, Launch, Store, millis};
use crate::shim::{Raw, call_new, call_tensor, check, raw};

/// Bucket size in bytes: small tensors are flattened into one message. DDP's default.
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

/// Communication backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// For tensors on CPUs.
    Gloo,
    /// For tensors on NVIDIA GPUs.
    Nccl,
}

impl Backend {
    /// Returns true if this program was built with the backend.
    pub fn is_available(self) -> bool {
        // SAFETY: returns a constant.
        self == Self::Gloo || unsafe { d2v_has_nccl() } != 0
    }
}

/// Reduction of [`ProcessGroup::all_reduce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Sum.
    Sum = 0,
    /// Maximum.
    Max = 1,
}

/// A group of ranks, as seen from this process.
#[derive(Debug)]
pub struct ProcessGroup {
    raw: *mut RawGroup,
    store: Store,
    launch: Launch,
    timeout: Duration,
    /// Locked during a collective, so that one runs at a time.
    collective_time: Mutex<Duration>,
    /// Number of [`all_gather_str`](Self::all_gather_str) calls; part of their keys.
    gathers: AtomicU64,
}

// SAFETY: LibTorch's group may be used from any thread, by one thread at a time; see
// `collective_time`.
unsafe impl Send for ProcessGroup {}
// SAFETY: as above.
unsafe impl Sync for ProcessGroup {}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: created by `d2v_group` and freed once.
        unsafe { d2v_group_free(self.raw) }
    }
}

impl ProcessGroup {
    /// Initialises the process group from the environment variables of torchrun, Kubeflow or Slurm.
    ///
    /// Returns `None` if no launcher's variables are set: a single process. A collective that takes
    /// longer than `timeout` fails.
    ///
    /// # Errors
    /// [`Error::Launch`] if the variables are incomplete or invalid, [`Error::Collective`] if the
    /// other ranks do not connect in time.
    pub fn from_env(backend: Backend, timeout: Duration) -> Result<Option<Self>, Error> {
        let launch = Launch::from_env()?;
        launch.map(|launch| Self::new(launch, backend, timeout)).transpose()
    }

    /// Initialises the process group described by `launch`.
    ///
    /// # Errors
    /// [`Error::Collective`] if the other ranks do not connect in time, or this program was built
    /// without `backend`.
    pub fn new(launch: Launch, backend: Backend, timeout: Duration) -> Result<Self, Error> {
        let (rank, size) = (launch.rank, launch.size);
        let failed = |reason: String| Error::new(rank, "init_process_group", reason);
        if !backend.is_available() {
            let reason = "built without NCCL: it was not found next to LibTorch at build time";
            return Err(failed(reason.into()));
        }
        let store_address = StoreAddress {
            host: &launch.host,
            port: launch.port,
            is_server: rank == 0 && !launch.agent_store,
            prefix: &launch.prefix,
        };
        let store = Store::connect(&store_address, rank, size, timeout)?;
        // On a single machine, use loopback: its host name may not resolve.
        let address = if launch.local_size == size { c"127.0.0.1" } else { c"" };
        let group = call_new(|error| {
            // SAFETY: the store is kept alive with the group; the string outlives the call.
            unsafe {
                d2v_group(
                    store.raw(),
                    c_int::from(backend == Backend::Nccl),
                    rank as c_int,
                    size as c_int,
                    millis(timeout),
                    address.as_ptr(),
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
            collective_time: Mutex::default(),
            gathers: AtomicU64::default(),
        })
    }

    /// Returns the rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// Returns the number of ranks (world size).
    pub fn size(&self) -> usize {
        self.launch.size
    }

    /// Returns the launch parameters.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Returns the timeout of a collective.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the key-value store shared by all ranks.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the total time this rank has spent in collectives, including waits for other ranks.
    ///
    /// Communication that overlaps a backward pass is not counted.
    pub fn collective_time(&self) -> Duration {
        *self.lock()
    }

    pub(super) fn add_collective_time(&self, time: Duration) {
        *self.lock() += time;
    }

    fn lock(&self) -> MutexGuard<'_, Duration> {
        self.collective_time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn raw(&self) -> *mut RawGroup {
        self.raw
    }

    fn timed<T>(
        &self,
        collective: &'static str,
        call: impl FnOnce() -> Result<T, TchError>,
    ) -> Result<T, Error> {
        let mut time = self.lock();
        let start = Instant::now();
        let result = call();
        *time += start.elapsed();
        result.map_err(|e| Error::new(self.rank(), collective, super::reason(&e)))
    }

    /// Reduces each of `tensors` over all ranks, in place. Small tensors are sent in buckets.
    ///
    /// # Errors
    /// [`Error::Collective`] if another rank exited or timed out.
    pub fn all_reduce(&self, tensors: &[Tensor], op: Reduce) -> Result<(), Error> {
        let mut list: Vec<Raw> = tensors.iter().map(raw).collect();
        let (list, count) = (list.as_mut_ptr(), list.len());
        self.timed("all_reduce", || {
            // SAFETY: `list` holds `count` pointers to tensors that the slice keeps alive.
            check(|error| unsafe {
                d2v_all_reduce(self.raw, list, count, BUCKET, op as c_int, error)
            })
        })
    }

    /// Overwrites `tensors` on all ranks with the values of rank `root`.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce).
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<(), Error> {
        let mut list: Vec<Raw> = tensors.iter().map(raw).collect();
        let (list, count) = (list.as_mut_ptr(), list.len());
        self.timed("broadcast", || {
            // SAFETY: `list` holds `count` pointers to tensors that the slice keeps alive.
            check(|error| unsafe {
                d2v_broadcast(self.raw, list, count, BUCKET, root as c_int, error)
            })
        })
    }

    /// Gathers `tensor` `(…)` of all ranks to `(R, …)`, in rank order.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce).
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        self.timed("all_gather", || {
            // SAFETY: live tensors.
            call_tensor(|out, error| unsafe { d2v_all_gather(self.raw, raw(tensor), out, error) })
        })
    }

    /// Sums `tensor` `(R, …)` over all ranks and returns this rank's slice `(…)`.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce), or if the first dimension is not the number of
    /// ranks.
    pub fn reduce_scatter(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        self.timed("reduce_scatter", || {
            // SAFETY: live tensors.
            call_tensor(|out, error| unsafe {
                d2v_reduce_scatter(self.raw, raw(tensor), out, error)
            })
        })
    }

    /// Waits until all ranks have reached the barrier.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce).
    pub fn barrier(&self) -> Result<(), Error> {
        // SAFETY: the group is alive.
        self.timed("barrier", || check(|error| unsafe { d2v_barrier(self.raw, error) }))
    }

    /// Waits like [`barrier`](Self::barrier) with its own timeout; rank 0's error names the missing
    /// ranks. Gloo only.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce).
    pub fn monitored_barrier(&self, timeout: Duration) -> Result<(), Error> {
        self.timed("monitored_barrier", || {
            // SAFETY: the group is alive.
            check(|error| unsafe { d2v_monitored_barrier(self.raw, millis(timeout), error) })
        })
    }

    /// Gathers `text` of all ranks, in rank order.
    ///
    /// Meant for few, short strings: they go through the store and are never deleted from it.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce).
    pub fn all_gather_str(&self, text: &str) -> Result<Vec<String>, Error> {
        let number = self.gathers.fetch_add(1, Ordering::Relaxed);
        let key = |rank: usize| format!("text/{number}/{rank}");
        self.store.set(&key(self.rank()), text)?;
        (0..self.size()).map(|rank| self.store.get(&key(rank), self.timeout)).collect()
    }

    /// Closes this rank's connections, so that the other ranks' collectives fail at once instead of
    /// timing out. The store stays connected.
    ///
    /// # Errors
    /// LibTorch's error.
    pub fn leave(&self) -> Result<(), Error> {
        // SAFETY: the group is alive; the shim rejects later collectives.
        self.timed("leave", || check(|error| unsafe { d2v_group_leave(self.raw, error) }))
    }
}
