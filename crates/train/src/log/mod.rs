//! How what a run tells leaves the program: to `metrics.jsonl` and TensorBoard, to Prometheus, to the user, and to
//! the record of how the run came to be.

mod prometheus;
mod tensorboard;
mod view;

use std::fs::File;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use data2vec_torch_ext::memory;

use crate::metrics::{self, Line, Metrics};
use crate::record::{End, Record, since_1970};
use crate::report::{self, describe, note, tell};
use crate::run::RunFolder;
use tensorboard::Events;
use view::View;

pub use prometheus::Server;
pub use view::clock;

/// Folder of the event files, in that of a run.
const TENSORBOARD: &str = "tensorboard";

/// How a run is watched, on the command line.
#[derive(clap::Args)]
pub struct Args {
    /// Tell nothing but errors and results
    #[arg(long)]
    quiet: bool,
    /// Write each line of metrics.jsonl to standard output as well, and nothing else there
    #[arg(long)]
    json: bool,
    /// Answer Prometheus at http://ADDR:PORT/metrics; without a value at 127.0.0.1:9464. Port 0 is any that is
    /// free, which is told
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:9464")]
    prometheus: Option<SocketAddr>,
}

impl Args {
    /// From now on the process speaks as it was told.
    pub fn begin(&self) {
        report::speak(self.quiet, self.json);
    }

    /// Answers Prometheus, if that is wanted.
    pub fn serve(&self) -> Result<Option<Server>> {
        let server = self.prometheus.map(Server::listen).transpose()?;
        if let Some(server) = &server {
            tell!("Prometheus finds figures at http://{}/metrics", server.address());
        }
        Ok(server)
    }
}

/// What a run's log writes to besides files of its own.
pub struct Outlets {
    /// How the run came to be.
    pub record: Record,
    /// Who answers Prometheus.
    pub server: Option<Server>,
}

/// What is kept of a run, and told outside of the process.
struct Kept {
    metrics: Metrics,
    events: Events,
    outlets: Outlets,
}

impl Kept {
    fn write(&mut self, line: &Line) -> Result<()> {
        self.metrics.write(line)?;
        self.events.write(line)?;
        report::json(line)?;
        self.serve(line);
        Ok(())
    }

    /// Tells Prometheus what does not change.
    fn introduce(&self, folder: &RunFolder, unit: &str, steps: u64) {
        let Some(server) = &self.outlets.server else { return };
        let start = self.outlets.record.start();
        let labels = vec![
            ("version", start.data2vec.clone()),
            ("commit", start.commit.clone().unwrap_or_default()),
            ("libtorch", start.libtorch.clone()),
        ];
        server.set_labelled("build_info", "The program.", labels, 1.0);
        let labels = vec![
            ("folder", folder.path().display().to_string()),
            ("device", start.device.clone()),
            ("unit", unit.to_owned()),
        ];
        server.set_labelled("run_info", "The run, and in what it counts its data.", labels, 1.0);
        server.set("steps", "Steps of the whole run.", steps as f64);
    }

    /// Tells Prometheus the figures of a line.
    fn serve(&self, line: &Line) {
        let Some(server) = &self.outlets.server else { return };
        for (tag, value) in line.scalars() {
            server.set(&tag, &format!("{tag} of metrics.jsonl."), value);
        }
    }

    /// Bytes of memory in use, where the system tells.
    fn memory(&self) -> Option<f64> {
        let memory = memory(self.outlets.record.device()).ok()?.current as f64;
        if let Some(server) = &self.outlets.server {
            server.set("memory_bytes", "Memory in use, of a GPU or the process.", memory);
        }
        Some(memory)
    }

    fn step(&mut self, step: u64) {
        self.outlets.record.at(step);
        if let Some(server) = &self.outlets.server {
            server.set("step", "Steps that are complete.", step as f64);
        }
    }

    fn saved(&mut self) {
        if let Some(server) = &self.outlets.server {
            let help = "When the last checkpoint was taken, in seconds since 1970.";
            let now = since_1970().as_secs_f64();
            server.set("last_checkpoint_timestamp_seconds", help, now);
        }
        tell_failure(self.outlets.record.keep());
    }
}

/// All that hears of a run.
pub struct Log {
    /// `None`: of a process that writes nothing.
    kept: Option<Kept>,
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
        outlets: Outlets,
        (step, steps): (u64, u64),
        unit: &'static str,
    ) -> Result<(Self, Vec<Line>)> {
        let path = folder.join("metrics.jsonl");
        let metrics = Metrics::open(&path, step)?;
        let lines = metrics::read(&path)?;
        let events = Events::open(&folder.join(TENSORBOARD), &lines)?;
        let mut kept = Kept { metrics, events, outlets };
        kept.introduce(folder, unit, steps);
        kept.step(step);
        lines.iter().for_each(|line| kept.serve(line));
        let last = lines.iter().rfind(|line| line.is_evaluation()).cloned();
        let view = View::new((step, steps), unit, &lines);
        let began = (Instant::now(), step);
        Ok((Self { kept: Some(kept), view, last, began, steps }, lines))
    }

    /// Of one of several processes that is not the one which writes.
    pub fn silent((step, steps): (u64, u64), unit: &'static str) -> Self {
        let view = View::new((step, steps), unit, &[]);
        Self { kept: None, view, last: None, began: (Instant::now(), step), steps }
    }

    /// Training begins.
    pub fn begin(&mut self) {
        self.began.0 = Instant::now();
        self.view.show();
    }

    /// Says where the run stands.
    pub fn step(&mut self, step: u64) {
        self.view.step(step);
        if let Some(kept) = &mut self.kept {
            kept.step(step);
        }
    }

    /// Keeps a line and shows it.
    pub fn line(&mut self, line: &Line) -> Result<()> {
        if let Some(kept) = &mut self.kept {
            kept.write(line)?;
        }
        match line {
            Line::Train(train) => {
                let (began, first) = self.began;
                let steps = train.step.saturating_sub(first).max(1);
                let per_step = began.elapsed().div_f64(steps as f64);
                let left = per_step.mul_f64(self.steps.saturating_sub(train.step) as f64);
                let memory = self.kept.as_ref().and_then(Kept::memory);
                self.view.train(train, self.last.as_ref(), left, memory);
            }
            // Many figures, which are for looking at later.
            Line::Health(_) => {}
            line => self.say(&line.to_string()),
        }
        self.view.remember(line);
        if line.is_evaluation() {
            self.last = Some(line.clone());
        }
        Ok(())
    }

    /// The file of lines, to be flushed to the disk by somebody else.
    pub fn lines(&self) -> Result<File> {
        self.kept.as_ref().context("this process keeps no metrics.jsonl")?.metrics.handle()
    }

    /// A checkpoint was taken, which is written meanwhile.
    pub fn saved(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.saved();
        }
    }

    /// A line of text, above whatever is redrawn.
    pub fn say(&self, text: &str) {
        tell!("{text}");
    }

    /// Gives back what it writes to besides files of its own, so that another can take its place.
    pub fn close(mut self) -> Option<Outlets> {
        self.view.finish();
        self.kept.map(|kept| kept.outlets)
    }

    /// This process is done with the run. Leaves the terminal as it was.
    pub fn end(&mut self, end: End) {
        self.view.finish();
        if let Some(kept) = &mut self.kept {
            tell_failure(kept.outlets.record.end(end));
        }
    }
}

/// That the record is not up to date is no reason to end a run.
fn tell_failure(written: Result<()>) {
    if let Err(error) = written {
        note(format!("the record is not up to date: {}", describe(&error)));
    }
}
