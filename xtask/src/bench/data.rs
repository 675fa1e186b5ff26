//! `cargo xtask bench data`: files per second that are read, decoded and augmented, compared with
//! Python.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::bench::table::{align, format_or_dash, format_ratio, geometric_mean, median};
use crate::repo;

/// Directories of files that the peer generates, and the recipes that read them.
const SETS: [(&str, &str); 5] = [
    ("wav", "speech"),
    ("flac", "speech"),
    ("ogg", "speech"),
    ("jpeg", "vision"),
    ("jpeg", "vision-v1"),
];

/// Duration of one measurement.
const SECONDS: &str = "3";

/// One measurement, as both programs print it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    examples: u64,
    /// Seconds of audio, or number of images.
    units: f64,
    seconds: f64,
    workers: u64,
}

impl Throughput {
    /// Returns examples per second and worker.
    fn rate(&self) -> f64 {
        self.examples as f64 / self.seconds / self.workers as f64
    }

    /// Returns units per second and worker.
    fn unit_rate(&self) -> f64 {
        self.units / self.seconds / self.workers as f64
    }
}

/// Measurements of one file format and recipe.
#[derive(Clone, Debug, Serialize)]
pub struct FormatResult {
    kind: &'static str,
    recipe: &'static str,
    ours: Vec<Throughput>,
    peer: Vec<Throughput>,
}

/// Generates the files unless they exist, then lets both programs read them in turn, `repeat`
/// times.
pub fn measure(
    root: &Path,
    ours: &dyn Fn() -> Command,
    python: &Path,
    workers: usize,
    repeat: usize,
) -> Result<Vec<FormatResult>> {
    let script = root.join("benches/peer_data.py");
    let dir = root.join("target/bench/files");
    let peer = || {
        let mut command = Command::new(python);
        command.arg(&script);
        command
    };
    if !dir.exists() {
        let unfinished = root.join("target/bench/files.unfinished");
        repo::run(peer().arg("make").arg(&unfinished))?;
        std::fs::rename(&unfinished, &dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let mut all = Vec::new();
    for (kind, recipe) in SETS {
        let arguments =
            |command: Command| arguments(command, root, recipe, &dir.join(kind), workers);
        status!("{kind} with recipe {recipe}: {repeat} measurements");
        let mut result = FormatResult { kind, recipe, ours: Vec::new(), peer: Vec::new() };
        for _ in 0..repeat {
            for (mut command, verb, measurements) in
                [(ours(), "data", &mut result.ours), (peer(), "run", &mut result.peer)]
            {
                command.arg(verb);
                measurements.push(read(&mut arguments(command))?);
            }
        }
        all.push(result);
    }
    Ok(all)
}

fn arguments(
    mut command: Command,
    root: &Path,
    recipe: &str,
    data: &Path,
    workers: usize,
) -> Command {
    command.arg(root.join("recipes").join(format!("{recipe}.toml"))).arg("--data").arg(data);
    command.args(["--seconds", SECONDS, "--workers", &workers.to_string()]);
    command
}

fn read(command: &mut Command) -> Result<Throughput> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} failed: {}; see its output above", output.status);
    parse(&output.stdout).with_context(|| format!("{program} printed an invalid result"))
}

fn parse(output: &[u8]) -> Result<Throughput> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().rfind(|line| !line.trim().is_empty()).context("no output")?;
    Ok(serde_json::from_str(line)?)
}

/// Formats one line per file format and recipe, and geometric means.
pub fn table(all: &[FormatResult]) -> String {
    let header =
        ["files", "recipe", "ours files/s/core", "peer files/s/core", "faster", "ours × real time"];
    let mut rows: Vec<Vec<String>> = vec![header.map(String::from).to_vec()];
    let speed_up = |files: &FormatResult| {
        let ours = median(files.ours.iter().map(Throughput::rate))?;
        Some(ours / median(files.peer.iter().map(Throughput::rate))?)
    };
    for files in all {
        let real_time = (files.recipe == "speech")
            .then(|| median(files.ours.iter().map(Throughput::unit_rate)))
            .flatten();
        rows.push(vec![
            files.kind.to_owned(),
            files.recipe.to_owned(),
            format_or_dash(median(files.ours.iter().map(Throughput::rate)), 0),
            format_or_dash(median(files.peer.iter().map(Throughput::rate)), 0),
            format_ratio(speed_up(files)),
            format_or_dash(real_time, 0),
        ]);
    }
    let mut mean = vec![String::new(); header.len()];
    mean[0] = "mean".to_owned();
    mean[4] = format_ratio(geometric_mean(all.iter().map(speed_up)));
    rows.push(mean);
    align(&rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn parses_the_last_line() {
        let output = b"hello\n{\"examples\":60,\"units\":600,\"unit\":\"seconds\",\"seconds\":3,\"workers\":2}\n\n";
        let loaded = parse(output).unwrap();
        assert_eq!((loaded.rate(), loaded.unit_rate()), (10.0, 100.0));
        assert!(parse(b"").is_err());
    }

    #[test]
    fn formats_rates_and_ratios() {
        let loaded = |examples| Throughput { examples, units: 500.0, seconds: 1.0, workers: 1 };
        let one = |recipe| FormatResult {
            kind: "wav",
            recipe,
            ours: vec![loaded(40), loaded(50), loaded(90)],
            peer: vec![loaded(25)],
        };
        let table = table(&[one("speech"), one("vision")]);
        let lines: Vec<String> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines[1..],
            ["wav speech 50 25 2.00× 500", "wav vision 50 25 2.00× -", "mean 2.00×"]
        );
    }
}
