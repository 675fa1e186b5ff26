//! Data-parallel training: the ranks of a process group and the collectives of a step.

use std::collections::{BTreeMap, HashMap};
use std::result::Result as Outcome;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use data2vec_torch_ext::dist::{self, ProcessGroup, Reduce};
use tch::{Device, Tensor};

use crate::random::hash;
use crate::{Error, Result};

/// Interval of the heartbeats of rank 0 while the other ranks wait for it.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Value of the key that the other ranks wait for, if rank 0 failed.
const FAILED: &str = "failed";

/// The ranks that train a model together; by default a single rank, without communication.
#[derive(Clone, Debug, Default)]
pub struct World(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    group: ProcessGroup,
    /// Number of calls of [`World::on_rank0`] so far.
    rank0_calls: AtomicU64,
}

impl From<ProcessGroup> for World {
    fn from(group: ProcessGroup) -> Self {
        Self(Some(Arc::new(Shared { group, rank0_calls: AtomicU64::default() })))
    }
}

impl World {
    /// Returns the process group; `None` for a single process.
    pub fn group(&self) -> Option<&ProcessGroup> {
        self.0.as_ref().map(|shared| &shared.group)
    }

    /// Returns the rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.group().map_or(0, ProcessGroup::rank)
    }

    /// Returns the world size, the number of ranks.
    pub fn size(&self) -> usize {
        self.group().map_or(1, ProcessGroup::size)
    }

    /// Returns whether this is rank 0, which writes files and evaluates.
    pub fn is_rank0(&self) -> bool {
        self.rank() == 0
    }

    /// Assigns items of the given `sizes` to ranks, about equally by total size; returns the rank
    /// of each.
    pub(crate) fn partition(&self, sizes: &[usize]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        // Largest first, to the rank with the least load; a stable sort, so that all ranks agree.
        order.sort_by_key(|&item| std::cmp::Reverse(sizes[item]));
        let (mut owners, mut load) = (vec![0; sizes.len()], vec![0; self.size()]);
        for item in order {
            let least = (0..load.len()).min_by_key(|&rank| load[rank]).unwrap_or(0);
            load[least] += sizes[item];
            owners[item] = least;
        }
        owners
    }

    /// Sums `tensors` over all ranks, in place.
    ///
    /// # Errors
    /// Returns [`Error::Dist`] if another rank has exited or times out.
    pub fn all_reduce_sum(&self, tensors: &[Tensor]) -> Result<()> {
        Ok(self.group().map_or(Ok(()), |group| group.all_reduce(tensors, Reduce::Sum))?)
    }

    /// Sums `values` over all ranks, by a tensor on `device`.
    ///
    /// # Errors
    /// See [`all_reduce_sum`](Self::all_reduce_sum).
    pub fn sum_scalars<const N: usize>(
        &self,
        values: [f64; N],
        device: Device,
    ) -> Result<[f64; N]> {
        if self.group().is_none() {
            return Ok(values);
        }
        let sums = Tensor::from_slice(&values).to_device(device);
        self.all_reduce_sum(&[sums.shallow_clone()])?;
        let mut all = [0.0; N];
        sums.to_device(Device::Cpu).f_copy_data(&mut all, N)?;
        Ok(all)
    }

    /// Overwrites `tensors` with the values of rank `root`.
    ///
    /// # Errors
    /// See [`all_reduce_sum`](Self::all_reduce_sum).
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<()> {
        Ok(self.group().map_or(Ok(()), |group| group.broadcast(tensors, root))?)
    }

    /// Overwrites `variables` with the values of rank 0.
    ///
    /// # Errors
    /// See [`all_reduce_sum`](Self::all_reduce_sum).
    pub fn broadcast_params(&self, variables: HashMap<String, Tensor>) -> Result<()> {
        // Sorted: all ranks need the same order, which a hash map does not define.
        let sorted = BTreeMap::from_iter(variables);
        self.broadcast(&sorted.into_values().collect::<Vec<_>>(), 0)
    }

    /// Checks that all ranks have the same `value` of `what`.
    ///
    /// # Errors
    /// Returns [`Error::Input`] naming the ranks that differ from rank 0.
    pub fn assert_same(&self, what: &str, value: &str) -> Result<()> {
        let Some(group) = self.group() else { return Ok(()) };
        let all = group.all_gather_str(value)?;
        let others: Vec<String> =
            (1..all.len()).filter(|&r| all[r] != all[0]).map(|r| r.to_string()).collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::Input(format!(
            "rank {} differs from rank 0 in {what}; \
             start all ranks with the same command, program and data",
            others.join(", ")
        )))
    }

    /// Checks that all ranks have variables of the same names, kinds and sizes; LibTorch would
    /// abort the process otherwise.
    ///
    /// # Errors
    /// See [`assert_same`](Self::assert_same).
    pub fn assert_same_variables(&self, variables: &HashMap<String, Tensor>) -> Result<()> {
        let sorted = BTreeMap::from_iter(variables);
        let lines: String = sorted
            .iter()
            .map(|(name, x)| format!("{name} {:?} {:?}\n", x.kind(), x.size()))
            .collect();
        self.assert_same("the model's variables", &format!("{:x}", hash(lines.as_bytes())))
    }

    /// Returns the `value` of rank 0 on all ranks.
    ///
    /// # Errors
    /// See [`all_reduce_sum`](Self::all_reduce_sum).
    pub fn broadcast_str(&self, value: &str) -> Result<String> {
        let mine = if self.is_rank0() { value } else { "" };
        Ok(self.gather_strings(mine)?.swap_remove(0))
    }

    /// Returns the `value` of every rank, by rank.
    ///
    /// # Errors
    /// See [`all_reduce_sum`](Self::all_reduce_sum).
    pub fn gather_strings(&self, value: &str) -> Result<Vec<String>> {
        match self.group() {
            Some(group) => Ok(group.all_gather_str(value)?),
            None => Ok(vec![value.to_owned()]),
        }
    }

    /// Runs `work` on rank 0 while the other ranks wait and get `None`.
    ///
    /// The others wait as long as rank 0 sends heartbeats, whatever the timeout of collectives.
    ///
    /// # Errors
    /// On rank 0, returns the error of `work`; on the others [`Error::Dist`] if rank 0 fails.
    pub fn on_rank0<T, E: From<Error>>(
        &self,
        work: impl FnOnce() -> Outcome<T, E>,
    ) -> Outcome<Option<T>, E> {
        let Some(shared) = self.0.as_ref().filter(|shared| shared.group.size() > 1) else {
            return work().map(Some);
        };
        let group = &shared.group;
        let call = shared.rank0_calls.fetch_add(1, Ordering::Relaxed);
        let (done, beats) = (format!("done/{call}"), format!("beats/{call}"));
        if !self.is_rank0() {
            wait_for_rank0(group, &done, &beats)?;
            return Ok(None);
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let store = group.store().clone();
        let heartbeat = std::thread::spawn(move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                if store.add(&beats, 1).is_err() {
                    return; // the main thread will get the error, too
                }
            }
        });
        let result = work();
        drop(stop);
        let _ = heartbeat.join(); // returns nothing and does not panic
        match result {
            Ok(result) => {
                group.store().set(&done, "").map_err(Error::from)?;
                Ok(Some(result))
            }
            Err(error) => {
                let _ = group.store().set(&done, FAILED); // the error of `work` matters more
                Err(error)
            }
        }
    }

    /// Runs `work` on all ranks, first on rank 0, so that the others find the files that it writes.
    ///
    /// # Errors
    /// Returns the error of `work`; see also [`on_rank0`](Self::on_rank0).
    pub fn rank0_first<T, E: From<Error>>(
        &self,
        mut work: impl FnMut() -> Outcome<T, E>,
    ) -> Outcome<T, E> {
        match self.on_rank0::<T, E>(&mut work)? {
            Some(done) => Ok(done),
            None => work(),
        }
    }
}

