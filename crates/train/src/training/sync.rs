//! Synchronizes the ranks of a run before every step.

use std::collections::BTreeMap;

use anyhow::Result;
use data2vec_core::{Dataset, Loader};
use tracing::warn;

use super::feed::check_bad;
use super::{Run, TrainTask};
use crate::stop::Stop;

impl<T: TrainTask, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Records the unusable examples that this rank has found. Returns new ones, with the reasons
    /// by name.
    ///
    /// # Errors
    /// As [`check_bad`].
    pub(super) fn new_bad(
        &mut self,
        loader: &Loader<T::Batch>,
    ) -> Result<BTreeMap<String, String>> {
        let mut new: BTreeMap<String, String> = loader.bad().into_iter().collect();
        new.retain(|name, _| !self.pending.bad.contains(name));
        self.record_bad(&new)?;
        Ok(new)
    }

    /// Logs and lists unusable examples, and fails if there are too many.
    fn record_bad(&mut self, new: &BTreeMap<String, String>) -> Result<()> {
        self.bad_list.as_mut().map_or(Ok(()), |list| list.add(new.values()))?;
        for (name, reason) in new {
            if self.pending.bad.insert(name.clone()) {
                warn!("skipped {reason}");
                check_bad(&self.train, self.bad_before + self.pending.bad.len(), reason)?;
            }
        }
        Ok(())
    }

    /// Sums what all ranks have loaded, agrees on stopping, and shares the ranks' new unusable
    /// examples.
    pub(super) fn sync(
        &mut self,
        stop: &Stop,
        batches: usize,
        size: u64,
        new_bad: &BTreeMap<String, String>,
    ) -> Result<Synced> {
        let code = stop.exit_code();
        let is = |signal: u8| f64::from(code == Some(128 + signal));
        let mine = [batches as f64, size as f64, new_bad.len() as f64, is(2), is(15)];
        let [batches, size, bad, interrupted, terminated] =
            self.world.sum_scalars(mine, self.task.device())?;
        if self.world.size() > 1 && bad > 0.0 {
            for text in self.world.gather_strings(&serde_json::to_string(new_bad)?)? {
                self.record_bad(&serde_json::from_str(&text)?)?;
            }
        }
        let stop = match (interrupted > 0.0, terminated > 0.0) {
            (true, _) => Some(130),
            (_, true) => Some(143),
            _ => None,
        };
        Ok(Synced { batches: batches as u64, size, stop })
    }
}

/// The ranks' common state before a step.
pub(super) struct Synced {
    /// Number of batches on all ranks.
    pub batches: u64,
    /// Size of all batches, in units of the loader's budget.
    pub size: f64,
    /// Exit code, if any rank was asked to stop.
    pub stop: Option<u8>,
}
