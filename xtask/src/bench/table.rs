//! Formats measurements as a table.

use serde::Serialize;

use crate::bench::process::Run;

/// Unit in which the content of a batch is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Seconds of audio.
    Seconds,
    /// Images.
    Images,
    /// Tokens of text.
    Tokens,
}

impl Unit {
    /// Returns the unit of throughput.
    fn rate(self) -> &'static str {
        match self {
            Self::Seconds => "s audio/s",
            Self::Images => "images/s",
            Self::Tokens => "tokens/s",
        }
    }
}

/// Measurements of one recipe: data2vec and, for `bench peer`, PyTorch.
#[derive(Clone, Debug, Serialize)]
pub struct RecipeResult {
    /// Batch size.
    pub batch: u64,
    /// Length of a sequence in `unit`.
    pub size: f64,
    /// Unit of the batch's content.
    pub unit: Unit,
    /// Content of a batch in `unit`.
    pub amount: f64,
    /// data2vec, then the peer.
    pub runs: Vec<Run>,
}

impl RecipeResult {
    /// Returns the median seconds of data2vec (0) or the peer (1).
    fn seconds(&self, program: usize) -> Option<f64> {
        self.runs.get(program).and_then(|run| median(run.samples.iter().map(|s| s.seconds)))
    }

    fn peak(&self, program: usize) -> Option<f64> {
        self.runs.get(program).and_then(|run| run.end.peak_bytes).map(|bytes| bytes as f64)
    }

    /// Returns the time of the peer over that of data2vec.
    fn speed_up(&self) -> Option<f64> {
        Some(self.seconds(1)? / self.seconds(0)?)
    }

    /// Returns the peak memory of data2vec over that of the peer.
    fn memory(&self) -> Option<f64> {
        Some(self.peak(0)? / self.peak(1)?)
    }

    /// Returns the GFLOP/s of data2vec.
    fn gflops(&self) -> Option<f64> {
        Some(self.runs.first()?.end.flop? / 1e9 / self.seconds(0)?)
    }

    /// Returns the share of the attainable GFLOP/s, measured with a large matrix product.
    fn share(&self) -> Option<f64> {
        let limit = median(self.runs.first()?.samples.iter().map(|s| s.limit))?;
        Some(self.gflops()? / limit)
    }

    fn cells(&self) -> Vec<String> {
        const GIB: f64 = (1_u64 << 30) as f64;
        let ours = &self.runs[0].ready;
        let mut cells = vec![ours.name.clone(), format_or_dash(self.seconds(0), 3)];
        let peer = self.runs.len() > 1;
        if peer {
            cells.extend([format_or_dash(self.seconds(1), 3), format_ratio(self.speed_up())]);
        }
        cells.extend([
            format_or_dash(self.gflops(), 0),
            format_percent(self.share()),
            format!(
                "{} {}",
                format_or_dash(self.seconds(0).map(|s| self.amount / s), 1),
                self.unit.rate()
            ),
            format_or_dash(self.peak(0).map(|bytes| bytes / GIB), 2),
        ]);
        if peer {
            let peak = format_or_dash(self.peak(1).map(|bytes| bytes / GIB), 2);
            cells.extend([peak, format_percent(self.memory())]);
        }
        cells
    }
}

/// Formats one line per recipe and, with a peer, a last line of geometric means.
pub fn table(results: &[RecipeResult]) -> String {
    let peer = results.first().is_some_and(|result| result.runs.len() > 1);
    let header: &[&str] = if peer {
        &[
            "recipe", "ours s", "peer s", "faster", "GFLOP/s", "of limit", "rate", "ours GiB",
            "peer GiB", "memory",
        ]
    } else {
        &["recipe", "seconds", "GFLOP/s", "of limit", "rate", "GiB"]
    };
    let mut rows: Vec<Vec<String>> = vec![header.iter().map(|&text| text.to_owned()).collect()];
    rows.extend(results.iter().map(RecipeResult::cells));
    if peer && results.len() > 1 {
        let mean =
            |value: fn(&RecipeResult) -> Option<f64>| geometric_mean(results.iter().map(value));
        let mut row = vec![String::new(); header.len()];
        row[0] = "mean".to_owned();
        row[3] = format_ratio(mean(RecipeResult::speed_up));
        row[5] = format_percent(mean(RecipeResult::share));
        row[9] = format_percent(mean(RecipeResult::memory));
        rows.push(row);
    }
    align(&rows)
}

/// Aligns columns: the first to the left, the others to the right.
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Returns the median.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Returns the geometric mean; `None` if a value is missing.
pub fn geometric_mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let logs: Vec<f64> = values.map(|value| value.map(f64::ln)).collect::<Option<_>>()?;
    Some((logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// Formats a value with `digits` decimals; `-` if missing.
pub fn format_or_dash(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Formats a ratio; `-` if missing.
pub fn format_ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}×"))
}

fn format_percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.0} %", value * 100.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::process::{Ready, Sample, Summary};

    fn run(seconds: &[f64], peak: Option<u64>, flop: Option<f64>) -> Run {
        Run {
            ready: Ready {
                name: "speech".into(),
                parameters: 1,
                device: "cpu".into(),
                threads: 2,
                versions: BTreeMap::new(),
            },
            samples: seconds.iter().map(|&seconds| Sample { seconds, limit: 200.0 }).collect(),
            end: Summary { peak_bytes: peak, loss: None, flop, more: BTreeMap::new() },
        }
    }

    fn result(runs: Vec<Run>) -> RecipeResult {
        RecipeResult { batch: 2, size: 10.0, unit: Unit::Seconds, amount: 20.0, runs }
    }

    #[test]
    fn computes_medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0].into_iter()), Some(3.0));
        assert_eq!(median([90.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 90.0, 1.0, 2.0].into_iter()), Some(3.0));
    }

    #[test]
    fn formats_table_without_peer() {
        let table = table(&[result(vec![run(&[2.0, 9.0, 1.0], Some(3 << 30), Some(300e9))])]);
        // 300 GFLOP in 2 s: 150 GFLOP/s of 200; 20 s of audio in 2 s.
        let expected = "\
recipe  seconds  GFLOP/s  of limit            rate   GiB
speech    2.000      150      75 %  10.0 s audio/s  3.00";
        assert_eq!(table, expected);
    }

    #[test]
    fn formats_table_with_peer() {
        let one =
            result(vec![run(&[2.0], Some(3 << 30), Some(300e9)), run(&[8.0], Some(6 << 30), None)]);
        let other =
            result(vec![run(&[2.0], Some(3 << 30), Some(300e9)), run(&[2.0], Some(6 << 30), None)]);
        let table = table(&[one, other]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        let cells = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
        assert_eq!(
            cells(lines[1]).join(" "),
            "speech 2.000 8.000 4.00× 150 75 % 10.0 s audio/s 3.00 6.00 50 %"
        );
        // √(4 · 1) = 2
        assert_eq!(cells(lines[3]).join(" "), "mean 2.00× 75 % 50 %");
    }

    #[test]
    fn formats_missing_values_as_dash() {
        let table = table(&[result(vec![run(&[2.0], None, None), run(&[4.0], Some(1), None)])]);
        let line = table.lines().nth(1).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells.join(" "), "speech 2.000 4.000 2.00× - - 10.0 s audio/s - 0.00 -");
    }
}
