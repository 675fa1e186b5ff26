//! The differences between two runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;
use toml::Table;

use crate::record::{self, End, History, Start};
use crate::{metrics, recipe};

/// Values of two runs under one name; `None` if a run has none.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    name: String,
    a: Option<String>,
    b: Option<String>,
}

/// Rows by topic.
type Parts = Vec<(&'static str, Vec<Row>)>;

/// The differences between two runs.
pub struct Differences {
    parts: Parts,
    /// Whether the runs differ in nothing but cost.
    pub same: bool,
}

impl Differences {
    /// Compares the runs in two directories.
    ///
    /// # Errors
    /// If a directory is not a run directory, or a file of a run is damaged.
    pub fn between(a: &Path, b: &Path) -> Result<Self> {
        let (a, b) = (Run::read(a)?, Run::read(b)?);
        let mut parts = differences(&a, &b);
        let same = parts.iter().all(|(_, rows)| rows.is_empty());
        if !same {
            // Cost differs between any two runs, so it does not count as a difference.
            parts.push(("cost", rows(&a.cost(), &b.cost())));
        }
        Ok(Self { parts, same })
    }

    /// Returns them as one JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        let parts: BTreeMap<_, _> = self.parts.iter().map(|(name, rows)| (name, rows)).collect();
        json!({ "same": self.same, "differences": parts })
    }

    /// Returns them as lines of a table with the names of the runs.
    pub fn to_table(&self, names: [&Path; 2]) -> Vec<String> {
        table(&self.parts, names)
    }
}

/// The compared parts of a run.
struct Run {
    recipe: Table,
    history: History,
    /// The last values of all scalars, by tag.
    metrics: BTreeMap<String, f64>,
    /// Last step with a line.
    step: u64,
}

impl Run {
    fn read(dir: &Path) -> Result<Self> {
        let recipe = recipe::read_run(dir)?;
        let path = dir.join(record::FILE);
        let history = History::read(&path)
            .with_context(|| format!("{}: missing or invalid", path.display()))?;
        let lines = metrics::read(&dir.join("metrics.jsonl"))?;
        let step = lines.iter().map(metrics::Line::step).max().unwrap_or(0);
        let metrics = lines.iter().flat_map(metrics::Line::scalars).collect();
        Ok(Self { recipe, history, metrics, step })
    }

    /// Iterates over the processes of the run, oldest first.
    fn starts(&self) -> impl Iterator<Item = &Start> {
        self.history.earlier.iter().chain([&self.history.last])
    }

    /// Returns values by keys with their sections.
    fn recipe(&self) -> BTreeMap<String, String> {
        recipe::keys(&self.recipe).into_iter().collect()
    }

    fn data(&self) -> BTreeMap<String, String> {
        let start = &self.history.last;
        let examples = start.examples.map(|count| count.to_string());
        let mut known =
            vec![("examples", examples), ("sha256", start.data_sha256.as_deref().map(short))];
        // The same data may have two paths.
        if start.data_sha256.is_none() {
            known.push(("path", Some(start.data.display().to_string())));
        }
        named(known)
    }

    fn versions(&self) -> BTreeMap<String, String> {
        let start = &self.history.last;
        named(vec![
            ("data2vec", Some(start.data2vec.clone())),
            ("commit", start.commit.clone()),
            ("libtorch", Some(start.libtorch.clone())),
        ])
    }

    fn device(&self) -> BTreeMap<String, String> {
        let start = &self.history.last;
        let hardware = (!start.hardware.is_empty()).then(|| start.hardware.join(", "));
        named(vec![
            ("device", Some(start.device.clone())),
            ("hardware", hardware),
            ("system", Some(start.system.clone())),
        ])
    }

    /// Returns the command without the paths of the program, the run and the data, whose contents
    /// are compared instead.
    fn command(&self) -> BTreeMap<String, String> {
        let mut words = self.history.last.command.iter().skip(1);
        let mut kept = Vec::new();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--out" | "--data" => drop(words.next()),
                word if word.starts_with("--out=") || word.starts_with("--data=") => {}
                word => kept.push(word),
            }
        }
        named(vec![("command", Some(kept.join(" ")))])
    }

    /// Returns step, end and metrics, without timings.
    fn results(&self) -> BTreeMap<String, String> {
        let timings = ["train/units_per_second", "train/waiting", "train/phases/"];
        let is_timing = |tag: &str| timings.iter().any(|prefix| tag.starts_with(prefix));
        let metrics = self.metrics.iter().filter(|(tag, _)| !is_timing(tag));
        let mut results: BTreeMap<String, String> =
            metrics.map(|(tag, value)| (tag.clone(), number(*value))).collect();
        results.insert("step".into(), self.step.to_string());
        let end = match self.history.last.end {
            Some(End::Finished) => "finished",
            Some(End::Stopped) => "stopped",
            Some(End::Failed) => "failed",
            None => "running or killed",
        };
        results.insert("end".into(), end.into());
        results
    }

    /// Returns the time, energy and memory of all processes of the run.
    fn cost(&self) -> BTreeMap<String, String> {
        let sum =
            |value: fn(&Start) -> Option<f64>| self.starts().filter_map(value).reduce(|a, b| a + b);
        let peak = self.starts().filter_map(|start| start.peak_memory_bytes).max();
        let speed = self.metrics.get("train/units_per_second");
        named(vec![
            ("processes", Some(self.starts().count().to_string())),
            ("seconds", sum(|start| start.seconds).map(number)),
            ("energy_joules", sum(|start| start.energy_joules).map(number)),
            ("peak_memory_bytes", peak.map(|bytes| bytes.to_string())),
            ("train/units_per_second", speed.copied().map(number)),
        ])
    }
}

