//! Several processes that train one model, each on its share of every step's micro-batches.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::result::Result as Outcome;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use data2vec_torch_ext::dist::{self, ProcessGroup, Reduce};
use tch::{Device, Tensor};

use crate::random::hash;
use crate::{Error, Result};

/// How often rank 0 tells that it is alive while the others wait for it.
const BEAT: Duration = Duration::from_millis(500);

/// The processes that train a model together; by default this one is alone, and every exchange is none.
#[derive(Clone, Debug, Default)]
pub struct World(Option<Rc<Shared>>);

#[derive(Debug)]
struct Shared {
    group: ProcessGroup,
    /// How often rank 0 has worked alone.
    turns: Cell<u64>,
}

impl From<ProcessGroup> for World {
    fn from(group: ProcessGroup) -> Self {
        Self(Some(Rc::new(Shared { group, turns: Cell::default() })))
    }
}

impl World {
    /// The group, unless this process is alone.
    pub fn group(&self) -> Option<&ProcessGroup> {
        self.0.as_ref().map(|shared| &shared.group)
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.group().map_or(0, ProcessGroup::rank)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.group().map_or(1, ProcessGroup::size)
    }

    /// Whether this is the one that writes.
    pub fn is_rank0(&self) -> bool {
        self.rank() == 0
    }

    /// A rank for each of several things, so that each rank has about as much of their `sizes`.
    pub(crate) fn divide(&self, sizes: &[usize]) -> Vec<usize> {
        let mut places: Vec<usize> = (0..sizes.len()).collect();
        // Largest first, always to the rank that has least: stable, so that all ranks see the same.
        places.sort_by_key(|&place| std::cmp::Reverse(sizes[place]));
        let (mut owners, mut load) = (vec![0; sizes.len()], vec![0; self.count()]);
        for place in places {
            let least = (0..load.len()).min_by_key(|&rank| load[rank]).unwrap_or(0);
            load[least] += sizes[place];
            owners[place] = least;
        }
        owners
    }

    /// Adds the ranks' `tensors` in place.
    ///
    /// # Errors
    /// [`Error::Dist`] if another rank is gone or does not answer in time.
    pub fn sum(&self, tensors: &[Tensor]) -> Result<()> {
        Ok(self.group().map_or(Ok(()), |group| group.all_reduce(tensors, Reduce::Sum))?)
    }

