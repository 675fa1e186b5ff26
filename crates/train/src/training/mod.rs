//! The loop that pretraining and fine-tuning share: data in, steps, evaluations, checkpoints; and a clean
//! end whenever it comes.

mod agree;
mod bad;
mod care;
mod conduct;
pub mod feed;
mod phases;
mod saver;
mod start;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use data2vec_core::loader::Plan;
use data2vec_core::{Checkpoints, Dataset, Position, Ranks, Snapshot};
use data2vec_torch_ext::dist::ProcessGroup;
use data2vec_torch_ext::take_spent;
use tch::{Device, Tensor};

use crate::curve;
use crate::log::{Log, Outlets, clock};
use crate::metrics::{Line, Pending, TrainLine};
use crate::page::{self, Exhibits, Reporter};
use crate::recipe::TrainConfig;
use crate::record::End;
use crate::report::{describe, out, tell};
use crate::run::RunFolder;
use crate::signals::Stop;
use bad::BadExamples;
pub use care::OnTrouble;
use care::{Care, Trouble};
pub use conduct::{Conduct, Opening};
use feed::{Feed, Units, loader_config};
use phases::Phases;
use saver::Saver;

/// How often memory that lies fallow is given back.
const RELEASE_EVERY: Duration = Duration::from_secs(30);

/// What the loop trains.
pub trait Trainee {
    /// The batches it learns from.
    type Batch: Send + 'static;

    /// Completed optimizer steps.
    fn step(&self) -> u64;

    /// Where it computes.
    fn device(&self) -> Device;

    /// Takes the next one, on this process's batches and their places among those of the step. `None`: loss
    /// or gradient was not finite, and nothing has changed.
    fn take_step(&mut self, batches: &[(u64, &Self::Batch)]) -> Result<Option<TrainLine>>;

    /// Multiplies the schedule's learning rates by this from now on.
    fn scale_lr(&mut self, scale: f64);

    /// What a batch holds, by name.
    fn tensors(batch: &Self::Batch) -> Vec<(&'static str, Tensor)>;

    /// Before the first step: whether what is planned is possible.
    fn rehearse(&mut self, plan: &Plan, log: &Log) -> Result<()>;

    /// What its insides look like on some of the batches of the last step; `None`: nothing to see.
    fn examine(&self, _batches: &[(u64, &Self::Batch)]) -> Result<Option<Line>> {
        Ok(None)
    }

    /// What it makes of examples that it never trains on; nothing if there are none.
    fn evaluate(&mut self) -> Result<Vec<Line>>;

    /// Takes note of an evaluation, made now or, before the run was stopped, by an earlier process.
    fn heed(&mut self, line: &Line, now: bool) -> Result<()>;

    /// Copies all that is needed to go on.
    fn snapshot(&self) -> data2vec_core::Result<Snapshot>;

    /// Takes over what a [`snapshot`](Self::snapshot) has written to `dir` after `step` steps.
    fn load(&mut self, dir: &Path, step: u64) -> Result<()>;

    /// What the report shows of examples; `None`: nothing.
    fn exhibit(&self) -> Result<Option<Exhibits>>;

    /// Leaves in the run's folder what users want of it. Returns what it is called, where it is, and
    /// what can be done with it.
    fn export(&mut self, folder: &RunFolder) -> Result<Results>;
}

/// What a finished run leaves.
pub struct Results {
    /// Name and place.
    pub what: [String; 2],
    /// Commands to go on with.
    pub next: Vec<String>,
}

/// A run: who trains, on what, and what has come of it.
pub struct Run<T: Trainee, D> {
    trainee: T,
    train: TrainConfig,
    seed: u64,
    units: Units,
    folder: RunFolder,
    dataset: Arc<D>,
    /// Number of the next batch of data.
    next_batch: u64,
    /// Step of the newest checkpoint, which may still be written.
    saved: Option<u64>,
    /// `None`: another process writes checkpoints.
    saver: Option<Saver>,
    log: Log,
    /// `None`: nobody wants the page.
    reporter: Option<Reporter>,
    ranks: Ranks,
    /// Unusable examples that were met before training.
    bad_before: usize,
    /// `None`: another process lists them.
    bad_list: Option<BadExamples>,
    pending: Pending,
    care: Care,
}

/// How a stretch of training ended.
enum Way {
    /// All steps are done.
    Finished,
    /// Somebody wants it to end, with this exit code.
    Stopped(u8),
    /// It went wrong, and goes on from an earlier checkpoint.
    Back(Trouble),
}

impl<T: Trainee, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Takes over the newest undamaged checkpoint in `folder`, if there is any. The examples `bad` are
    /// known to be unusable.
    pub fn resume(
        trainee: T,
        dataset: Arc<D>,
        folder: RunFolder,
        (train, seed, units): (&TrainConfig, u64, Units),
        bad: &[String],
        ranks: Ranks,
        outlets: Option<Outlets>,
    ) -> Result<Self> {
        let checkpoints = match ranks.is_first() {
            true => {
                Some(Checkpoints::new(folder.join("checkpoints"), train.keep, train.keep_every)?)
            }
            false => None,
        };
        let mut bad_list = match ranks.is_first() {
            true => Some(BadExamples::of(&folder)?),
            false => None,
        };
        bad_list.as_mut().map_or(Ok(()), |list| list.add(bad))?;
        let log = Log::silent((trainee.step(), train.steps), units.name);
        let mut run = Self {
            trainee,
            train: train.clone(),
            seed,
            units,
            folder,
            dataset,
            next_batch: 0,
            saved: None,
            saver: checkpoints.map(Saver::new),
            log,
            reporter: None,
            ranks,
            bad_before: bad.len(),
            bad_list,
            pending: Pending::default(),
            care: Care::new(train.steps),
        };
        let newest = run.newest(&[u64::MAX])?;
        run.stand(newest, outlets)?;
        Ok(run)
    }