fn named(values: Vec<(&str, Option<String>)>) -> BTreeMap<String, String> {
    values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Formats a number with six decimals, or six digits if it is very small or large.
fn number(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && !(1e-4..1e9).contains(&size) => format!("{value:.5e}"),
        _ => ((value * 1e6).round() / 1e6).to_string(),
    }
}

/// Shortens a digest.
fn short(digest: &str) -> String {
    digest.chars().take(16).collect()
}

/// Returns the names whose values differ.
fn rows(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<Row> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let rows = names.into_iter().map(|name| Row {
        name: name.clone(),
        a: a.get(name).cloned(),
        b: b.get(name).cloned(),
    });
    rows.filter(|row| row.a != row.b).collect()
}

fn differences(a: &Run, b: &Run) -> Parts {
    vec![
        ("recipe", rows(&a.recipe(), &b.recipe())),
        ("data", rows(&a.data(), &b.data())),
        ("versions", rows(&a.versions(), &b.versions())),
        ("device", rows(&a.device(), &b.device())),
        ("command", rows(&a.command(), &b.command())),
        ("results", rows(&a.results(), &b.results())),
    ]
}

/// Formats a table with a column for each of `runs`, as lines; none if there are no rows. Long
/// values get lines of their own.
fn table(parts: &Parts, runs: [&Path; 2]) -> Vec<String> {
    const MAX_WIDTH: usize = 40;
    let known: Vec<_> = parts.iter().filter(|(_, rows)| !rows.is_empty()).collect();
    if known.is_empty() {
        return Vec::new();
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "–".into());
    let [a, b] = runs.map(|run| run.display().to_string());
    let all = || known.iter().flat_map(|(_, rows)| rows);
    let width = |longest: Option<usize>| longest.unwrap_or(0);
    let names = width(all().map(|row| row.name.chars().count()).max()) + 4;
    let values = all().map(|row| text(&row.a).chars().count()).filter(|&count| count <= MAX_WIDTH);
    let values = width(values.chain([a.chars().count().min(MAX_WIDTH)]).max()) + 2;
    let mut lines = Vec::new();
    let mut add = |name: &str, a: &str, b: &str| {
        let cell = format!("  {name:<names$}");
        match a.chars().count() + 2 <= values {
            true => lines.push(format!("{cell}{a:<values$}{b}")),
            false => lines.extend([format!("{cell}{a}"), format!("{:names$}  {b}", "")]),
        }
    };
    add("", &a, &b);
    for (title, rows) in known {
        add(title, "", "");
        rows.iter().for_each(|row| add(&format!("  {}", row.name), &text(&row.a), &text(&row.b)));
    }
    lines.iter_mut().for_each(|line| line.truncate(line.trim_end().len()));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(recipe: &str, out: &str) -> Run {
        let start = Start {
            command: ["data2vec", "pretrain", "a.toml", "--out", out, "--steps", "3"]
                .map(String::from)
                .to_vec(),
            seconds: Some(2.0),
            ..Start::default()
        };
        Run {
            recipe: recipe.parse().expect("a table"),
            history: History { last: start, earlier: vec![] },
            metrics: [("train/loss".into(), 0.1 + 0.2), ("train/waiting".into(), 0.5)].into(),
            step: 3,
        }
    }

    #[test]
    fn ignores_paths_and_timings() {
        let (a, mut b) = (run("seed = 1", "a"), run("seed = 1", "b"));
        b.metrics.insert("train/waiting".into(), 0.1);
        b.history.last.seconds = Some(9.0);
        assert!(differences(&a, &b).iter().all(|(_, rows)| rows.is_empty()));
        assert_eq!(table(&differences(&a, &b), ["a", "b"].map(Path::new)), Vec::<String>::new());

        let mut b = run("seed = 1\n[train]\nsteps = 4", "b");
        b.metrics.insert("train/loss".into(), 0.25);
        b.history.last.command.push("--quiet".into());
        let lines = table(&differences(&a, &b), ["runs/a", "runs/b"].map(Path::new));
        let expected = [
            "                runs/a                      runs/b",
            "  recipe",
            "    train.steps  –                           4",
            "  command",
            "    command      pretrain a.toml --steps 3   pretrain a.toml --steps 3 --quiet",
            "  results",
            "    train/loss   0.3                         0.25",
        ];
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let all = |lines: &[String]| lines.iter().map(|line| words(line)).collect::<Vec<_>>();
        assert_eq!(all(&lines), all(&expected.map(String::from)));
    }

    #[test]
    fn formats_numbers() {
        for (value, text) in
            [(0.1 + 0.2, "0.3"), (0.0, "0"), (3e-5, "3.00000e-5"), (f64::NAN, "NaN"), (-2.0, "-2")]
        {
            assert_eq!(number(value), text);
        }
    }
}
