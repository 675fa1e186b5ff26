//! The `train` section of a recipe: length of the run, evaluations, checkpoints.

use anyhow::Result;
use data2vec_core::Error;
use serde::{Deserialize, Serialize};

/// Length of a run, batches, evaluations and checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Maximum size of a batch in the modality's unit, before copies.
    pub batch: f64,
    /// Maximum number of examples in a batch; absent: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_examples: Option<usize>,
    /// Number of batches per step, on all ranks together.
    pub accumulate: usize,
    /// Maximum gradient norm; absent: no clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Share of held-out examples.
    pub held_out: f64,
    /// Maximum number of batches per evaluation.
    pub eval_batches: usize,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Steps between lines of metrics.
    pub log_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Number of newest checkpoints to keep.
    pub keep: usize,
    /// Also keeps checkpoints at multiples of this many steps; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    /// Number of loader threads.
    pub workers: usize,
    /// Maximum number of unusable examples to skip.
    pub max_bad_examples: usize,
    /// What to do when the run collapses or diverges. Absent: warn.
    #[serde(default, skip_serializing_if = "OnFailure::is_warn")]
    pub on_failure: OnFailure,
    /// Shards the optimizer's moments over the ranks, and in bf16 the f32 teacher: less memory,
    /// more communication, the same numbers. Absent: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shard_optimizer: bool,
}

impl TrainConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// If a setting is invalid, naming its key.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("steps", self.steps),
            ("max_examples", self.max_examples.unwrap_or(1) as u64),
            ("accumulate", self.accumulate as u64),
            ("eval_batches", self.eval_batches as u64),
            ("eval_every", self.eval_every),
            ("log_every", self.log_every),
            ("save_every", self.save_every),
            ("keep", self.keep as u64),
            ("keep_every", self.keep_every.unwrap_or(1)),
            ("workers", self.workers as u64),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, n)| *n == 0) {
            return Err(Error::config(format!("train.{key}"), "must be at least 1").into());
        }
        if !(self.batch > 0.0 && self.batch.is_finite()) {
            return Err(
                Error::config("train.batch", format!("{} is not above 0", self.batch)).into()
            );
        }
        if !(0.0..1.0).contains(&self.held_out) {
            let reason = format!("{} is not a share below 1", self.held_out);
            return Err(Error::config("train.held_out", reason).into());
        }
        if let Some(clip) = self.clip_norm.filter(|clip| !(*clip > 0.0)) {
            return Err(Error::config("train.clip_norm", format!("{clip} is not above 0")).into());
        }
        let save_every = self.save_every;
        if let Some(every) = self.keep_every.filter(|every| !every.is_multiple_of(save_every)) {
            let reason = format!("{every} is not a multiple of train.save_every = {save_every}");
            return Err(Error::config("train.keep_every", reason).into());
        }
        Ok(())
    }
}

/// What to do when a run collapses or diverges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Logs a warning.
    #[default]
    Warn,
    /// Halves the learning rate.
    LowerLr,
    /// Restores the last healthy checkpoint and resumes at half the learning rate.
    RollBack,
    /// Ends the run, and keeps its checkpoints.
    Stop,
}

impl OnFailure {
    /// Returns whether only a warning is logged.
    pub fn is_warn(&self) -> bool {
        *self == Self::Warn
    }
}
