//! Recovery of a run that collapses or diverges. Each action is a line of `metrics.jsonl`. These
//! lines are the only state of recovery, so a run that was killed resumes in the same way.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use data2vec_core::io::checkpoint::write_tensors;
use data2vec_core::{Dataset, Loaded};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::feed::Feed;
use super::{Run, TrainTask};
use crate::doctor::{Issue, Watch};
use crate::log::Log;
use crate::messages::describe;
use crate::metrics::{Action, ActionLine, Line};
use crate::recipe::OnFailure;

/// Number of consecutive non-finite steps after which a run rolls back.
const MAX_SKIPPED: u64 = 10;
/// Factor of the learning rate at each recovery: the same steps at the same rate would fail again.
const LR_FACTOR: f64 = 0.5;
/// A run that fails at this share of its learning rate ends.
const MIN_LR_SCALE: f64 = 0.125;
/// Maximum number of steps whose batches are saved.
const MAX_SAVED: usize = 10;
/// Their directory in the run directory.
const BAD_STEPS: &str = "bad_steps";

/// A failure that requires an action.
#[derive(Serialize, Deserialize)]
pub(super) struct Failure {
    /// Last step that was healthy for sure.
    before: u64,
    /// The failed check and its evidence.
    reason: String,
}

/// State of recovery.
pub(super) struct Recovery {
    state: RecoveryState,
    /// Used on rank 0 only.
    watch: Watch,
    /// New issues, not acted on yet.
    issues: Vec<Issue>,
}

impl Recovery {
    /// Starts recovery of a run of `steps` steps.
    pub fn new(steps: u64) -> Self {
        Self { state: RecoveryState::default(), watch: Watch::new(steps), issues: Vec::new() }
    }

    /// Called after a finite step.
    pub fn step_taken(&mut self) {
        self.state.skipped = 0;
    }
}

/// What recovery knows of earlier actions; rank 0 broadcasts it.
#[derive(Default, Serialize, Deserialize)]
struct RecoveryState {
    /// Number of consecutive non-finite steps.
    skipped: u64,
    /// Factor of the schedule's learning rates; `None`: 1.
    lr_scale: Option<f64>,
    /// The last roll-back: restored step, and step before it.
    roll_back: Option<(u64, u64)>,
}

impl RecoveryState {
    /// Replays the actions in `lines` of a run that resumes at `step`.
    fn replay(lines: &[Line], step: u64) -> Self {
        let mut state = Self::default();
        for line in lines {
            if let Line::Action(line) = line {
                state.lr_scale = line.lr_scale.or(state.lr_scale);
                state.roll_back = line.from.map(|from| (line.step, from)).or(state.roll_back);
            }
        }
        let skipped =
            |line: &&Line| matches!(line, Line::Action(ActionLine { action: Action::Skip, .. }));
        let mut next = step;
        for line in lines.iter().rev().filter(skipped) {
            if line.step() != next {
                break;
            }
            state.skipped += 1;
            next = next.saturating_sub(1);
        }
        state
    }
}

