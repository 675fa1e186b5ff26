//! `data2vec doctor`: whether a run learns, and why not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::diagnosis::{Diagnosis, Verdict};
use crate::metrics::{self, Line};
use crate::page::number;
use crate::recipe;
use crate::report::{fail, out};

/// What `doctor` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a run, which may still go on
    run: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Tells how a run is: 0 if nothing grave is wrong, 1 if it has collapsed or diverged, 2 if that cannot be told.
pub fn run(args: &Args) -> ExitCode {
    match examine(args) {
        Ok(is_grave) => ExitCode::from(u8::from(is_grave)),
        Err(error) => {
            fail(&error);
            ExitCode::from(2)
        }
    }
}

/// Prints what is found. Whether it is grave.
fn examine(args: &Args) -> Result<bool> {
    let steps = recipe::steps(&recipe::of_run(&args.run)?);
    let lines = metrics::read(&args.run.join("metrics.jsonl"))?;
    let diagnosis = Diagnosis::of(&lines, steps);
    if args.json {
        out!("{}", json!(diagnosis));
    } else {
        tell(&args.run, &diagnosis, steps);
        course(&lines).iter().for_each(|line| out!("  {line}"));
    }
    Ok(diagnosis.is_grave())
}

fn tell(run: &Path, diagnosis: &Diagnosis, steps: u64) {
    let Diagnosis { verdict, step, findings, actions } = diagnosis;
    out!("{}: {verdict}, at step {step} of {steps}", run.display());
    for finding in findings {
        let weight = if finding.is_grave { "" } else { "hint: " };
        let gone = finding.until.map_or(String::new(), |step| format!(" (gone by step {step})"));
        out!("  step {}: {weight}{}{gone}", finding.step, finding.symptom);
        if finding.until.is_none() {
            out!("    what helps: {}", finding.advice);
        }
    }
    if *verdict == Verdict::TooEarly {
        out!("  nothing is wrong so far; a few lines of metrics.jsonl more will tell");
    }
    actions.iter().for_each(|action| out!("  {}", Line::Action(action.clone())));
}

/// How the most telling figures went.
fn course(lines: &[Line]) -> Vec<String> {
    let scalars: Vec<(u64, String, f64)> = lines
        .iter()
        .flat_map(|line| line.scalars().into_iter().map(|(tag, value)| (line.step(), tag, value)))
        .collect();
    let mut told = Vec::new();
    for (tag, name) in [
        ("held_out/explained", "explained variance"),
        ("train/target_var", "spread of the targets"),
        ("probe/accuracy", "probe"),
        ("validation/loss", "held-out loss"),
    ] {
        let values: Vec<(u64, f64)> = scalars
            .iter()
            .filter(|(_, known, _)| known == tag)
            .map(|(step, _, value)| (*step, *value))
            .collect();
        let [Some(first), Some(last)] = [values.first(), values.last()] else { continue };
        let best = match tag {
            "validation/loss" => values.iter().min_by(|a, b| a.1.total_cmp(&b.1)),
            "probe/accuracy" => values.iter().max_by(|a, b| a.1.total_cmp(&b.1)),
            _ => None,
        };
        let best = best.filter(|best| best.0 != last.0);
        let best = best
            .map_or(String::new(), |best| format!(", best {} at step {}", number(best.1), best.0));
        told.push(format!(
            "{name}: {} at step {}, {} at step {}{best}",
            number(first.1),
            first.0,
            number(last.1),
            last.0
        ));
    }
    told
}
