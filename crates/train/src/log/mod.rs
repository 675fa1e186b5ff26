//! Where a run's metrics go: `metrics.jsonl`, TensorBoard, the record of the run, and observers.

pub mod prometheus;
mod tensorboard;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use data2vec_core::Progress;
use data2vec_torch_ext::memory;
use tracing::{info, warn};

use crate::messages::describe;
use crate::metrics::{self, Line, Metrics};
use crate::record::{End, Record, Start};
use crate::run_dir::RunDir;
use tensorboard::Events;

/// Directory of the event files in a run directory.
const TENSORBOARD: &str = "tensorboard";

/// Watches a run: a terminal, a metrics server, a notebook. Only rank 0 calls observers.
///
/// # For implementors
/// Each method has a default that does nothing. They run on the training thread: return quickly.
pub trait Observer {
    /// Called when a run starts, resumes, or restarts from an earlier checkpoint.
    fn start(&mut self, _run: &RunInfo) {}

    /// Called when training begins, after the data were opened and the first evaluation was made.
    fn begin(&mut self) {}

    /// Called with the progress of long work outside of training steps, such as tokenizing.
    fn progress(&mut self, _progress: Progress) {}

    /// Called after each completed step.
    fn step(&mut self, _step: u64) {}

    /// Called for each line of `metrics.jsonl`.
    ///
    /// # Errors
    /// An error ends the run.
    fn line(&mut self, _line: &Line, _status: &Status) -> Result<()> {
        Ok(())
    }

    /// Called when a checkpoint was taken; it may still be written.
    fn saved(&mut self) {}

    /// Called when the run ends in this process, or before it restarts.
    fn end(&mut self) {}
}

/// What an observer knows of a run when it starts.
#[derive(Debug)]
pub struct RunInfo<'a> {
    /// The run directory.
    pub dir: &'a Path,
    /// Completed steps.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Unit of the data, as in "tokens".
    pub unit: &'static str,
    /// The process: versions, device, command.
    pub process: &'a Start,
    /// Lines of earlier processes, oldest first.
    pub lines: &'a [Line],
}

/// Where a run stands when a line is written.
#[derive(Debug)]
pub struct Status<'a> {
    /// Estimated time to the end of the run.
    pub left: Duration,
    /// Bytes of memory in use, if the system reports them.
    pub memory: Option<f64>,
    /// The last evaluation.
    pub evaluation: Option<&'a Line>,
}

/// Where the rank that writes sends metrics.
pub struct Sinks {
    /// The record of the run.
    pub record: Record,
    /// Observers of the run.
    pub observers: Vec<Box<dyn Observer>>,
}

/// Files and observers of the rank that writes.
struct RunLog {
    metrics: Metrics,
    events: Events,
    sinks: Sinks,
}

/// The log of a run.
pub struct Log {
    /// `None` on ranks that write nothing.
    run: Option<RunLog>,
    /// The last evaluation.
    last: Option<Line>,
    /// When training began in this process, and at which step.
    began: (Instant, u64),
    steps: u64,
}

impl Log {
    /// Opens the log of the run in `dir`, which stands at `step` of `steps`. Also returns the lines
    /// of the steps before, oldest first.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(
        dir: &RunDir,
        mut sinks: Sinks,
        (step, steps): (u64, u64),
        unit: &'static str,
    ) -> Result<(Self, Vec<Line>)> {
        let path = dir.join("metrics.jsonl");
        let metrics = Metrics::open(&path, step)?;
        let lines = metrics::read(&path)?;
        let events = Events::open(&dir.join(TENSORBOARD), &lines)?;
        sinks.record.set_step(step);
        let Sinks { record, observers } = &mut sinks;
        let process = record.start();
        let info = RunInfo { dir: dir.path(), step, steps, unit, process, lines: &lines };
        observers.iter_mut().for_each(|observer| observer.start(&info));
        let last = lines.iter().rfind(|line| line.is_evaluation()).cloned();
        let began = (Instant::now(), step);
        Ok((Self { run: Some(RunLog { metrics, events, sinks }), last, began, steps }, lines))
    }

    /// Creates the log of a rank that writes nothing.
    pub fn silent((step, steps): (u64, u64)) -> Self {
        Self { run: None, last: None, began: (Instant::now(), step), steps }
    }

    fn observers(&mut self) -> impl Iterator<Item = &mut Box<dyn Observer>> {
        self.run.iter_mut().flat_map(|run| run.sinks.observers.iter_mut())
    }

    /// Marks the beginning of training.
    pub fn begin(&mut self) {
        self.began.0 = Instant::now();
        self.observers().for_each(|observer| observer.begin());
    }

    /// Marks a completed step.
    pub fn step(&mut self, step: u64) {
        if let Some(run) = &mut self.run {
            run.sinks.record.set_step(step);
        }
        self.observers().for_each(|observer| observer.step(step));
    }

    /// Writes a line to all sinks.
    ///
    /// # Errors
    /// If a file cannot be written, or an observer fails.
    pub fn line(&mut self, line: &Line) -> Result<()> {
        let (began, first) = self.began;
        let steps = line.step().saturating_sub(first).max(1);
        let per_step = began.elapsed().div_f64(steps as f64);
        let left = per_step.mul_f64(self.steps.saturating_sub(line.step()) as f64);
        // Health lines are for later analysis.
        if !matches!(line, Line::Train(_) | Line::Health(_)) {
            info!("{line}");
        }
        if let Some(RunLog { metrics, events, sinks }) = &mut self.run {
            metrics.write(line)?;
            events.write(line)?;
            let memory = matches!(line, Line::Train(_))
                .then(|| memory(sinks.record.device()).ok().map(|memory| memory.current as f64));
            let status = Status { left, memory: memory.flatten(), evaluation: self.last.as_ref() };
            for observer in &mut sinks.observers {
                observer.line(line, &status)?;
            }
        }
        if line.is_evaluation() {
            self.last = Some(line.clone());
        }
        Ok(())
    }

    /// Returns a handle of `metrics.jsonl` that another thread can flush to disk.
    ///
    /// # Errors
    /// If this rank writes no such file.
    pub fn lines(&self) -> Result<File> {
        self.run.as_ref().context("this rank writes no metrics.jsonl")?.metrics.handle()
    }

    /// Marks a checkpoint, which may still be written.
    pub fn saved(&mut self) {
        if let Some(run) = &mut self.run {
            warn_if_stale(run.sinks.record.update());
        }
        self.observers().for_each(|observer| observer.saved());
    }

    /// Closes the files and returns the sinks, for a log of the same run from an earlier step.
    pub fn close(mut self) -> Option<Sinks> {
        self.observers().for_each(|observer| observer.end());
        self.run.map(|run| run.sinks)
    }

    /// Ends the run in this process.
    pub fn end(&mut self, end: End) {
        self.observers().for_each(|observer| observer.end());
        if let Some(run) = &mut self.run {
            warn_if_stale(run.sinks.record.end(end));
        }
    }
}

/// A record that cannot be written does not end a run.
fn warn_if_stale(written: Result<()>) {
    if let Err(error) = written {
        warn!("run.json is not up to date: {}", describe(&error));
    }
}

/// Formats a duration as `1:02:03` or `2:03`.
pub fn clock(time: Duration) -> String {
    let s = time.as_secs();
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}
