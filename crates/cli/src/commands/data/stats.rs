//! `data2vec data stats`: how many examples there are, and how long or large.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use serde::Serialize;

use super::Which;
use super::look::{Survey, look_at_all};
use crate::histogram::{self, Bars};
use crate::modality::Stored;
use crate::report::{note, out};

/// Kinds or labels that are named one by one; of more, only the least and the most frequent.
const NAMED: usize = 12;

/// What `stats` is told.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Draw how the sizes are spread, to this file
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What `--json` holds.
#[derive(Serialize)]
struct Report<'a> {
    data: &'a PathBuf,
    examples: usize,
    broken: &'a [String],
    kinds: &'a BTreeMap<String, u64>,
    labels: &'a BTreeMap<String, u64>,
    fates: BTreeMap<&'a str, usize>,
    measures: BTreeMap<&'a str, Figures>,
}

/// Of one measure.
#[derive(Serialize)]
struct Figures {
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<f64>,
    mean: f64,
    min: f64,
    percent5: f64,
    median: f64,
    percent95: f64,
    max: f64,
    bars: Bars,
}

impl Figures {
    /// Of at least one value, from the smallest to the largest.
    fn of(sorted: &[f64], adds_up: bool) -> Self {
        let total: f64 = sorted.iter().sum();
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Self {
            total: adds_up.then_some(total),
            mean: total / sorted.len() as f64,
            min: at(0.0),
            percent5: at(0.05),
            median: at(0.5),
            percent95: at(0.95),
            max: at(1.0),
            bars: Bars::of(sorted),
        }
    }
}

impl Args {
    /// Looks at all examples and tells what there is.
    pub fn run(&self) -> Result<ExitCode> {
        self.which.with(|stored| {
            let survey = look_at_all(&stored);
            self.tell(&stored, &survey)?;
            Ok(ExitCode::SUCCESS)
        })
    }

    fn tell(&self, stored: &Stored, survey: &Survey) -> Result<()> {
        let figures: BTreeMap<&str, Figures> = stored
            .measures
            .iter()
            .zip(&survey.sizes)
            .filter(|(_, sizes)| !sizes.is_empty())
            .map(|(measure, sizes)| (measure.name, Figures::of(sizes, measure.adds_up)))
            .collect();
        let named = || stored.measures.iter().filter_map(|m| Some((m.name, figures.get(m.name)?)));
        let fates = stored.fates.iter().map(|(what, range)| {
            let sizes = survey.sizes.first().map_or(&[][..], Vec::as_slice);
            (what.as_str(), sizes.iter().filter(|size| range.contains(size)).count())
        });
        let fates: BTreeMap<&str, usize> = fates.collect();

        out!("{} {}, {} broken", survey.examples, stored.noun, survey.broken.len());
        table(named()).iter().for_each(|line| out!("{line}"));
        shares("kinds", &survey.kinds).iter().for_each(|line| out!("{line}"));
        shares("labels", &survey.labels).iter().for_each(|line| out!("{line}"));
        fates.iter().for_each(|(what, count)| out!("{what}: {count}"));
        stored.notes.iter().for_each(|line| out!("{line}"));
        for broken in survey.broken.iter().take(10) {
            note(format!("broken: {broken}"));
        }
        if survey.broken.len() > 10 {
            note("`data2vec data verify` lists them all");
        }

        if let Some(path) = &self.svg {
            let panels = named().map(|(name, figures)| {
                (format!("{name} of {} {}", survey.examples, stored.noun), &figures.bars)
            });
            histogram::draw(path, &panels.collect::<Vec<_>>())
                .map_err(|e| anyhow!("{}: {e}", path.display()))?;
        }
        if let Some(path) = &self.json {
            let report = Report {
                data: &self.which.data,
                examples: survey.examples,
                broken: &survey.broken,
                kinds: &survey.kinds,
                labels: &survey.labels,
                fates,
                measures: figures,
            };
            crate::run::write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        Ok(())
    }
}

/// A line for each measure, below one with names.
fn table<'a>(measures: impl Iterator<Item = (&'a str, &'a Figures)>) -> Vec<String> {
    let names = ["total", "mean", "min", "5 %", "median", "95 %", "max"];
    let mut rows = vec![[""; 1].into_iter().chain(names).map(str::to_owned).collect::<Vec<_>>()];
    for (name, f) in measures {
        let values = [f.mean, f.min, f.percent5, f.median, f.percent95, f.max];
        let total = f.total.map_or(String::new(), shown);
        rows.push([name.to_owned(), total].into_iter().chain(values.map(shown)).collect());
    }
    if rows.len() == 1 {
        return Vec::new();
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| match at {
            0 => format!("{cell:width$}"),
            _ => format!("  {cell:>width$}"),
        });
        cells.collect::<String>()
    };
    rows.iter().map(line).collect()
}

fn shown(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.2}") }
}

/// How many there are of what.
fn shares(what: &str, counts: &BTreeMap<String, u64>) -> Vec<String> {
    let mut all: Vec<(&String, &u64)> = counts.iter().collect();
    all.sort_by_key(|&(name, &count)| (std::cmp::Reverse(count), name));
    let tell = |(name, count): &(&String, &u64)| format!("{name} {count}");
    match all.as_slice() {
        [] => Vec::new(),
        few if few.len() <= NAMED => {
            vec![format!("{what}: {}", few.iter().map(tell).collect::<Vec<_>>().join(", "))]
        }
        [most, .., least] => {
            vec![format!("{what}: {}, from {} to {}", all.len(), tell(least), tell(most))]
        }
        [one] => vec![format!("{what}: {}", tell(one))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_values() {
        let sizes: Vec<f64> = (1..=101).map(f64::from).collect();
        let f = Figures::of(&sizes, true);
        assert_eq!((f.total, f.mean, f.min, f.max), (Some(5151.0), 51.0, 1.0, 101.0));
        assert_eq!((f.percent5, f.median, f.percent95), (6.0, 51.0, 96.0));
        let lines = table([("seconds", &f)].into_iter());
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines[1]), ["seconds", "5151", "51", "1", "6", "51", "96", "101"]);
        assert!(table(std::iter::empty()).is_empty());
    }

    #[test]
    fn many_labels_are_told_by_their_ends() {
        let counts = |n: u64| (1..=n).map(|i| (format!("c{i:02}"), i)).collect();
        assert_eq!(shares("labels", &counts(2)), ["labels: c02 2, c01 1"]);
        assert_eq!(shares("labels", &counts(20)), ["labels: 20, from c01 1 to c20 20"]);
        assert!(shares("labels", &counts(0)).is_empty());
    }
}
