//! Finds and restores the checkpoint from which a run starts.

use std::path::PathBuf;

use anyhow::{Result, bail};
use data2vec_core::{Checkpoints, Dataset, Position};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::saver::Saver;
use super::{Run, TrainTask};
use crate::log::{Log, Sinks};
use crate::metrics::Pending;

/// Where training starts; rank 0 broadcasts it.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Start {
    /// Completed steps; `None` without a checkpoint.
    step: Option<u64>,
    /// Index of the next batch of data.
    next_batch: u64,
    /// Metrics since the last line.
    pending: Pending,
}

/// Returns the newest intact checkpoint of at most `last` steps.
fn newest(checkpoints: Option<&Checkpoints>, last: u64) -> Result<Option<(Start, PathBuf)>> {
    let Some(checkpoints) = checkpoints else { return Ok(None) };
    let newest = checkpoints.newest_up_to(last)?;
    let Some((position, path)) = newest.good else {
        if let Some((path, reason)) = newest.damaged.first() {
            let (count, dir) = (newest.damaged.len(), path.parent().unwrap_or(path).display());
            bail!(
                "{dir}: none of {count} checkpoints is intact ({}: {reason}); restore one, or choose another --out to start again",
                path.display()
            );
        }
        return Ok(None);
    };
    for (path, reason) in &newest.damaged {
        warn!("{} is damaged: {reason}; trying the previous checkpoint", path.display());
    }
    let Position { step, next_batch } = position;
    let start = Start { step: Some(step), next_batch, pending: Pending::load(&path)? };
    Ok(Some((start, path)))
}

impl<T: TrainTask, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Returns the newest intact checkpoint of at most `last` steps, for the first of `lasts` that
    /// has one. Returns `None` on ranks other than 0.
    pub(super) fn newest(&self, lasts: &[u64]) -> Result<Option<(Start, PathBuf)>> {
        let checkpoints = self.saver.as_ref().map(Saver::checkpoints);
        let first = || {
            let found = lasts.iter().map(|&last| newest(checkpoints, last));
            found.filter_map(Result::transpose).next().transpose()
        };
        Ok(self.world.on_rank0(first)?.flatten())
    }

    /// Restores rank 0's `checkpoint` (`None`: step 0) on all ranks, and the log up to there.
    pub(super) fn restore(
        &mut self,
        checkpoint: Option<(Start, PathBuf)>,
        sinks: Option<Sinks>,
    ) -> Result<()> {
        let start = checkpoint.as_ref().map(|(start, _)| start.clone()).unwrap_or_default();
        let start: Start = toml::from_str(&self.world.broadcast_str(&toml::to_string(&start)?)?)?;
        let Start { step, next_batch, pending } = start;
        if let Some(step) = step {
            let path = checkpoint.map(|(_, path)| path).unwrap_or_default();
            self.task.load(&path, step)?;
            info!("resuming from step {step} ({})", path.display());
        }
        (self.saved, self.next_batch, self.pending) = (step, next_batch, pending);
        let (position, unit) = ((self.task.step(), self.train.steps), self.units.name);
        let (log, lines) = match sinks {
            Some(sinks) => Log::open(&self.dir, sinks, position, unit)?,
            None => (Log::silent(position), Vec::new()),
        };
        self.log = log;
        for line in lines.iter().filter(|line| line.is_evaluation()) {
            self.task.on_evaluation(line, false)?;
        }
        self.restore_recovery(&lines)
    }
}
