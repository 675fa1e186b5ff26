//! `data2vec data stats`: prints statistics of the examples.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use data2vec_core::modality::raw::RawDataset;
use data2vec_train::run_dir;
use serde::Serialize;
use tracing::warn;

use super::DataArgs;
use super::histogram::{self, Histogram};
use super::survey::{Survey, survey};
use crate::terminal::out;

/// Maximum number of kinds or labels to list. Of more, only the least and the most frequent are
/// printed.
const MAX_LISTED: usize = 12;

/// Arguments of `stats`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Draw histograms of the sizes to this SVG file
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Write the statistics to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Content of the `--json` file.
#[derive(Serialize)]
struct Report<'a> {
    data: &'a PathBuf,
    examples: usize,
    broken: &'a [String],
    kinds: &'a BTreeMap<String, u64>,
    labels: &'a BTreeMap<String, u64>,
    filters: BTreeMap<&'a str, usize>,
    measures: BTreeMap<&'a str, Statistics>,
}

/// Statistics of one measure.
#[derive(Serialize)]
struct Statistics {
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<f64>,
    mean: f64,
    min: f64,
    percent5: f64,
    median: f64,
    percent95: f64,
    max: f64,
    bars: Histogram,
}

impl Statistics {
    /// Computes statistics of at least one value, sorted.
    fn of(sorted: &[f64], has_total: bool) -> Self {
        let total: f64 = sorted.iter().sum();
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Self {
            total: has_total.then_some(total),
            mean: total / sorted.len() as f64,
            min: at(0.0),
            percent5: at(0.05),
            median: at(0.5),
            percent95: at(0.95),
            max: at(1.0),
            bars: Histogram::of(sorted),
        }
    }
}

impl Args {
    /// Reads all examples and prints statistics.
    pub fn run(&self) -> Result<ExitCode> {
        let raw = self.data.open()?;
        self.print(&raw, &survey(&raw))?;
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, raw: &RawDataset, survey: &Survey) -> Result<()> {
        let statistics: BTreeMap<&str, Statistics> = raw
            .measures
            .iter()
            .zip(&survey.sizes)
            .filter(|(_, sizes)| !sizes.is_empty())
            .map(|(measure, sizes)| (measure.name, Statistics::of(sizes, measure.has_total)))
            .collect();
        let named = || raw.measures.iter().filter_map(|m| Some((m.name, statistics.get(m.name)?)));
        let filters = raw.filters.iter().map(|(what, range)| {
            let sizes = survey.sizes.first().map_or(&[][..], Vec::as_slice);
            (what.as_str(), sizes.iter().filter(|size| range.contains(size)).count())
        });
        let filters: BTreeMap<&str, usize> = filters.collect();

        out!("{} {}, {} unreadable", survey.examples, raw.noun, survey.broken.len());
        table(named()).iter().for_each(|line| out!("{line}"));
        shares("kinds", &survey.kinds).iter().for_each(|line| out!("{line}"));
        shares("labels", &survey.labels).iter().for_each(|line| out!("{line}"));
        filters.iter().for_each(|(what, count)| out!("{what}: {count}"));
        raw.notes.iter().for_each(|line| out!("{line}"));
        for broken in survey.broken.iter().take(10) {
            warn!("unreadable: {broken}");
        }
        if survey.broken.len() > 10 {
            warn!("and {} more; `data2vec data verify` lists all", survey.broken.len() - 10);
        }

        if let Some(path) = &self.svg {
            let panels = named().map(|(name, statistics)| {
                (format!("{name} of {} {}", survey.examples, raw.noun), &statistics.bars)
            });
            histogram::draw(path, &panels.collect::<Vec<_>>())
                .map_err(|e| anyhow!("{}: {e}", path.display()))?;
        }
        if let Some(path) = &self.json {
            let report = Report {
                data: &self.data.data,
                examples: survey.examples,
                broken: &survey.broken,
                kinds: &survey.kinds,
                labels: &survey.labels,
                filters,
                measures: statistics,
            };
            run_dir::write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        Ok(())
    }
}

/// Returns a table with a row for each measure.
fn table<'a>(measures: impl Iterator<Item = (&'a str, &'a Statistics)>) -> Vec<String> {
    let names = ["total", "mean", "min", "5 %", "median", "95 %", "max"];
    let mut rows = vec![[""; 1].into_iter().chain(names).map(str::to_owned).collect::<Vec<_>>()];
    for (name, f) in measures {
        let values = [f.mean, f.min, f.percent5, f.median, f.percent95, f.max];
        let total = f.total.map_or(String::new(), format_number);
        rows.push([name.to_owned(), total].into_iter().chain(values.map(format_number)).collect());
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

fn format_number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.2}") }
}

/// Lists counts, most frequent first.
fn shares(what: &str, counts: &BTreeMap<String, u64>) -> Vec<String> {
    let mut all: Vec<(&String, &u64)> = counts.iter().collect();
    all.sort_by_key(|&(name, &count)| (std::cmp::Reverse(count), name));
    let show = |(name, count): &(&String, &u64)| format!("{name} {count}");
    match all.as_slice() {
        [] => Vec::new(),
        counts if counts.len() <= MAX_LISTED => {
            vec![format!("{what}: {}", counts.iter().map(show).collect::<Vec<_>>().join(", "))]
        }
        [most, .., least] => {
            vec![format!("{what}: {}, from {} to {}", all.len(), show(least), show(most))]
        }
        [one] => vec![format!("{what}: {}", show(one))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_match_hand_computed_values() {
        let sizes: Vec<f64> = (1..=101).map(f64::from).collect();
        let f = Statistics::of(&sizes, true);
        assert_eq!((f.total, f.mean, f.min, f.max), (Some(5151.0), 51.0, 1.0, 101.0));
        assert_eq!((f.percent5, f.median, f.percent95), (6.0, 51.0, 96.0));
        let lines = table([("seconds", &f)].into_iter());
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines[1]), ["seconds", "5151", "51", "1", "6", "51", "96", "101"]);
        assert!(table(std::iter::empty()).is_empty());
    }

    #[test]
    fn shortens_long_lists() {
        let counts = |n: u64| (1..=n).map(|i| (format!("c{i:02}"), i)).collect();
        assert_eq!(shares("labels", &counts(2)), ["labels: c02 2, c01 1"]);
        assert_eq!(shares("labels", &counts(20)), ["labels: 20, from c01 1 to c20 20"]);
        assert!(shares("labels", &counts(0)).is_empty());
    }
}
