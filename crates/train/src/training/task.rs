//! What the training loop trains: pretraining and fine-tuning implement it.

use std::path::Path;

use anyhow::Result;
use data2vec_core::Snapshot;
use data2vec_core::data::loader::Plan;
use tch::{Device, Tensor};

use crate::metrics::{Line, TrainLine};
use crate::report::PreviewExamples;
use crate::run_dir::RunDir;

/// A model with its optimizer and its evaluations, as the loop sees it.
pub trait TrainTask {
    /// A training batch.
    type Batch: Send + 'static;

    /// Number of completed optimizer steps.
    fn step(&self) -> u64;

    /// The device of the model.
    fn device(&self) -> Device;

    /// Takes one optimizer step on this rank's batches, each with its index in the step. Returns
    /// `None` if loss or gradient was not finite and nothing changed.
    fn take_step(&mut self, batches: &[(u64, &Self::Batch)]) -> Result<Option<TrainLine>>;

    /// Sets the factor of the schedule's learning rates.
    fn scale_lr(&mut self, scale: f64);

    /// The tensors of a batch, by name.
    fn tensors(batch: &Self::Batch) -> Vec<(&'static str, Tensor)>;

    /// Called before the first step: checks that the planned batches fit.
    fn dry_run(&mut self, plan: &Plan) -> Result<()>;

    /// Measures the health of the model on some batches of the last step, if it can.
    fn health(&self, _batches: &[(u64, &Self::Batch)]) -> Result<Option<Line>> {
        Ok(None)
    }

    /// Evaluates held-out examples. Returns nothing if there are none.
    fn evaluate(&mut self) -> Result<Vec<Line>>;

    /// Called for each new evaluation (`is_new`), and for replayed ones on resume.
    fn on_evaluation(&mut self, line: &Line, is_new: bool) -> Result<()>;

    /// Copies everything that is needed to resume.
    fn snapshot(&self) -> data2vec_core::Result<Snapshot>;

    /// Restores what a [`snapshot`](Self::snapshot) wrote to `dir` after `step` steps.
    fn load(&mut self, dir: &Path, step: u64) -> Result<()>;

    /// Renders examples for the report; `None` if there is nothing to show.
    fn preview(&self) -> Result<Option<PreviewExamples>>;

    /// Writes what users want of a finished run to its directory.
    fn export(&mut self, dir: &RunDir) -> Result<Exported>;
}

/// What a finished run has exported.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Name, as in "encoder".
    pub name: &'static str,
    /// Its directory.
    pub dir: String,
    /// Commands that use it.
    pub next: Vec<String>,
}
