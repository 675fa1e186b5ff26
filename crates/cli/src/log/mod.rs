//! How what a run tells leaves the program: to `metrics.jsonl` and to the user.

mod view;

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::metrics::{self, Line, Metrics};
use crate::run::RunFolder;
use view::View;

pub use view::clock;

/// All that hears of a run.
pub struct Log {
    /// `None`: of a process that writes nothing.
    metrics: Option<Metrics>,
    view: View,
    /// The last evaluation.
    last: Option<Line>,
    /// When training began in this process, and at which step.
    began: (Instant, u64),
    steps: u64,
}

impl Log {
    /// Of the run in `folder`, which stands at `step` of `steps` and counts its data in `unit`. Also the
    /// lines of the steps before, oldest first.
    pub fn open(
        folder: &RunFolder,
        (step, steps): (u64, u64),
        unit: &'static str,
    ) -> Result<(Self, Vec<Line>)> {
        let path = folder.join("metrics.jsonl");
        let metrics = Some(Metrics::open(&path, step)?);
        let lines = metrics::read(&path)?;
        let last = lines.iter().rfind(|line| line.is_evaluation()).cloned();
        let began = (Instant::now(), step);
        Ok((Self { metrics, view: View::new(steps, unit), last, began, steps }, lines))
    }

    /// Of one of several processes that is not the one which writes.
    pub fn silent((step, steps): (u64, u64), unit: &'static str) -> Self {
        let view = View::new(steps, unit);
        Self { metrics: None, view, last: None, began: (Instant::now(), step), steps }
    }

    /// Training begins.
    pub fn begin(&mut self) {
        self.began.0 = Instant::now();
        self.view.show(self.began.1);
    }

    /// Says where the run stands.
    pub fn step(&self, step: u64) {
        self.view.step(step);
    }

    /// Keeps a line and shows it.
    pub fn line(&mut self, line: &Line) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            metrics.write(line)?;
        }
        match line {
            Line::Train(line) => {
                let (began, first) = self.began;
                let per_step =
                    began.elapsed().div_f64(line.step.saturating_sub(first).max(1) as f64);
                let left = per_step.mul_f64(self.steps.saturating_sub(line.step) as f64);
                self.view.line(line, self.last.as_ref(), left);
            }
            line => self.say(&line.to_string()),
        }
        if line.is_evaluation() {
            self.last = Some(line.clone());
        }
        Ok(())
    }

    /// The file of lines, to be flushed to the disk by somebody else.
    pub fn lines(&self) -> Result<File> {
        self.metrics.as_ref().context("this process keeps no metrics.jsonl")?.handle()
    }

    /// A line of text, above whatever is redrawn.
    pub fn say(&self, text: &str) {
        self.view.say(text);
    }

    /// Leaves the terminal as it was.
    pub fn finish(&self) {
        self.view.finish();
    }
}