    /// Whether the run writes a page about itself.
    pub fn reporting(mut self, wanted: bool) -> Self {
        self.reporter = wanted.then(|| Reporter::new(self.folder.path()));
        self
    }

    /// Trains to the end, or until somebody stops it.
    pub fn train(&mut self, stop: &Stop) -> Result<ExitCode> {
        if self.trainee.step() >= self.train.steps {
            tell!("this run is finished: {} steps", self.trainee.step());
            return self.finish(Duration::ZERO);
        }
        let (started, spent) = (Instant::now(), self.spent());
        let mut waited = Duration::ZERO;
        let stopped = loop {
            match self.stretch(stop, &mut waited)? {
                Way::Finished => break None,
                Way::Stopped(code) => break Some(code),
                Way::Back(trouble) => self.roll_back(&trouble)?,
            }
        };
        let took = started.elapsed();
        if let Some(code) = stopped {
            self.save()?;
            self.wait_for_saver()?;
            self.ranks.first_alone(|| self.draw())?;
            self.log.end(End::Stopped);
            self.report(false);
            tell!("stopped and saved at step {}; the same command goes on", self.trainee.step());
            return Ok(ExitCode::from(code));
        }
        let share = |time: Duration| 100.0 * time.as_secs_f64() / took.as_secs_f64();
        tell!("waited for data {:.1} % of the time", share(waited));
        if self.ranks.count() > 1 {
            let spent = self.spent().saturating_sub(spent);
            tell!("exchanged with the other processes {:.1} % of the time", share(spent));
        }
        self.wait_for_saver()?;
        self.finish(took)
    }

    /// Trains from where the run stands until something ends that. Adds the time for which it waited for data.
    fn stretch(&mut self, stop: &Stop, waited_in_all: &mut Duration) -> Result<Way> {
        let train = self.train.clone();
        let mut config = loader_config(&train, self.seed, self.units);
        config.max_bad -= self.bad_before.min(config.max_bad);
        let (dataset, next) = (self.dataset.clone(), self.next_batch);
        let mut feed = Feed::new(dataset, config, next, train.accumulate, &self.ranks)?;
        if self.trainee.step() == 0 {
            self.trainee.rehearse(feed.loader.plan(), &self.log)?;
            self.evaluate()?;
            self.report(true);
        }
        self.log.begin();
        let (mut since, mut units, mut waited) = (Instant::now(), 0.0, Duration::ZERO);
        let mut phases = Phases::default();
        let mut released = Instant::now();
        let mut way = Way::Finished;
        while self.trainee.step() < train.steps {
            let batches = feed.step(self.next_batch);
            let news = self.new_bad(&feed.loader)?;
            let batches = batches?;
            let size: u64 = batches.iter().map(|(_, loaded)| loaded.size).sum();
            let all = self.agree(stop, batches.len(), size, &news)?;
            if let Some(code) = all.stop {
                way = Way::Stopped(code);
                break;
            }
            self.next_batch += train.accumulate as u64;
            if all.batches == 0 {
                continue; // not one usable example in all of them
            }
            units += all.size / self.units.size;
            let epoch = self.next_batch as f64 / feed.loader.batches_per_epoch() as f64;
            let places: Vec<_> = batches.iter().map(|(place, l)| (*place, &l.batch)).collect();
            drop(take_spent()); // by what was looked at in between
            let line = self.trainee.take_step(&places)?;
            phases.add(take_spent());
            let step = self.trainee.step();
            match &line {
                Some(line) => {
                    self.care.taken();
                    self.pending.mean.add(line, train.clip_norm);
                }
                None => self.skip(&feed, &batches)?,
            }
            self.log.step(step);
            self.saver.as_mut().map_or(Ok(()), Saver::check)?;
            if released.elapsed() > RELEASE_EVERY {
                data2vec_torch_ext::release_freed_memory();
                released = Instant::now();
            }
            let last_step = step == train.steps;
            let is_logged = (step.is_multiple_of(train.log_every) || last_step) && line.is_some();
            if is_logged {
                let took = since.elapsed();
                let mut line = self.pending.mean.take();
                line.epoch = epoch;
                line.units_per_second = units / took.as_secs_f64();
                let now = feed.loader.waited();
                line.waiting = (now - waited).as_secs_f64() / took.as_secs_f64();
                line.phases = phases.take(now - waited);
                line.bad_examples = self.bad_before + self.pending.bad.len();
                (since, units, waited) = (Instant::now(), 0.0, now);
                self.tell(Line::Train(line))?;
                self.examine(&places)?;
            }
            let is_evaluated = step.is_multiple_of(train.eval_every) || last_step;
            if is_evaluated {
                let before = Instant::now();
                self.evaluate()?;
                if !last_step && self.reporter.as_ref().is_some_and(Reporter::is_due) {
                    self.report(true);
                }
                since += before.elapsed(); // an evaluation is no training time
            }
            if let Some(trouble) = self.react(is_logged || is_evaluated)? {
                way = Way::Back(trouble);
                break;
            }
            if step.is_multiple_of(train.save_every) || last_step {
                self.save()?;
            }
        }
        *waited_in_all += feed.loader.waited();
        Ok(way)
    }

