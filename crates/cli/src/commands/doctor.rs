//! `data2vec doctor`: whether a run learns, and why not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::diagnosis::{Diagnosis, Verdict};
use super::reference::Comparison;
use crate::metrics::{self, Line};
use crate::page::{curves, number};
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
    let recipe = recipe::of_run(&args.run)?;
    let (steps, lines) = (recipe::steps(&recipe), metrics::read(&args.run.join("metrics.jsonl"))?);
    let diagnosis = Diagnosis::of(&lines, steps);
    let beside = Comparison::of(&recipe, &lines);
    if args.json {
        out!("{}", json!(Told { diagnosis: &diagnosis, beside }));
    } else {
        tell(&args.run, &diagnosis, steps);
        course(&lines).iter().for_each(|line| out!("  {line}"));
        let table = beside.iter().flat_map(Comparison::table);
        table.for_each(|line| out!("  {line}"));
    }
    Ok(diagnosis.is_grave())
}

/// What `--json` tells.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    diagnosis: &'a Diagnosis,
    /// A quick start's run, if this one is like it.
    beside: Option<Comparison>,
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

/// Figures that tell most, and what they are called; of those that have a best value, whether it is the greatest.
const COURSES: [(&str, &str, Option<bool>); 4] = [
    ("held_out/explained", "explained variance", None),
    ("train/target_var", "spread of the targets", None),
    ("probe/accuracy", "probe", Some(true)),
    ("validation/loss", "held-out loss", Some(false)),
];

/// How the most telling figures went.
fn course(lines: &[Line]) -> Vec<String> {
    let curves = curves(lines);
    let known = COURSES.iter().map(|(tag, name, best)| (*tag, *name, *best));
    // In fine-tuning each task has figures of its own.
    let others = curves.keys().filter(|tag| !COURSES.iter().any(|(known, ..)| known == tag));
    let others =
        others.filter_map(|tag| Some((tag.as_str(), tag.strip_prefix("validation/")?, None)));
    let told = known.chain(others).filter_map(|(tag, name, is_greatest)| {
        let values = curves.get(tag)?;
        let (first, last) = (values.first()?, values.last()?);
        let order = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let best = is_greatest.and_then(|is_greatest| match is_greatest {
            true => values.iter().max_by(order),
            false => values.iter().min_by(order),
        });
        let best = best.filter(|best| best.1 != last.1);
        let at = |(step, value): &(u64, f64)| format!("{} at step {step}", number(*value));
        let best = best.map_or(String::new(), |best| format!(", best {}", at(best)));
        Some(format!("{name}: {}, {}{best}", at(first), at(last)))
    });
    told.collect()
}
