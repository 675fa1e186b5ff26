//! Arguments that several subcommands share.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use data2vec_core::Precision;
use data2vec_train::log::clock;
use data2vec_train::log::prometheus::Server;
use data2vec_train::selection::check_trained;
use data2vec_train::{Observer, Outcome, RunOptions, device, process_group};
use tch::Device;
use tracing::info;

use crate::signals;
use crate::terminal::{self, JsonLines, View, out};

/// Device and precision of a trained model.
#[derive(clap::Args)]
pub struct ComputeArgs {
    /// Device: cpu, cuda or cuda:N [default: a GPU if there is one]
    #[arg(long)]
    device: Option<String>,
    /// Precision of matrix products; bf16 is faster where CPU or GPU support it
    #[arg(long, default_value = "f32", value_parser = precisions())]
    pub precision: Precision,
}

impl ComputeArgs {
    /// Chooses the device.
    pub fn device(&self) -> Result<Device> {
        device::choose(self.device.as_deref())
    }
}

/// Use of a head that fine-tuning did not improve.
#[derive(clap::Args)]
pub struct HeadArgs {
    /// Use the model even if no step of fine-tuning was better than its untrained head
    #[arg(long)]
    untrained_head: bool,
}

impl HeadArgs {
    /// Checks that the head of the model in the directory `dir` was trained.
    ///
    /// # Errors
    /// If it was not, and that is not allowed.
    pub fn check(&self, dir: &Path) -> Result<()> {
        if self.untrained_head { Ok(()) } else { check_trained(dir) }
    }
}

fn precisions() -> impl TypedValueParser<Value = Precision> {
    let precision = |name: String| match name.as_str() {
        "bf16" => Precision::Bf16,
        _ => Precision::F32,
    };
    PossibleValuesParser::new(["f32", "bf16"]).map(precision)
}

/// Parses a number of at least 1.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(error) => Err(error.to_string()),
    }
}

/// Arguments of every run.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Run directory, for checkpoints, metrics, curve, report and the exported model
    #[arg(long)]
    pub out: PathBuf,
    /// Device: cpu, cuda or cuda:N [default: a GPU if there is one]
    #[arg(long)]
    device: Option<String>,
    /// Fail if there is no run in --out to resume, as a script may want; without it a run is started
    #[arg(long)]
    resume: bool,
    /// Resume the run in --out on other data than it was started with, which is refused otherwise
    #[arg(long)]
    other_data: bool,
    /// Use deterministic GPU kernels, which are slower and do not support CTC; runs on a CPU are
    /// always deterministic
    #[arg(long)]
    deterministic: bool,
    /// Do not write report.html
    #[arg(long)]
    no_report: bool,
    /// Seconds to wait for a rank before it counts as lost
    #[arg(long, value_name = "SECONDS", default_value_t = process_group::TIMEOUT)]
    dist_timeout: u64,
    /// Print only errors and results
    #[arg(long)]
    quiet: bool,
    /// Write each line of metrics.jsonl to standard output, and nothing else
    #[arg(long)]
    json: bool,
    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics; port 0 takes a free port [default
    /// if no value is given: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:9464")]
    prometheus: Option<SocketAddr>,
}

impl RunArgs {
    /// Returns the options of the run, with its observers.
    pub fn options(self) -> Result<RunOptions> {
        terminal::configure(self.quiet, self.json);
        if self.deterministic {
            data2vec_torch_ext::set_deterministic(true)?;
        }
        let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(View::default())];
        if self.json {
            observers.push(Box::new(JsonLines));
        }
        if let Some(address) = self.prometheus.filter(|_| terminal::is_rank0()) {
            let server = Server::listen(address)?;
            info!("serving metrics at http://{}/metrics", server.address());
            observers.push(Box::new(server));
        }
        Ok(RunOptions {
            device: self.device,
            resume: self.resume,
            other_data: self.other_data,
            report: !self.no_report,
            dist_timeout: self.dist_timeout,
            stop: signals::listen()?,
            observers,
            ..RunOptions::new(self.out)
        })
    }
}

/// Prints how a run ended, and suggests the commands of the task and those in `next`.
pub fn print_outcome(outcome: &Outcome, next: &[String]) -> ExitCode {
    let summary = match outcome {
        Outcome::Planned(lines) => {
            lines.iter().for_each(|line| out!("{line}"));
            return ExitCode::SUCCESS;
        }
        Outcome::Stopped { exit_code, .. } => return ExitCode::from(*exit_code),
        Outcome::Finished(None) => return ExitCode::SUCCESS,
        Outcome::Finished(Some(summary)) => summary,
    };
    out!();
    if !summary.took.is_zero() {
        out!("Trained for {} in this process.", clock(summary.took));
    }
    out!("  run      {}", summary.run.display());
    out!("  curve    {}", summary.curve.display());
    if let Some(report) = &summary.report {
        out!("  report   {}", report.display());
    }
    out!("  {:<8} {}", summary.exported.name, summary.exported.dir);
    out!();
    out!("Next:");
    summary.exported.next.iter().chain(next).for_each(|command| out!("  {command}"));
    ExitCode::SUCCESS
}

/// Checks that an output directory is new or empty.
///
/// # Errors
/// If it contains files, such as those of an earlier model.
pub fn check_empty(dir: &Path) -> Result<()> {
    match std::fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(false) => bail!("--out {}: the directory is not empty; choose a new one", dir.display()),
        Ok(true) | Err(_) => Ok(()), // writing to it reports other errors
    }
}