    /// Time in exchanges with the other processes so far, waiting for them included.
    fn spent(&self) -> Duration {
        self.ranks.group().map(ProcessGroup::spent).unwrap_or_default()
    }

    fn examine(&mut self, batches: &[(u64, &T::Batch)]) -> Result<()> {
        let ranks = self.ranks.clone();
        ranks.first_alone(|| match self.trainee.examine(batches)? {
            Some(line) => self.tell(line),
            None => Ok(()),
        })?;
        Ok(())
    }

    fn evaluate(&mut self) -> Result<()> {
        let ranks = self.ranks.clone();
        ranks.first_alone(|| {
            for line in self.trainee.evaluate()? {
                self.trainee.heed(&line, true)?;
                self.tell(line)?;
            }
            anyhow::Ok(())
        })?;
        Ok(())
    }

    fn draw(&self) -> Result<()> {
        curve::draw(&self.folder.join("metrics.jsonl"), &self.folder.join("curve.svg"))
    }

    /// Writes the page, if it is wanted, and with new exhibits if there is time for them. That it cannot be written
    /// is no reason to end a run.
    fn report(&mut self, is_new: bool) {
        let Some(reporter) = &mut self.reporter else { return };
        let exhibit = || if is_new { self.trainee.exhibit() } else { Ok(None) };
        for error in reporter.write(exhibit) {
            self.log.say(&format!("note: the report lacks something: {}", describe(&error)));
        }
    }

    /// Waits until no checkpoint is being written.
    fn wait_for_saver(&mut self) -> Result<()> {
        self.ranks.first_alone(|| self.saver.as_mut().map_or(Ok(()), Saver::wait))?;
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let step = self.trainee.step();
        if self.saved == Some(step) {
            return Ok(());
        }
        // The others may have moments that rank 0 has not: all copy at once.
        self.wait_for_saver()?;
        let position = Position { step, next_batch: self.next_batch };
        let copy = || {
            let mut snapshot = self.trainee.snapshot()?;
            self.pending.save(&mut snapshot)?;
            Ok(snapshot)
        };
        match &mut self.saver {
            Some(saver) => saver.save(position, copy, self.log.lines()?)?,
            None => drop(self.trainee.snapshot()?),
        }
        self.saved = Some(step);
        self.log.saved();
        Ok(())
    }

    /// Curve, what was learned, and where everything is.
    fn finish(&mut self, took: Duration) -> Result<ExitCode> {
        let ranks = self.ranks.clone();
        ranks.first_alone(|| self.leave_results(took))?;
        Ok(ExitCode::SUCCESS)
    }

    fn leave_results(&mut self, took: Duration) -> Result<()> {
        self.draw()?;
        let curve = self.folder.join("curve.svg");
        let Results { what: [name, place], next } = self.trainee.export(&self.folder)?;
        self.log.end(End::Finished);
        self.report(true);
        out!();
        if !took.is_zero() {
            out!("Trained in {}.", clock(took));
        }
        out!("  run      {}", self.folder.path().display());
        out!("  curve    {}", curve.display());
        if self.reporter.is_some() {
            out!("  report   {}", self.folder.join(page::FILE).display());
        }
        out!("  {name:<8} {place}");
        out!();
        out!("Next:");
        next.iter().for_each(|command| out!("  {command}"));
        Ok(())
    }
}
