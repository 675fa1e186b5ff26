//! Where a run goes on.

use std::path::PathBuf;

use anyhow::Result;
use data2vec_core::{Checkpoints, Dataset, Position};
use serde::{Deserialize, Serialize};

use super::saver::Saver;
use super::{Run, Trainee};
use crate::log::{Log, Outlets};
use crate::metrics::Pending;
use crate::report::{note, tell};

/// What rank 0 tells the others of the newest checkpoint.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Start {
    /// `None`: there is no checkpoint.
    step: Option<u64>,
    /// Number of the next batch of data.
    next_batch: u64,
    /// What the next line of metrics tells of the steps before it.
    pending: Pending,
}

/// The newest checkpoint that is whole, of those of at most `last` steps.
fn newest(checkpoints: Option<&Checkpoints>, last: u64) -> Result<Option<(Start, PathBuf)>> {
    let Some(checkpoints) = checkpoints else { return Ok(None) };
    let newest = checkpoints.newest_up_to(last)?;
    for (path, reason) in &newest.damaged {
        note(format!("{} is damaged ({reason}); trying the one before it", path.display()));
    }
    let Some((position, path)) = newest.good else {
        if !newest.damaged.is_empty() {
            let end =
                if last == u64::MAX { "starting from step 0" } else { "nowhere to go back to" };
            note(format!("no checkpoint is whole: {end}"));
        }
        return Ok(None);
    };
    let Position { step, next_batch } = position;
    let start = Start { step: Some(step), next_batch, pending: Pending::load(&path)? };
    Ok(Some((start, path)))
}

impl<T: Trainee, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Rank 0's newest whole checkpoint of at most so many steps, by the first of `lasts` for which there is one;
    /// `None` on the other ranks.
    pub(super) fn newest(&self, lasts: &[u64]) -> Result<Option<(Start, PathBuf)>> {
        let checkpoints = self.saver.as_ref().map(Saver::checkpoints);
        let first = || {
            let found = lasts.iter().map(|&last| newest(checkpoints, last));
            found.filter_map(Result::transpose).next().transpose()
        };
        Ok(self.ranks.first_alone(first)?.flatten())
    }

    /// Goes on from rank 0's `checkpoint` with the log up to there; `None`: from step 0.
    pub(super) fn stand(
        &mut self,
        checkpoint: Option<(Start, PathBuf)>,
        outlets: Option<Outlets>,
    ) -> Result<()> {
        let start = checkpoint.as_ref().map(|(start, _)| start.clone()).unwrap_or_default();
        let start: Start = toml::from_str(&self.ranks.from_first(&toml::to_string(&start)?)?)?;
        let Start { step, next_batch, pending } = start;
        if let Some(step) = step {
            let path = checkpoint.map(|(_, path)| path).unwrap_or_default();
            self.trainee.load(&path, step)?;
            tell!("going on from step {step} ({})", path.display());
        }
        (self.saved, self.next_batch, self.pending) = (step, next_batch, pending);
        let (position, unit) = ((self.trainee.step(), self.train.steps), self.units.name);
        let (log, lines) = match outlets {
            Some(outlets) => Log::open(&self.folder, outlets, position, unit)?,
            None => (Log::silent(position, unit), Vec::new()),
        };
        self.log = log;
        for line in lines.iter().filter(|line| line.is_evaluation()) {
            self.trainee.heed(line, false)?;
        }
        self.take_care(&lines)
    }
}
