//! `data2vec doctor`: diagnoses a run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use data2vec_train::doctor::{Comparison, Diagnosis, Verdict, summary};
use data2vec_train::metrics::{self, Line};
use data2vec_train::recipe;
use serde::Serialize;
use serde_json::json;

use crate::terminal::{fail, out};

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Run directory; the run may still be training
    run: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Diagnoses a run. The exit code is 0 if nothing severe was found, 1 if the run has collapsed or
/// diverged, 2 if it cannot be diagnosed.
pub fn run(args: &Args) -> ExitCode {
    match diagnose(args) {
        Ok(is_severe) => ExitCode::from(u8::from(is_severe)),
        Err(error) => {
            fail(&error);
            ExitCode::from(2)
        }
    }
}

/// Prints the diagnosis. Returns whether it is severe.
fn diagnose(args: &Args) -> Result<bool> {
    let recipe = recipe::read_run(&args.run)?;
    let (steps, lines) = (recipe::steps(&recipe), metrics::read(&args.run.join("metrics.jsonl"))?);
    let diagnosis = Diagnosis::new(&lines, steps);
    let reference = Comparison::find(&recipe, &lines);
    if args.json {
        out!("{}", json!(Report { diagnosis: &diagnosis, reference }));
    } else {
        print(&args.run, &diagnosis, steps);
        summary(&lines).iter().for_each(|line| out!("  {line}"));
        let table = reference.iter().flat_map(Comparison::table);
        table.for_each(|line| out!("  {line}"));
    }
    Ok(diagnosis.is_severe())
}

/// The object that `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    diagnosis: &'a Diagnosis,
    /// Comparison with the reference run of the same recipe, if there is one.
    reference: Option<Comparison>,
}

fn print(run: &Path, diagnosis: &Diagnosis, steps: u64) {
    let Diagnosis { verdict, step, results, actions } = diagnosis;
    out!("{}: {verdict}, at step {step} of {steps}", run.display());
    for result in results {
        let severity = if result.is_severe { "" } else { "hint: " };
        let until =
            result.until.map_or(String::new(), |step| format!(" (resolved by step {step})"));
        out!("  step {}: {severity}{}{until}", result.step, result.issue);
        if result.until.is_none() {
            out!("    advice: {}", result.advice);
        }
    }
    if *verdict == Verdict::TooEarly {
        out!("  no issue so far; a diagnosis needs a few more lines of metrics.jsonl");
    }
    actions.iter().for_each(|action| out!("  {}", Line::Action(action.clone())));
}
