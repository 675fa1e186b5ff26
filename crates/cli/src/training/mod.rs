//! The loop that pretraining and fine-tuning share: data in, steps, evaluations, checkpoints; and a clean
//! end whenever it comes.

pub mod feed;
mod saver;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use data2vec_core::loader::Plan;
use data2vec_core::{Checkpoints, Dataset, Loader, Position, Snapshot};

use crate::curve;
use crate::log::{Log, clock};
use crate::metrics::{Line, Pending, TrainLine};
use crate::page::Reporter;
use crate::recipe::TrainConfig;
use crate::report::{describe, note, out, tell};
use crate::run::RunFolder;
use crate::signals::Stop;
use feed::{Units, check_bad, loader_config};
use saver::Saver;

/// Steps in a row whose loss or gradient is not finite before the run gives up.
const MAX_SKIPPED: u32 = 10;

/// How often memory that lies fallow is given back.
const RELEASE_EVERY: Duration = Duration::from_secs(30);

/// What the loop trains.
pub trait Trainee {
    /// The batches it learns from.
    type Batch: Send + 'static;

    /// Completed optimizer steps.
    fn step(&self) -> u64;

    /// Takes the next one. `None`: loss or gradient was not finite, and nothing has changed.
    fn take_step(&mut self, batches: &[Self::Batch]) -> Result<Option<TrainLine>>;

    /// Before the first step: whether what is planned is possible.
    fn rehearse(&mut self, plan: &Plan, log: &Log) -> Result<()>;

    /// What it makes of examples that it never trains on; `None` if there are none.
    fn evaluate(&mut self) -> Result<Option<Line>>;

    /// Takes note of an evaluation, made now or, before the run was stopped, by an earlier process.
    fn heed(&mut self, line: &Line, now: bool) -> Result<()>;

    /// Copies all that is needed to go on.
    fn snapshot(&self) -> data2vec_core::Result<Snapshot>;

    /// Takes over what a [`snapshot`](Self::snapshot) has written to `dir` after `step` steps.
    fn load(&mut self, dir: &Path, step: u64) -> Result<()>;

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
    saver: Saver,
    log: Log,
    /// `None`: nobody wants the page.
    reporter: Option<Reporter>,
    /// Unusable examples that were met before training.
    bad_before: usize,
    pending: Pending,
}

