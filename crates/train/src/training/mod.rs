//! The loop that pretraining and fine-tuning share: batches, steps, evaluations, checkpoints, and a
//! clean end.

mod bad;
pub mod feed;
mod phases;
mod recovery;
mod saver;
mod start;
mod sync;
mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use data2vec_core::{Checkpoints, Dataset, Position, Units, World};
use data2vec_torch_ext::dist::ProcessGroup;
use data2vec_torch_ext::drain_timings;
use tracing::{info, warn};

use crate::curve;
use crate::log::{Log, Observer, Sinks};
use crate::messages::describe;
use crate::metrics::{Line, Pending};
use crate::recipe::TrainConfig;
use crate::record::End;
use crate::report::{self, Reporter};
use crate::run_dir::RunDir;
use crate::stop::Stop;
use bad::BadExamples;
use feed::{Feed, loader_config};
use phases::Phases;
use recovery::{Failure, Recovery};
use saver::Saver;
pub use task::{Exported, TrainTask};

/// How often memory that LibTorch keeps unused is returned to the system.
const RELEASE_EVERY: Duration = Duration::from_secs(30);

/// Options of every run, whatever it trains.
pub struct RunOptions {
    /// The run directory.
    pub out: PathBuf,
    /// `cpu`, `cuda` or `cuda:N`; `None`: a GPU if there is one.
    pub device: Option<String>,
    /// Refuses to start a new run.
    pub resume: bool,
    /// Resumes on other data than the run was started with; refused otherwise.
    pub other_data: bool,
    /// Writes `report.html`.
    pub report: bool,
    /// Seconds after which another rank that does not answer counts as lost.
    pub dist_timeout: u64,
    /// Asks the run to stop and save.
    pub stop: Stop,
    /// Watch the run; called on rank 0 only.
    pub observers: Vec<Box<dyn Observer>>,
}

impl RunOptions {
    /// Options of a run in the directory `out`: any device, with a report, without observers.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self {
            out: out.into(),
            device: None,
            resume: false,
            other_data: false,
            report: true,
            dist_timeout: crate::process_group::TIMEOUT,
            stop: Stop::default(),
            observers: Vec::new(),
        }
    }
}

/// How a run ended in this process.
#[derive(Debug)]
pub enum Outcome {
    /// All steps are taken. Ranks other than 0 have no summary.
    Finished(Option<Summary>),
    /// It was asked to stop, and has saved.
    Stopped {
        /// 128 + number of the signal.
        exit_code: u8,
        /// Completed steps.
        step: u64,
    },
    /// Nothing was trained; lines say how much memory a step needs.
    Planned(Vec<String>),
}

/// What a finished run leaves.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Time of training in this process; zero if the run was finished before.
    pub took: Duration,
    /// The run directory.
    pub run: PathBuf,
    /// `curve.svg`.
    pub curve: PathBuf,
    /// `report.html`, if it was written.
    pub report: Option<PathBuf>,
    /// What was exported.
    pub exported: Exported,
}

/// A run: its task, its data, and where it stands.
pub struct Run<T: TrainTask, D> {
    task: T,
    train: TrainConfig,
    seed: u64,
    units: Units,
    dir: RunDir,
    dataset: Arc<D>,
    /// Index of the next batch of data.
    next_batch: u64,
    /// Step of the newest checkpoint, which may still be written.
    saved: Option<u64>,
    /// `None` on ranks that write no checkpoints.
    saver: Option<Saver>,
    log: Log,
    /// `None` without a report.
    reporter: Option<Reporter>,
    world: World,
    /// Unusable examples found before training.
    bad_before: usize,
    /// `None` on ranks that do not list them.
    bad_list: Option<BadExamples>,
    pending: Pending,
    recovery: Recovery,
}

/// Why the loop ended.
enum LoopExit {
    /// All steps are taken.
    Finished,
    /// A stop was requested; the exit code.
    Stopped(u8),
    /// Training failed and resumes from an earlier checkpoint.
    RollBack(Failure),
}

