//! `cargo xtask bench data`: files a second that are read, decoded and augmented, in turn with Python's.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::bench::table::{aligned, geometric_mean, median, shown, times};
use crate::repo;

/// Folders of files that the peer makes, and the recipe that reads them.
const SETS: [(&str, &str); 5] = [
    ("wav", "speech"),
    ("flac", "speech"),
    ("ogg", "speech"),
    ("jpeg", "vision"),
    ("jpeg", "vision-v1"),
];

/// How long each reads at a time.
const SECONDS: &str = "3";

/// What a program says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    examples: u64,
    /// Seconds of audio, or images.
    units: f64,
    seconds: f64,
    workers: u64,
}

impl Loaded {
    /// Examples a second and worker.
    fn rate(&self) -> f64 {
        self.examples as f64 / self.seconds / self.workers as f64
    }

    /// Units a second and worker.
    fn unit_rate(&self) -> f64 {
        self.units / self.seconds / self.workers as f64
    }
}

/// One kind of files.
#[derive(Clone, Debug, Serialize)]
pub struct Files {
    kind: &'static str,
    recipe: &'static str,
    ours: Vec<Loaded>,
    peer: Vec<Loaded>,
}

/// Makes the files, and has both read them in turn, `repeat` times.
pub fn measure(
    root: &Path,
    ours: &dyn Fn() -> Command,
    python: &Path,
    workers: usize,
    repeat: usize,
) -> Result<Vec<Files>> {
    let script = root.join("benches/peer_data.py");
    let folder = root.join("target/bench/files");
    let peer = || {
        let mut command = Command::new(python);
        command.arg(&script);
        command
    };
    if !folder.exists() {
        let unfinished = root.join("target/bench/files.unfinished");
        repo::run(peer().arg("make").arg(&unfinished))?;
        std::fs::rename(&unfinished, &folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut all = Vec::new();
    for (kind, recipe) in SETS {
        let arguments =
            |command: Command| arguments(command, root, recipe, &folder.join(kind), workers);
        tell!("{kind}, as {recipe} reads it: {repeat} rounds");
        let mut files = Files { kind, recipe, ours: Vec::new(), peer: Vec::new() };
        for _ in 0..repeat {
            for (mut command, verb, loaded) in
                [(ours(), "data", &mut files.ours), (peer(), "run", &mut files.peer)]
            {
                command.arg(verb);
                loaded.push(read(&mut arguments(command))?);
            }
        }
        all.push(files);
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

fn read(command: &mut Command) -> Result<Loaded> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} failed ({}), see above", output.status);
    parse(&output.stdout).with_context(|| format!("{program} says what is no answer"))
}

fn parse(output: &[u8]) -> Result<Loaded> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().rfind(|line| !line.trim().is_empty()).context("nothing")?;
    Ok(serde_json::from_str(line)?)
}

/// One line a kind of files, and geometric means.
pub fn table(all: &[Files]) -> String {
    let header =
        ["files", "recipe", "ours files/s/core", "peer files/s/core", "faster", "ours × real time"];
    let mut rows: Vec<Vec<String>> = vec![header.map(String::from).to_vec()];
    let faster = |files: &Files| {
        let ours = median(files.ours.iter().map(Loaded::rate))?;
        Some(ours / median(files.peer.iter().map(Loaded::rate))?)
    };
    for files in all {
        let real_time = (files.recipe == "speech")
            .then(|| median(files.ours.iter().map(Loaded::unit_rate)))
            .flatten();
        rows.push(vec![
            files.kind.to_owned(),
            files.recipe.to_owned(),
            shown(median(files.ours.iter().map(Loaded::rate)), 0),
            shown(median(files.peer.iter().map(Loaded::rate)), 0),
            times(faster(files)),
            shown(real_time, 0),
        ]);
    }
    let mut mean = vec![String::new(); header.len()];
    mean[0] = "mean".to_owned();
    mean[4] = times(geometric_mean(all.iter().map(faster)));
    rows.push(mean);
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn the_last_line_is_the_answer() {
        let output = b"hello\n{\"examples\":60,\"units\":600,\"unit\":\"seconds\",\"seconds\":3,\"workers\":2}\n\n";
        let loaded = parse(output).unwrap();
        assert_eq!((loaded.rate(), loaded.unit_rate()), (10.0, 100.0));
        assert!(parse(b"").is_err());
    }

    #[test]
    fn rates_and_ratios() {
        let loaded = |examples| Loaded { examples, units: 500.0, seconds: 1.0, workers: 1 };
        let one = |recipe| Files {
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
