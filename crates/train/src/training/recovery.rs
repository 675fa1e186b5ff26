//! What is done about a run that does not go as it should. Each action is a line of `metrics.jsonl`, and these lines
//! are all that a run remembers of them: one that is stopped and goes on reads them again.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use data2vec_core::checkpoint::write_tensors;
use data2vec_core::{Dataset, Loaded};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::feed::Feed;
use super::{Run, Trainee};
use crate::doctor::{Symptom, Watch};
use crate::log::Log;
use crate::metrics::{Action, ActionLine, Line};
use crate::report::describe;

/// Steps in a row that were not finite before a run goes back.
const MAX_SKIPPED: u64 = 10;
/// What the learning rate is multiplied by when something has to change: the same steps at the same rate would
/// end in the same way.
const LOWER: f64 = 0.5;
/// A run that goes wrong at this share of its learning rate ends.
const LEAST: f64 = 0.125;
/// Steps whose batches are kept. More would tell the same, and fill the disk.
const MAX_KEPT: usize = 10;
/// Their folder, in that of a run.
const KEPT: &str = "bad_steps";

/// What is done when a run has collapsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTrouble {
    /// It is said, and no more.
    #[default]
    Warn,
    /// The learning rate is halved from there on.
    LowerLr,
    /// Training goes on from the last checkpoint before it, at half the learning rate.
    RollBack,
    /// The run ends. Its checkpoints stay.
    Stop,
}

impl OnTrouble {
    /// Whether nothing but words comes of it.
    pub fn is_warn(&self) -> bool {
        *self == Self::Warn
    }
}

/// What went wrong, and since when.
#[derive(Serialize, Deserialize)]
pub(super) struct Trouble {
    /// Completed steps when it had not begun yet.
    before: u64,
    reason: String,
}

/// How a run is looked after.
pub(super) struct Care {
    memory: Memory,
    /// Rank 0's.
    watch: Watch,
    /// What the last lines show and nothing has been done about.
    symptoms: Vec<Symptom>,
}

impl Care {
    /// Of a run of so many steps that has not begun.
    pub fn new(steps: u64) -> Self {
        Self { memory: Memory::default(), watch: Watch::new(steps), symptoms: Vec::new() }
    }

    /// A step was finite.
    pub fn taken(&mut self) {
        self.memory.skipped = 0;
    }
}

/// What a run remembers of trouble: what its lines tell, which rank 0 tells the others.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    /// Steps in a row that were not finite.
    skipped: u64,
    /// What the schedule's learning rates are multiplied by, if not by 1.
    lr_scale: Option<f64>,
    /// Where the last way back led, and from where.
    back: Option<(u64, u64)>,
}

impl Memory {
    /// Of a run that stands at `step`.
    fn of(lines: &[Line], step: u64) -> Self {
        let mut memory = Self::default();
        for line in lines {
            if let Line::Action(line) = line {
                memory.lr_scale = line.lr_scale.or(memory.lr_scale);
                memory.back = line.from.map(|from| (line.step, from)).or(memory.back);
            }
        }
        let skipped =
            |line: &&Line| matches!(line, Line::Action(ActionLine { action: Action::Skip, .. }));
        let mut next = step;
        for line in lines.iter().rev().filter(skipped) {
            if line.step() != next {
                break;
            }
            memory.skipped += 1;
            next = next.saturating_sub(1);
        }
        memory
    }
}

