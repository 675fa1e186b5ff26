//! Where a run goes on.

use std::path::PathBuf;

use anyhow::Result;
use data2vec_core::{Checkpoints, Position};
use serde::{Deserialize, Serialize};

use crate::metrics::Pending;
use crate::report::note;

/// What rank 0 tells the others of the newest checkpoint.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Start {
    /// `None`: there is no checkpoint.
    pub step: Option<u64>,
    /// Number of the next batch of data.
    pub next_batch: u64,
    /// What the next line of metrics tells of the steps before it.
    pub pending: Pending,
}

/// The newest checkpoint that is whole.
pub fn newest(checkpoints: Option<&Checkpoints>) -> Result<Option<(Start, PathBuf)>> {
    let Some(checkpoints) = checkpoints else { return Ok(None) };
    let newest = checkpoints.newest()?;
    for (path, reason) in &newest.damaged {
        note(format!("{} is damaged ({reason}); trying the one before it", path.display()));
    }
    let Some((position, path)) = newest.good else {
        if !newest.damaged.is_empty() {
            note("no checkpoint is whole: starting from step 0");
        }
        return Ok(None);
    };
    let Position { step, next_batch } = position;
    let start = Start { step: Some(step), next_batch, pending: Pending::load(&path)? };
    Ok(Some((start, path)))
}