impl<T: TrainTask, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Restores the state of recovery from rank 0's `lines`.
    pub(super) fn restore_recovery(&mut self, lines: &[Line]) -> Result<()> {
        let state = RecoveryState::replay(lines, self.task.step());
        let state = self.world.broadcast_str(&serde_json::to_string(&state)?)?;
        let state: RecoveryState = serde_json::from_str(&state)?;
        self.task.scale_lr(state.lr_scale.unwrap_or(1.0));
        self.recovery = Recovery { state, ..Recovery::new(self.train.steps) };
        for line in lines {
            self.recovery.watch.update(line); // old issues were acted on
        }
        Ok(())
    }

    /// Logs a line and checks it.
    pub(super) fn log_line(&mut self, line: Line) -> Result<()> {
        self.log.line(&line)?;
        if self.world.is_rank0() {
            self.recovery.issues.extend(self.recovery.watch.update(&line));
        }
        Ok(())
    }

    /// Logs a step that was skipped because it was not finite, and saves its batches.
    pub(super) fn skip(
        &mut self,
        feed: &Feed<T::Batch>,
        batches: &[(u64, Loaded<T::Batch>)],
    ) -> Result<()> {
        let step = self.task.step();
        self.recovery.state.skipped += 1;
        let names = feed.examples(&*self.dataset, self.seed, batches);
        let names: Vec<String> = self.world.gather_strings(&names.join("\n"))?;
        let world = self.world.clone();
        world.on_rank0(|| {
            let mut reason = "loss or gradient is not finite".to_owned();
            match self.save_bad_step(step, batches, &names.join("\n")) {
                Ok(Some(file)) => reason += &format!("; its batch was saved to {file}"),
                Ok(None) => {}
                Err(e) => reason += &format!("; its batch could not be saved: {}", describe(&e)),
            }
            self.act(Action::Skip, &reason, None)
        })?;
        Ok(())
    }

    /// Saves this rank's batches of `step` and the names of the examples. Returns the file, or
    /// `None` if enough steps are saved.
    fn save_bad_step(
        &self,
        step: u64,
        batches: &[(u64, Loaded<T::Batch>)],
        names: &str,
    ) -> Result<Option<String>> {
        let dir = self.dir.join(BAD_STEPS);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let path = dir.join(format!("step-{step:08}.txt"));
        let files = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
        let saved = files.flatten().filter(|file| file.path().extension() == Some("txt".as_ref()));
        if !path.exists() && saved.count() >= MAX_SAVED {
            return Ok(None);
        }
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for (index, loaded) in batches {
            for (name, tensor) in T::tensors(&loaded.batch) {
                tensors.insert(format!("{index}.{name}"), tensor);
            }
        }
        write_tensors(&path.with_extension("safetensors"), &tensors)?;
        crate::run_dir::write(&path, &format!("{names}\n"))?;
        Ok(Some(format!("{BAD_STEPS}/step-{step:08}.safetensors")))
    }

    /// Acts on new issues as `train.on_failure` says, on all ranks alike. Issues are only checked
    /// if there were new lines (`has_lines`). Returns the failure if the run must roll back.
    pub(super) fn react(&mut self, has_lines: bool) -> Result<Option<Failure>> {
        let step = self.task.step();
        if self.recovery.state.skipped >= MAX_SKIPPED {
            let reason =
                format!("loss or gradient was not finite in {MAX_SKIPPED} consecutive steps");
            return Ok(Some(Failure { before: step - MAX_SKIPPED, reason }));
        }
        if !has_lines {
            return Ok(None);
        }
        let severe = match self.world.is_rank0() {
            true => self.collect_issues()?,
            false => None,
        };
        let severe: Option<Failure> =
            serde_json::from_str(&self.world.broadcast_str(&serde_json::to_string(&severe)?)?)?;
        let Some(failure) = severe else { return Ok(None) };
        match self.train.on_failure {
            OnFailure::Warn => Ok(None),
            OnFailure::LowerLr => self.lower_lr(&failure.reason).map(|()| None),
            OnFailure::RollBack => Ok(Some(failure)),
            OnFailure::Stop => {
                self.act(Action::Stop, &failure.reason, None)?;
                bail!(
                    "{} (train.on_failure = \"stop\"); checkpoints are intact: lower schedule.lr, and see `data2vec doctor {}`",
                    failure.reason,
                    self.dir.path().display()
                )
            }
        }
    }

    /// Warns of new issues, and returns the first severe one as a failure.
    fn collect_issues(&mut self) -> Result<Option<Failure>> {
        let mut severe = None;
        for issue in std::mem::take(&mut self.recovery.issues) {
            let is_severe = issue.check.is_severe();
            if !is_severe || self.train.on_failure.is_warn() {
                self.act(Action::Warn, &issue.to_string(), None)?;
            }
            if is_severe && severe.is_none() {
                // Training may have failed at any step since the line before the first bad one.
                let before = issue.since.saturating_sub(self.train.log_every);
                severe = Some(Failure { before, reason: issue.to_string() });
            }
        }
        Ok(severe)
    }

    fn act(&mut self, action: Action, reason: &str, lr_scale: Option<f64>) -> Result<()> {
        let (step, reason) = (self.task.step(), reason.to_owned());
        self.log.line(&Line::Action(ActionLine { step, action, reason, lr_scale, from: None }))
    }

    /// Returns the next lower factor of the learning rate.
    ///
    /// # Errors
    /// If the factor is at its minimum already.
    fn next_lr_scale(&self, reason: &str) -> Result<f64> {
        let now = self.recovery.state.lr_scale.unwrap_or(1.0);
        if now <= MIN_LR_SCALE {
            bail!(
                "{reason}, even at {now} of the learning rate; lower schedule.lr, and see `data2vec doctor {}`",
                self.dir.path().display()
            );
        }
        Ok(now * LR_FACTOR)
    }

    fn lower_lr(&mut self, reason: &str) -> Result<()> {
        let scale = self.next_lr_scale(reason)?;
        self.act(Action::LowerLr, &format!("{reason}; new factor {scale}"), Some(scale))?;
        self.recovery.state.lr_scale = Some(scale);
        self.task.scale_lr(scale);
        Ok(())
    }

    /// Restores the last checkpoint before `failure` and lowers the learning rate. If the failure
    /// recurs before the step of the previous roll-back, restores an earlier checkpoint than that
    /// did.
    pub(super) fn roll_back(&mut self, failure: &Failure) -> Result<()> {
        let (from, reason) = (self.task.step(), &failure.reason);
        let scale = self.next_lr_scale(reason)?;
        self.wait_for_saver()?;
        let further = self.recovery.state.roll_back.filter(|&(_, from)| failure.before <= from);
        let further = further.map(|(step, _)| step.saturating_sub(1).min(failure.before));
        let lasts: Vec<u64> = further.into_iter().chain([failure.before]).collect();
        let newest = self.newest(&lasts)?;
        if self.world.is_rank0() && newest.is_none() {
            bail!(
                "{reason}; there is no checkpoint of at most {} steps to roll back to: lower schedule.lr, or save more often (train.save_every)",
                failure.before
            );
        }
        let silent = Log::silent((from, self.train.steps));
        let sinks = std::mem::replace(&mut self.log, silent).close();
        self.restore(newest, sinks)?;
        let step = self.task.step();
        if let Some(saver) = &self.saver {
            saver.checkpoints().remove_after(step)?;
        }
        let action = ActionLine {
            step,
            action: Action::RollBack,
            reason: format!("{reason}; new factor of the learning rate {scale}"),
            lr_scale: Some(scale),
            from: Some(from),
        };
        self.log.line(&Line::Action(action))?;
        (self.recovery.state.lr_scale, self.recovery.state.roll_back) =
            (Some(scale), Some((step, from)));
        self.task.scale_lr(scale);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_restores_state_from_lines() {
        let line = |step, action, lr_scale, from| {
            let reason = String::new();
            Line::Action(ActionLine { step, action, reason, lr_scale, from })
        };
        let skip = |step| line(step, Action::Skip, None, None);
        let mut lines = vec![
            skip(3),
            line(4, Action::LowerLr, Some(0.5), None),
            line(4, Action::RollBack, Some(0.25), Some(9)),
            line(5, Action::Warn, None, None),
            skip(7),
            skip(8),
        ];
        let RecoveryState { skipped, lr_scale, roll_back } = RecoveryState::replay(&lines, 8);
        assert_eq!((skipped, lr_scale, roll_back), (2, Some(0.25), Some((4, 9))));
        assert_eq!(RecoveryState::replay(&lines, 9).skipped, 0, "step 9 was finite");
        lines.clear();
        let RecoveryState { skipped, lr_scale, roll_back } = RecoveryState::replay(&lines, 0);
        assert_eq!((skipped, lr_scale, roll_back), (0, None, None));
    }
}