impl<T: Trainee, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Remembers what rank 0's `lines` tell.
    pub(super) fn take_care(&mut self, lines: &[Line]) -> Result<()> {
        let memory = Memory::of(lines, self.trainee.step());
        let memory = self.ranks.from_first(&serde_json::to_string(&memory)?)?;
        let memory: Memory = serde_json::from_str(&memory)?;
        self.trainee.scale_lr(memory.lr_scale.unwrap_or(1.0));
        self.care = Care { memory, ..Care::new(self.train.steps) };
        for line in lines {
            self.care.watch.see(line); // what was wrong then has been told
        }
        Ok(())
    }

    /// Keeps a line, shows it, and sees what is wrong by it.
    pub(super) fn tell(&mut self, line: Line) -> Result<()> {
        self.log.line(&line)?;
        if self.ranks.is_first() {
            self.care.symptoms.extend(self.care.watch.see(&line));
        }
        Ok(())
    }

    /// A step was not finite and has changed nothing. Its batches are kept.
    pub(super) fn skip(
        &mut self,
        feed: &Feed<T::Batch>,
        batches: &[(u64, Loaded<T::Batch>)],
    ) -> Result<()> {
        let step = self.trainee.step();
        self.care.memory.skipped += 1;
        let names = feed.examples(&*self.dataset, self.seed, batches);
        let names: Vec<String> = self.ranks.gather_texts(&names.join("\n"))?;
        let ranks = self.ranks.clone();
        ranks.first_alone(|| {
            let mut reason = "loss or gradient is not finite".to_owned();
            match self.keep(step, batches, &names.join("\n")) {
                Ok(Some(file)) => reason += &format!("; the batch is kept in {file}"),
                Ok(None) => {}
                Err(e) => reason += &format!("; the batch cannot be kept: {}", describe(&e)),
            }
            self.act(Action::Skip, &reason, None)
        })?;
        Ok(())
    }

    /// Leaves in the run's folder what this rank's batches of `step` hold, and the examples' names. `None`: enough
    /// is there.
    fn keep(
        &self,
        step: u64,
        batches: &[(u64, Loaded<T::Batch>)],
        names: &str,
    ) -> Result<Option<String>> {
        let dir = self.folder.join(KEPT);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let path = dir.join(format!("step-{step:08}.txt"));
        let files = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
        let kept = files.flatten().filter(|file| file.path().extension() == Some("txt".as_ref()));
        if !path.exists() && kept.count() >= MAX_KEPT {
            return Ok(None);
        }
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for (place, loaded) in batches {
            for (name, tensor) in T::tensors(&loaded.batch) {
                tensors.insert(format!("{place}.{name}"), tensor);
            }
        }
        write_tensors(&path.with_extension("safetensors"), &tensors)?;
        crate::run::write(&path, &format!("{names}\n"))?;
        Ok(Some(format!("{KEPT}/step-{step:08}.safetensors")))
    }

    /// Does what the recipe wants done about what the last lines show, on all ranks alike, where there were lines
    /// (`is_told`). Returns why the run has to go back, if it has to.
    pub(super) fn react(&mut self, is_told: bool) -> Result<Option<Trouble>> {
        let step = self.trainee.step();
        if self.care.memory.skipped >= MAX_SKIPPED {
            let reason = format!("{MAX_SKIPPED} steps in a row were not finite");
            return Ok(Some(Trouble { before: step - MAX_SKIPPED, reason }));
        }
        if !is_told {
            return Ok(None);
        }
        let grave = match self.ranks.is_first() {
            true => self.sort_symptoms()?,
            false => None,
        };
        let grave: Option<Trouble> =
            serde_json::from_str(&self.ranks.from_first(&serde_json::to_string(&grave)?)?)?;
        let Some(trouble) = grave else { return Ok(None) };
        match self.train.on_trouble {
            OnTrouble::Warn => Ok(None),
            OnTrouble::LowerLr => self.lower_lr(&trouble.reason).map(|()| None),
            OnTrouble::RollBack => Ok(Some(trouble)),
            OnTrouble::Stop => {
                self.act(Action::Stop, &trouble.reason, None)?;
                bail!(
                    "{} (train.on_trouble = \"stop\"); its checkpoints are whole: try a lower schedule.lr, and see `data2vec doctor {}`",
                    trouble.reason,
                    self.folder.path().display()
                )
            }
        }
    }

    /// Warns of all that is wrong but needs more than words. Returns that.
    fn sort_symptoms(&mut self) -> Result<Option<Trouble>> {
        let mut grave = None;
        for symptom in std::mem::take(&mut self.care.symptoms) {
            let is_grave = symptom.sign.is_grave();
            if !is_grave || self.train.on_trouble.is_warn() {
                self.act(Action::Warn, &symptom.to_string(), None)?;
            }
            if is_grave && grave.is_none() {
                // Training may have gone wrong at any step after the line before the first that shows it.
                let before = symptom.since.saturating_sub(self.train.log_every);
                grave = Some(Trouble { before, reason: symptom.to_string() });
            }
        }
        Ok(grave)
    }

    fn act(&mut self, action: Action, reason: &str, lr_scale: Option<f64>) -> Result<()> {
        let (step, reason) = (self.trainee.step(), reason.to_owned());
        self.log.line(&Line::Action(ActionLine { step, action, reason, lr_scale, from: None }))
    }

    /// The next lower share of the learning rate.
    fn lower(&self, reason: &str) -> Result<f64> {
        let now = self.care.memory.lr_scale.unwrap_or(1.0);
        if now <= LEAST {
            bail!(
                "{reason}, and that at {now} of the learning rate: giving up; try a lower schedule.lr, and see `data2vec doctor {}`",
                self.folder.path().display()
            );
        }
        Ok(now * LOWER)
    }

    fn lower_lr(&mut self, reason: &str) -> Result<()> {
        let scale = self.lower(reason)?;
        self.act(Action::LowerLr, &format!("{reason}; to {scale} of the schedule's"), Some(scale))?;
        self.care.memory.lr_scale = Some(scale);
        self.trainee.scale_lr(scale);
        Ok(())
    }

    /// Goes back to the last checkpoint before `trouble`, and on from there at a lower learning rate. Where the way
    /// back before did not lead past it, this one leads further back.
    pub(super) fn roll_back(&mut self, trouble: &Trouble) -> Result<()> {
        let (from, reason) = (self.trainee.step(), &trouble.reason);
        let scale = self.lower(reason)?;
        self.wait_for_saver()?;
        let further = self.care.memory.back.filter(|&(_, from)| trouble.before <= from);
        let further = further.map(|(step, _)| step.saturating_sub(1).min(trouble.before));
        let lasts: Vec<u64> = further.into_iter().chain([trouble.before]).collect();
        let newest = self.newest(&lasts)?;
        if self.ranks.is_first() && newest.is_none() {
            bail!(
                "{reason}, and no checkpoint of at most {} steps is there to go back to: try a lower schedule.lr, or a smaller train.save_every",
                trouble.before
            );
        }
        let silent = Log::silent((from, self.train.steps), self.units.name);
        let outlets = std::mem::replace(&mut self.log, silent).close();
        self.stand(newest, outlets)?;
        let step = self.trainee.step();
        if let Some(saver) = &self.saver {
            saver.checkpoints().remove_after(step)?;
        }
        let action = ActionLine {
            step,
            action: Action::RollBack,
            reason: format!("{reason}; to {scale} of the schedule's learning rate"),
            lr_scale: Some(scale),
            from: Some(from),
        };
        self.log.line(&Line::Action(action))?;
        (self.care.memory.lr_scale, self.care.memory.back) = (Some(scale), Some((step, from)));
        self.trainee.scale_lr(scale);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_what_has_been_done() {
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
        let Memory { skipped, lr_scale, back } = Memory::of(&lines, 8);
        assert_eq!((skipped, lr_scale, back), (2, Some(0.25), Some((4, 9))));
        assert_eq!(Memory::of(&lines, 9).skipped, 0, "step 9 was taken");
        lines.clear();
        let Memory { skipped, lr_scale, back } = Memory::of(&lines, 0);
        assert_eq!((skipped, lr_scale, back), (0, None, None));
    }
}