impl<T: TrainTask, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Restores the newest undamaged checkpoint in `dir`, if there is one. The examples `bad` are
    /// known to be unusable.
    ///
    /// # Errors
    /// If the checkpoint does not fit the recipe, or a file cannot be read or written.
    pub fn resume(
        task: T,
        dataset: Arc<D>,
        dir: RunDir,
        (train, seed, units): (&TrainConfig, u64, Units),
        bad: &[String],
        world: World,
        sinks: Option<Sinks>,
    ) -> Result<Self> {
        let (mut saver, mut bad_list) = (None, None);
        if world.is_rank0() {
            let checkpoints = dir.join("checkpoints");
            saver = Some(Saver::new(Checkpoints::new(checkpoints, train.keep, train.keep_every)?));
            let mut list = BadExamples::open(&dir)?;
            list.add(bad)?;
            bad_list = Some(list);
        }
        let log = Log::silent((task.step(), train.steps));
        let mut run = Self {
            task,
            train: train.clone(),
            seed,
            units,
            dir,
            dataset,
            next_batch: 0,
            saved: None,
            saver,
            log,
            reporter: None,
            world,
            bad_before: bad.len(),
            bad_list,
            pending: Pending::default(),
            recovery: Recovery::new(train.steps),
        };
        let newest = run.newest(&[u64::MAX])?;
        run.restore(newest, sinks)?;
        Ok(run)
    }

    /// Turns the report on rank 0 on or off.
    pub fn reporting(mut self, on: bool) -> Self {
        let on = on && self.world.is_rank0();
        self.reporter = on.then(|| Reporter::new(self.dir.path()));
        self
    }

    /// Trains until all steps are taken or a stop is requested.
    ///
    /// # Errors
    /// If a step, an evaluation or a checkpoint fails, or recovery gives up.
    pub fn train(&mut self, stop: &Stop) -> Result<Outcome> {
        if self.task.step() >= self.train.steps {
            info!("this run is finished: {} steps", self.task.step());
            return self.finish(Duration::ZERO);
        }
        let (started, exchanged) = (Instant::now(), self.exchange_time());
        let mut waited = Duration::ZERO;
        let stopped = loop {
            match self.run_until(stop, &mut waited)? {
                LoopExit::Finished => break None,
                LoopExit::Stopped(code) => break Some(code),
                LoopExit::RollBack(failure) => self.roll_back(&failure)?,
            }
        };
        let took = started.elapsed();
        if let Some(exit_code) = stopped {
            self.save()?;
            self.wait_for_saver()?;
            self.world.on_rank0(|| self.draw())?;
            self.log.end(End::Stopped);
            self.report(false);
            let step = self.task.step();
            info!("stopped and saved at step {step}; the same command resumes");
            return Ok(Outcome::Stopped { exit_code, step });
        }
        let share = |time: Duration| 100.0 * time.as_secs_f64() / took.as_secs_f64();
        info!("waited for data {:.1} % of the time", share(waited));
        if self.world.size() > 1 {
            let exchanged = self.exchange_time().saturating_sub(exchanged);
            info!("exchanged data with other ranks {:.1} % of the time", share(exchanged));
        }
        self.wait_for_saver()?;
        self.finish(took)
    }

    /// Runs the loop until it ends for some reason. Adds the time it waited for data.
    fn run_until(&mut self, stop: &Stop, waited_in_all: &mut Duration) -> Result<LoopExit> {
        let train = self.train.clone();
        let mut config = loader_config(&train, self.seed, self.units);
        config.max_bad -= self.bad_before.min(config.max_bad);
        let (dataset, next) = (self.dataset.clone(), self.next_batch);
        let mut feed = Feed::new(dataset, config, next, train.accumulate, &self.world)?;
        if self.task.step() == 0 {
            self.task.dry_run(feed.loader.plan())?;
            self.dir.keep();
            self.evaluate()?;
            self.report(true);
        }
        self.log.begin();
        let (mut since, mut units, mut waited) = (Instant::now(), 0.0, Duration::ZERO);
        let mut phases = Phases::default();
        let mut released = Instant::now();
        let mut exit = LoopExit::Finished;
        while self.task.step() < train.steps {
            let batches = feed.step(self.next_batch);
            let new_bad = self.new_bad(&feed.loader)?;
            let batches = batches?;
            let size: u64 = batches.iter().map(|(_, loaded)| loaded.size).sum();
            let all = self.sync(stop, batches.len(), size, &new_bad)?;
            if let Some(code) = all.stop {
                exit = LoopExit::Stopped(code);
                break;
            }
            self.next_batch += train.accumulate as u64;
            if all.batches == 0 {
                continue; // no usable example in any of them
            }
            units += all.size / self.units.size;
            let epoch = self.next_batch as f64 / feed.loader.batches_per_epoch() as f64;
            let indexed: Vec<_> = batches.iter().map(|(index, l)| (*index, &l.batch)).collect();
            drop(drain_timings()); // timings of evaluations
            let line = self.task.take_step(&indexed)?;
            phases.add(drain_timings());
            let step = self.task.step();
            match &line {
                Some(line) => {
                    self.recovery.step_taken();
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
                self.log_line(Line::Train(line))?;
                self.log_health(&indexed)?;
            }
            let is_evaluated = step.is_multiple_of(train.eval_every) || last_step;
            if is_evaluated {
                let before = Instant::now();
                self.evaluate()?;
                if !last_step && self.reporter.as_ref().is_some_and(Reporter::is_due) {
                    self.report(true);
                }
                since += before.elapsed(); // evaluations are not training time
            }
            if let Some(failure) = self.react(is_logged || is_evaluated)? {
                exit = LoopExit::RollBack(failure);
                break;
            }
            if step.is_multiple_of(train.save_every) || last_step {
                self.save()?;
            }
        }
        *waited_in_all += feed.loader.waited();
        Ok(exit)
    }

    /// Time spent in exchanges with other ranks so far, including waiting for them.
    fn exchange_time(&self) -> Duration {
        self.world.group().map(ProcessGroup::collective_time).unwrap_or_default()
    }

    fn log_health(&mut self, batches: &[(u64, &T::Batch)]) -> Result<()> {
        let world = self.world.clone();
        world.on_rank0(|| match self.task.health(batches)? {
            Some(line) => self.log_line(line),
            None => Ok(()),
        })?;
        Ok(())
    }

    fn evaluate(&mut self) -> Result<()> {
        let world = self.world.clone();
        world.on_rank0(|| {
            for line in self.task.evaluate()? {
                self.task.on_evaluation(&line, true)?;
                self.log_line(line)?;
            }
            anyhow::Ok(())
        })?;
        Ok(())
    }

    fn draw(&self) -> Result<()> {
        curve::draw(&self.dir.join("metrics.jsonl"), &self.dir.join("curve.svg"))
    }

    /// Writes the report, with new examples if `refresh`. A report that cannot be written does not
    /// end a run.
    fn report(&mut self, refresh: bool) {
        let Some(reporter) = &mut self.reporter else { return };
        let preview = || if refresh { self.task.preview() } else { Ok(None) };
        for error in reporter.write(preview) {
            warn!("the report is incomplete: {}", describe(&error));
        }
    }

    /// Waits until no checkpoint is being written.
    fn wait_for_saver(&mut self) -> Result<()> {
        self.world.on_rank0(|| self.saver.as_mut().map_or(Ok(()), Saver::wait))?;
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let step = self.task.step();
        if self.saved == Some(step) {
            return Ok(());
        }
        // Other ranks may hold moments that rank 0 lacks: all copy at once.
        self.wait_for_saver()?;
        let position = Position { step, next_batch: self.next_batch };
        let copy = || {
            let mut snapshot = self.task.snapshot()?;
            self.pending.save(&mut snapshot)?;
            Ok(snapshot)
        };
        match &mut self.saver {
            Some(saver) => saver.save(position, copy, self.log.lines()?)?,
            None => drop(self.task.snapshot()?),
        }
        self.saved = Some(step);
        self.log.saved();
        Ok(())
    }

    /// Draws the curve, exports what was learned, and ends the run.
    fn finish(&mut self, took: Duration) -> Result<Outcome> {
        let world = self.world.clone();
        let summary = world.on_rank0(|| self.export(took))?;
        Ok(Outcome::Finished(summary))
    }

    fn export(&mut self, took: Duration) -> Result<Summary> {
        self.draw()?;
        let exported = self.task.export(&self.dir)?;
        self.log.end(End::Finished);
        self.report(true);
        Ok(Summary {
            took,
            run: self.dir.path().to_owned(),
            curve: self.dir.join("curve.svg"),
            report: self.reporter.as_ref().map(|_| self.dir.join(report::FILE)),
            exported,
        })
    }
}
