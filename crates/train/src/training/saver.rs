//! Checkpoints, written while training goes on.

use std::fs::File;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};
use data2vec_core::{Checkpoints, Position, Snapshot};
use data2vec_torch_ext::compute_on_this_thread_alone;

use crate::report::{describe, note};

/// Writes one checkpoint at a time in a thread of its own, so that there is never more than one copy of
/// the model in memory.
pub struct Saver {
    checkpoints: Arc<Checkpoints>,
    writing: Option<JoinHandle<Result<()>>>,
}

impl Saver {
    /// To the folder of `checkpoints`.
    pub fn new(checkpoints: Checkpoints) -> Self {
        Self { checkpoints: Arc::new(checkpoints), writing: None }
    }

    /// Where they are.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Waits for the checkpoint before, copies what `copy` copies, and has it written. The lines of
    /// `metrics`, which belong to the same step, reach the disk first.
    pub fn save(
        &mut self,
        position: Position,
        copy: impl FnOnce() -> Result<Snapshot>,
        metrics: File,
    ) -> Result<()> {
        self.wait()?;
        let failed = format!(
            "the checkpoint of step {} could not be written; older ones are whole",
            position.step
        );
        let snapshot = copy().context(failed.clone())?;
        let checkpoints = self.checkpoints.clone();
        let write = move || {
            compute_on_this_thread_alone();
            metrics.sync_all().context("metrics.jsonl").context(failed.clone())?;
            checkpoints.save(position, |dir| snapshot.write(dir)).context(failed)?;
            Ok(())
        };
        let thread = Builder::new().name("checkpoint".into()).spawn(write);
        self.writing = Some(thread.context("no thread for the checkpoint")?);
        Ok(())
    }

    /// How the writing went, if it has come to an end.
    pub fn check(&mut self) -> Result<()> {
        match &self.writing {
            Some(thread) if thread.is_finished() => self.wait(),
            _ => Ok(()),
        }
    }

    /// Waits until nothing is being written; how that went.
    pub fn wait(&mut self) -> Result<()> {
        let Some(thread) = self.writing.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// A checkpoint that is being written when a run fails for another reason is worth waiting for.
impl Drop for Saver {
    fn drop(&mut self) {
        let written = self.writing.take().map(JoinHandle::join);
        if let Some(Ok(Err(error))) = written {
            note(describe(&error));
        }
    }
}
