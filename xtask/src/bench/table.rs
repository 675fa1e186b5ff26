//! What was measured, in a table.

use serde::Serialize;

use crate::bench::process::Run;

/// How what a batch holds is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Of audio.
    Seconds,
    /// One by one.
    Images,
    /// Of text.
    Tokens,
}

impl Unit {
    /// That many of it in a second.
    fn rate(self) -> &'static str {
        match self {
            Self::Seconds => "s audio/s",
            Self::Images => "images/s",
            Self::Tokens => "tokens/s",
        }
    }
}

/// One recipe: ours and, if it ran, the peer.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Sequences or images in a batch.
    pub batch: u64,
    /// Of a sequence.
    pub size: f64,
    /// How the batch is counted.
    pub unit: Unit,
    /// What it holds, in that unit.
    pub amount: f64,
    /// Ours, then the peer's.
    pub runs: Vec<Run>,
}

impl Figures {
    /// Median seconds of ours (0) or the peer (1).
    fn seconds(&self, side: usize) -> Option<f64> {
        self.runs.get(side).and_then(|run| median(run.samples.iter().map(|s| s.seconds)))
    }

    fn peak(&self, side: usize) -> Option<f64> {
        self.runs.get(side).and_then(|run| run.end.peak_bytes).map(|bytes| bytes as f64)
    }

    /// How many times as long the peer takes.
    fn speed_up(&self) -> Option<f64> {
        Some(self.seconds(1)? / self.seconds(0)?)
    }

    /// Our memory over the peer's.
    fn memory(&self) -> Option<f64> {
        Some(self.peak(0)? / self.peak(1)?)
    }

    /// Our 10⁹ operations a second, as counted on our side.
    fn gflops(&self) -> Option<f64> {
        Some(self.runs.first()?.end.flop? / 1e9 / self.seconds(0)?)
    }

    /// What of a large matrix product's speed that is.
    fn share(&self) -> Option<f64> {
        let limit = median(self.runs.first()?.samples.iter().map(|s| s.limit))?;
        Some(self.gflops()? / limit)
    }

    fn cells(&self) -> Vec<String> {
        const GIB: f64 = (1_u64 << 30) as f64;
        let ours = &self.runs[0].ready;
        let mut cells = vec![ours.name.clone(), shown(self.seconds(0), 3)];
        let peer = self.runs.len() > 1;
        if peer {
            cells.extend([shown(self.seconds(1), 3), times(self.speed_up())]);
        }
        cells.extend([
            shown(self.gflops(), 0),
            percent(self.share()),
            format!("{} {}", shown(self.seconds(0).map(|s| self.amount / s), 1), self.unit.rate()),
            shown(self.peak(0).map(|bytes| bytes / GIB), 2),
        ]);
        if peer {
            let peak = shown(self.peak(1).map(|bytes| bytes / GIB), 2);
            cells.extend([peak, percent(self.memory())]);
        }
        cells
    }
}

/// One line a recipe; with peers a last one of geometric means.
pub fn table(figures: &[Figures]) -> String {
    let peer = figures.first().is_some_and(|figures| figures.runs.len() > 1);
    let header: &[&str] = if peer {
        &[
            "recipe", "ours s", "peer s", "faster", "GFLOP/s", "of limit", "rate", "ours GiB",
            "peer GiB", "memory",
        ]
    } else {
        &["recipe", "seconds", "GFLOP/s", "of limit", "rate", "GiB"]
    };
    let mut rows: Vec<Vec<String>> = vec![header.iter().map(|&text| text.to_owned()).collect()];
    rows.extend(figures.iter().map(Figures::cells));
    if peer && figures.len() > 1 {
        let mean = |of: fn(&Figures) -> Option<f64>| geometric_mean(figures.iter().map(of));
        let mut row = vec![String::new(); header.len()];
        row[0] = "mean".to_owned();
        row[3] = times(mean(Figures::speed_up));
        row[5] = percent(mean(Figures::share));
        row[9] = percent(mean(Figures::memory));
        rows.push(row);
    }
    aligned(&rows)
}

/// The first column to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
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

/// The middle value, or the mean of the two.
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

/// `None` if one is missing.
pub fn geometric_mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let logs: Vec<f64> = values.map(|value| value.map(f64::ln)).collect::<Option<_>>()?;
    Some((logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// With so many digits, or a dash.
pub fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// A ratio.
pub fn times(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}×"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.0} %", value * 100.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::process::{End, Ready, Sample};

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
            end: End { peak_bytes: peak, loss: None, flop, more: BTreeMap::new() },
        }
    }

    fn figures(runs: Vec<Run>) -> Figures {
        Figures { batch: 2, size: 10.0, unit: Unit::Seconds, amount: 20.0, runs }
    }

    #[test]
    fn medians_do_not_see_outliers() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0].into_iter()), Some(3.0));
        assert_eq!(median([90.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 90.0, 1.0, 2.0].into_iter()), Some(3.0));
    }

    #[test]
    fn ours_alone() {
        let table = table(&[figures(vec![run(&[2.0, 9.0, 1.0], Some(3 << 30), Some(300e9))])]);
        // 300 GFLOP in 2 s are 150 a second, of 200; 20 s of audio in 2.
        let expected = "\
recipe  seconds  GFLOP/s  of limit            rate   GiB
speech    2.000      150      75 %  10.0 s audio/s  3.00";
        assert_eq!(table, expected);
    }

    #[test]
    fn with_a_peer_and_means() {
        let one = figures(vec![
            run(&[2.0], Some(3 << 30), Some(300e9)),
            run(&[8.0], Some(6 << 30), None),
        ]);
        let other = figures(vec![
            run(&[2.0], Some(3 << 30), Some(300e9)),
            run(&[2.0], Some(6 << 30), None),
        ]);
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
    fn what_is_unknown_is_a_dash() {
        let table = table(&[figures(vec![run(&[2.0], None, None), run(&[4.0], Some(1), None)])]);
        let line = table.lines().nth(1).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells.join(" "), "speech 2.000 4.000 2.00× - - 10.0 s audio/s - 0.00 -");
    }
}