impl<T: Trainee, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Takes over the newest undamaged checkpoint in `folder`, if there is any. `bad_before` examples are
    /// known to be unusable.
    pub fn resume(
        mut trainee: T,
        dataset: Arc<D>,
        folder: RunFolder,
        (train, seed, units): (&TrainConfig, u64, Units),
        bad_before: usize,
    ) -> Result<Self> {
        let checkpoints =
            Checkpoints::new(folder.join("checkpoints"), train.keep, train.keep_every)?;
        let newest = checkpoints.newest()?;
        for (path, reason) in &newest.damaged {
            note(format!("{} is damaged ({reason}); trying the one before it", path.display()));
        }
        let (mut next_batch, mut saved, mut pending) = (0, None, Pending::default());
        match newest.good {
            Some((position, path)) => {
                trainee.load(&path, position.step)?;
                next_batch = position.next_batch;
                pending = Pending::load(&path)?;
                saved = Some(position.step);
                tell!("going on from step {} ({})", position.step, path.display());
            }
            None if newest.damaged.is_empty() => {}
            None => note("no checkpoint is whole: starting from step 0"),
        }
        let (log, lines) = Log::open(&folder, (trainee.step(), train.steps), units.name)?;
        for line in lines.iter().filter(|line| line.is_evaluation()) {
            trainee.heed(line, false)?;
        }
        let train = train.clone();
        Ok(Self {
            trainee,
            train,
            seed,
            units,
            folder,
            dataset,
            next_batch,
            saved,
            saver: Saver::new(checkpoints),
            log,
            reporter: None,
            bad_before,
            pending,
        })
    }

    /// Whether the run writes a page about itself.
    pub fn reporting(mut self, wanted: bool) -> Self {
        self.reporter = wanted.then(|| Reporter::new(self.folder.path()));
        self
    }

    /// Trains to the end, or until somebody stops it.
    pub fn train(&mut self, stop: &Stop) -> Result<ExitCode> {
        let train = self.train.clone();
        if self.trainee.step() >= train.steps {
            tell!("this run is finished: {} steps", self.trainee.step());
            return self.finish(Duration::ZERO);
        }
        let mut config = loader_config(&train, self.seed, self.units);
        config.max_bad -= self.bad_before.min(config.max_bad);
        let mut loader = Loader::new(self.dataset.clone(), config, self.next_batch)?;
        if self.trainee.step() == 0 {
            self.trainee.rehearse(loader.plan(), &self.log)?;
            self.evaluate()?;
            self.report();
        }
        self.log.begin();
        let started = Instant::now();
        let (mut since, mut units, mut waited) = (Instant::now(), 0.0, Duration::ZERO);
        let (mut skipped, mut released) = (0, Instant::now());
        while self.trainee.step() < train.steps && stop.exit_code().is_none() {
            let mut batches = Vec::with_capacity(train.accumulate);
            let mut epoch = 0.0;
            while batches.len() < train.accumulate {
                let loaded = loader.next();
                self.meet_bad(&loader)?;
                let loaded = loaded?;
                self.next_batch = loaded.number + 1;
                units += loaded.size as f64 / self.units.size;
                epoch = self.next_batch as f64 / loader.batches_per_epoch() as f64;
                batches.push(loaded.batch);
            }
            let line = self.trainee.take_step(&batches)?;
            let step = self.trainee.step();
            match &line {
                Some(line) => {
                    skipped = 0;
                    self.pending.mean.add(line);
                }
                None => {
                    skipped += 1;
                    self.log.say(&format!("note: step {step} is not finite, nothing was changed"));
                    if skipped >= MAX_SKIPPED {
                        bail!(
                            "{MAX_SKIPPED} steps in a row were not finite; try a lower schedule.lr"
                        );
                    }
                }
            }
            self.log.step(step);
            self.saver.check()?;
            if released.elapsed() > RELEASE_EVERY {
                data2vec_torch_ext::release_freed_memory();
                released = Instant::now();
            }
            let last_step = step == train.steps;
            if (step.is_multiple_of(train.log_every) || last_step) && line.is_some() {
                let took = since.elapsed();
                let mut line = self.pending.mean.take();
                line.epoch = epoch;
                line.units_per_second = units / took.as_secs_f64();
                line.waiting = (loader.waited() - waited).as_secs_f64() / took.as_secs_f64();
                line.bad_examples = self.bad_before + self.pending.bad.len();
                (since, units, waited) = (Instant::now(), 0.0, loader.waited());
                self.log.line(&Line::Train(line))?;
            }
            if step.is_multiple_of(train.eval_every) || last_step {
                let before = Instant::now();
                self.evaluate()?;
                if !last_step && self.reporter.as_ref().is_some_and(Reporter::is_due) {
                    self.report();
                }
                since += before.elapsed(); // an evaluation is no training time
            }
            if step.is_multiple_of(train.save_every) || last_step {
                self.save()?;
            }
        }
        self.log.finish();
        let took = started.elapsed();
        if let Some(code) = stop.exit_code() {
            self.save()?;
            self.saver.wait()?;
            curve::draw(&self.folder.join("metrics.jsonl"), &self.folder.join("curve.svg"))?;
            self.report();
            tell!("stopped and saved at step {}; the same command goes on", self.trainee.step());
            return Ok(ExitCode::from(code));
        }
        let waiting = loader.waited().as_secs_f64() / took.as_secs_f64();
        tell!("waited for data {:.1} % of the time", 100.0 * waiting);
        self.saver.wait()?;
        self.finish(took)
    }

    /// Tells of unusable examples that are new, and ends the run if they are too many.
    fn meet_bad(&mut self, loader: &Loader<T::Batch>) -> Result<()> {
        for (name, reason) in loader.bad() {
            if self.pending.bad.insert(name) {
                self.log.say(&format!("note: skipped {reason}"));
                check_bad(&self.train, self.bad_before + self.pending.bad.len(), &reason)?;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<()> {
        let Some(line) = self.trainee.evaluate()? else { return Ok(()) };
        self.log.line(&line)?;
        self.trainee.heed(&line, true)
    }

    /// Writes the page, if it is wanted, and says where it is. That it cannot be written is no reason to end a run.
    fn report(&mut self) -> Option<PathBuf> {
        match self.reporter.as_mut()?.write() {
            Ok(path) => Some(path),
            Err(error) => {
                self.log.say(&format!("note: no report: {}", describe(&error)));
                None
            }
        }
    }

    fn save(&mut self) -> Result<()> {
        let step = self.trainee.step();
        if self.saved == Some(step) {
            return Ok(());
        }
        let position = Position { step, next_batch: self.next_batch };
        let copy = || {
            let mut snapshot = self.trainee.snapshot()?;
            self.pending.save(&mut snapshot)?;
            Ok(snapshot)
        };
        self.saver.save(position, copy, self.log.lines()?)?;
        self.saved = Some(step);
        Ok(())
    }

    /// Curve, what was learned, and where everything is.
    fn finish(&mut self, took: Duration) -> Result<ExitCode> {
        let curve = self.folder.join("curve.svg");
        curve::draw(&self.folder.join("metrics.jsonl"), &curve)?;
        let Results { what: [name, place], next } = self.trainee.export(&self.folder)?;
        let report = self.report();
        out!();
        if !took.is_zero() {
            out!("Trained in {}.", clock(took));
        }
        out!("  run      {}", self.folder.path().display());
        out!("  curve    {}", curve.display());
        if let Some(report) = report {
            out!("  report   {}", report.display());
        }
        out!("  {name:<8} {place}");
        out!();
        out!("Next:");
        next.iter().for_each(|command| out!("  {command}"));
        Ok(ExitCode::SUCCESS)
    }
}