    /// The sums of the ranks' numbers, which travel on `device`.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn sum_numbers<const N: usize>(&self, mine: [f64; N], device: Device) -> Result<[f64; N]> {
        if self.group().is_none() {
            return Ok(mine);
        }
        let sums = Tensor::from_slice(&mine).to_device(device);
        self.sum(&[sums.shallow_clone()])?;
        let mut all = [0.0; N];
        sums.to_device(Device::Cpu).f_copy_data(&mut all, N)?;
        Ok(all)
    }

    /// Puts the values that `root` has in `tensors` in their place here.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<()> {
        Ok(self.group().map_or(Ok(()), |group| group.broadcast(tensors, root))?)
    }

    /// Puts rank 0's values in the place of all ranks' `variables`.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn broadcast_params(&self, variables: HashMap<String, Tensor>) -> Result<()> {
        // In one order everywhere: a hash map has none.
        let sorted = BTreeMap::from_iter(variables);
        self.broadcast(&sorted.into_values().collect::<Vec<_>>(), 0)
    }

    /// Whether all ranks say the same of `what`.
    ///
    /// # Errors
    /// [`Error::Input`] that names those which differ from rank 0.
    pub fn assert_same(&self, what: &str, mine: &str) -> Result<()> {
        let Some(group) = self.group() else { return Ok(()) };
        let all = group.gather_texts(mine)?;
        let others: Vec<String> =
            (1..all.len()).filter(|&r| all[r] != all[0]).map(|r| r.to_string()).collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::Input(format!(
            "rank {} differs from rank 0 in {what}: start all ranks with the same command, program and data",
            others.join(", ")
        )))
    }

    /// Whether all ranks have variables of the same names, kinds and sizes: with others, LibTorch would end
    /// the process.
    ///
    /// # Errors
    /// As [`assert_same`](Self::agree).
    pub fn assert_same_variables(&self, variables: &HashMap<String, Tensor>) -> Result<()> {
        let sorted = BTreeMap::from_iter(variables);
        let lines: String = sorted
            .iter()
            .map(|(name, x)| format!("{name} {:?} {:?}\n", x.kind(), x.size()))
            .collect();
        self.assert_same("the model's variables", &format!("{:x}", hash(lines.as_bytes())))
    }

    /// Rank 0's text.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn broadcast_str(&self, text: &str) -> Result<String> {
        let mine = if self.is_rank0() { text } else { "" };
        Ok(self.gather_texts(mine)?.swap_remove(0))
    }

    /// Every rank's text, by rank.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn gather_texts(&self, text: &str) -> Result<Vec<String>> {
        match self.group() {
            Some(group) => Ok(group.gather_texts(text)?),
            None => Ok(vec![text.to_owned()]),
        }
    }

    /// Has rank 0 do `work`, however long it takes, while the others wait; `None` there. They wait as long as
    /// rank 0 lives.
    ///
    /// # Errors
    /// Rank 0: what `work` returns. The others: [`Error::Dist`] if rank 0 fails or falls silent.
    pub fn on_rank0<T, E: From<Error>>(
        &self,
        work: impl FnOnce() -> Outcome<T, E>,
    ) -> Outcome<Option<T>, E> {
        let Some(shared) = self.0.as_ref().filter(|shared| shared.group.size() > 1) else {
            return work().map(Some);
        };
        let (group, turn) = (&shared.group, shared.turns.get());
        shared.turns.set(turn + 1);
        let (done, beats) = (format!("done/{turn}"), format!("beats/{turn}"));
        if !self.is_rank0() {
            wait_for_first(group, &done, &beats)?;
            return Ok(None);
        }
        let (tell, told) = mpsc::channel::<()>();
        let store = group.store().clone();
        let beat = std::thread::spawn(move || {
            while told.recv_timeout(BEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                if store.add(&beats, 1).is_err() {
                    return; // the main thread will find out
                }
            }
        });
        let result = work();
        drop(tell);
        // It has nothing to say.
        let _ = beat.join();
        let result = result?;
        group.store().set(&done, "").map_err(Error::from)?;
        Ok(Some(result))
    }

    /// Has all ranks do `work`, rank 0 before the others: what it leaves on the disk, they find.
    ///
    /// # Errors
    /// What `work` returns; as [`on_rank0`](Self::on_rank0).
    pub fn first_then_all<T, E: From<Error>>(
        &self,
        work: impl Fn() -> Outcome<T, E>,
    ) -> Outcome<T, E> {
        match self.on_rank0::<T, E>(&work)? {
            Some(done) => Ok(done),
            None => work(),
        }
    }
}

fn wait_for_first(group: &ProcessGroup, done: &str, beats: &str) -> Result<()> {
    let store = group.store();
    let (mut heard, mut last) = (Instant::now(), 0);
    loop {
        match store.get(done, 4 * BEAT) {
            Ok(_) => return Ok(()),
            Err(error) => {
                // Not yet, or never.
                let now = store.add(beats, 0)?;
                if now != last {
                    (heard, last) = (Instant::now(), now);
                } else if heard.elapsed() > group.timeout() {
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
    fn alone_nothing_is_exchanged() {
        let ranks = World::default();
        assert_eq!((ranks.rank(), ranks.count(), ranks.is_rank0()), (0, 1, true));
        assert_eq!(ranks.sum_numbers([1.0, 2.0], Device::Cpu).expect("nothing"), [1.0, 2.0]);
        ranks.assert_same("it", "x").expect("nothing");
        assert_eq!(ranks.on_rank0::<_, Error>(|| Ok(7)).expect("no error"), Some(7));
        assert_eq!(ranks.first_then_all::<_, Error>(|| Ok(7)).expect("no error"), 7);
    }
}