/// Waits until the key `done` is set; fails if rank 0 failed, or if the counter `beats` stalls for
/// the timeout of the group.
fn wait_for_rank0(group: &ProcessGroup, done: &str, beats: &str) -> Result<()> {
    let store = group.store();
    let (mut last_beat, mut last) = (Instant::now(), 0);
    loop {
        match store.get(done, 4 * HEARTBEAT) {
            Ok(end) if end == FAILED => {
                let (rank, reason) = (group.rank(), "rank 0 failed".to_owned());
                return Err(dist::Error::Collective { rank, collective: "on_rank0", reason }.into());
            }
            Ok(_) => return Ok(()),
            Err(error) => {
                let now = store.add(beats, 0)?;
                if now != last {
                    (last_beat, last) = (Instant::now(), now);
                } else if last_beat.elapsed() > group.timeout() {
                    return Err(error.into());
                }
            }
        }
    }
}

impl From<dist::Error> for Error {
    fn from(error: dist::Error) -> Self {
        match error {
            dist::Error::Torch(error) => error.into(),
            error => Self::Dist(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_rank_does_not_communicate() {
        let world = World::default();
        assert_eq!((world.rank(), world.size(), world.is_rank0()), (0, 1, true));
        assert_eq!(world.sum_scalars([1.0, 2.0], Device::Cpu).expect("no error"), [1.0, 2.0]);
        world.assert_same("it", "x").expect("no error");
        assert_eq!(world.on_rank0::<_, Error>(|| Ok(7)).expect("no error"), Some(7));
        assert_eq!(world.rank0_first::<_, Error>(|| Ok(7)).expect("no error"), 7);
    }
}
