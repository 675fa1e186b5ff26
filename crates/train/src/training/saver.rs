//! Writes checkpoints while training continues.

use std::fs::File;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};
use data2vec_core::{Checkpoints, Position, Snapshot};
use data2vec_torch_ext::set_thread_num_threads;
use tracing::warn;

use crate::messages::describe;

/// Writes one checkpoint at a time in a thread, so that at most one copy of the model is in memory.
pub struct Saver {
    checkpoints: Arc<Checkpoints>,
    writing: Option<JoinHandle<Result<()>>>,
}

impl Saver {
    /// Creates a saver for the directory of `checkpoints`.
    pub fn new(checkpoints: Checkpoints) -> Self {
        Self { checkpoints: Arc::new(checkpoints), writing: None }
    }

    /// Returns the checkpoints of the run.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Waits for the previous checkpoint, takes a snapshot with `copy`, and starts writing it.
    /// Flushes `metrics` first, whose lines belong to the same step.
    ///
    /// # Errors
    /// If the previous checkpoint could not be written, or `copy` fails.
    pub fn save(
        &mut self,
        position: Position,
        copy: impl FnOnce() -> Result<Snapshot>,
        metrics: File,
    ) -> Result<()> {
        self.wait()?;
        let failed = format!(
            "failed to write the checkpoint of step {}; older checkpoints are intact",
            position.step
        );
        let snapshot = copy().context(failed.clone())?;
        let checkpoints = self.checkpoints.clone();
        let write = move || {
            set_thread_num_threads(1);
            metrics.sync_all().context("metrics.jsonl").context(failed.clone())?;
            checkpoints.save(position, |dir| snapshot.write(dir)).context(failed)?;
            Ok(())
        };
        let thread = Builder::new().name("checkpoint".into()).spawn(write);
        self.writing = Some(thread.context("failed to start the thread that writes checkpoints")?);
        Ok(())
    }

    /// Returns the result of writing, if it has finished.
    ///
    /// # Errors
    /// If the checkpoint could not be written.
    pub fn check(&mut self) -> Result<()> {
        match &self.writing {
            Some(thread) if thread.is_finished() => self.wait(),
            _ => Ok(()),
        }
    }

    /// Waits until no checkpoint is being written.
    ///
    /// # Errors
    /// If the checkpoint could not be written.
    pub fn wait(&mut self) -> Result<()> {
        let Some(thread) = self.writing.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Waits for a checkpoint that is being written, even if the run failed for another reason.
impl Drop for Saver {
    fn drop(&mut self) {
        let written = self.writing.take().map(JoinHandle::join);
        if let Some(Ok(Err(error))) = written {
            warn!("{}", describe(&error));
        }
    }
}
