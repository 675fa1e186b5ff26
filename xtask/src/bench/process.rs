//! A program that takes one step, or forward pass, for each line it reads.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a program says once it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The recipe's.
    pub name: String,
    /// Values that are trained; of `infer`: that are kept.
    pub parameters: u64,
    /// What it runs on.
    pub device: String,
    /// Threads on the CPU.
    pub threads: u64,
    /// Of the program and what it is built on.
    pub versions: BTreeMap<String, String>,
}

/// One step or forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How long it took.
    pub seconds: f64,
    /// 10⁹ floating-point operations a second of a large matrix product right afterwards.
    pub limit: f64,
}

/// What a program says at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Most memory that it had at once.
    pub peak_bytes: Option<u64>,
    /// Result of the last step.
    pub loss: Option<f64>,
    /// Floating-point operations of one step.
    pub flop: Option<f64>,
    /// More, of our side alone: seconds of the parts of a step, and its operators.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

/// All that a program said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Before.
    pub ready: Ready,
    /// One for each round, warm-up left out.
    pub samples: Vec<Sample>,
    /// After.
    pub end: End,
}

/// A program under way.
#[derive(Debug)]
pub struct Side {
    /// As messages call it.
    who: &'static str,
    child: Child,
    /// Closed to end it.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    ready: Ready,
    samples: Vec<Sample>,
}

impl Side {
    /// Starts `command` and waits until it is ready. What it says on standard error is seen.
    pub fn start(who: &'static str, command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a program without standard output")?;
        let ready = Ready {
            name: String::new(),
            parameters: 0,
            device: String::new(),
            threads: 0,
            versions: BTreeMap::new(),
        };
        let stdout = BufReader::new(stdout);
        let mut side = Self { who, child, stdin, stdout, ready, samples: Vec::new() };
        side.ready = side.answer()?;
        Ok(side)
    }

    /// What it said first.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Has it do one step, which counts or not.
    pub fn once(&mut self, counts: bool) -> Result<()> {
        if let Some(stdin) = &mut self.stdin {
            // If it is gone, its missing answer tells.
            let _ = stdin.write_all(b"\n").and_then(|()| stdin.flush());
        }
        let sample = self.answer()?;
        if counts {
            self.samples.push(sample);
        }
        Ok(())
    }

    /// Ends it.
    pub fn finish(mut self) -> Result<Run> {
        self.stdin = None;
        let end = self.answer()?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{} failed in the end ({status}), see above", self.who);
        }
        Ok(Run { ready: self.ready.clone(), samples: std::mem::take(&mut self.samples), end })
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            let status = self.child.wait()?;
            bail!("{} ended early ({status}), see above", self.who);
        }
        serde_json::from_str(&line)
            .with_context(|| format!("{} says what is no answer: {}", self.who, line.trim_end()))
    }
}

impl Drop for Side {
    /// The other side may have failed: nothing is left running.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// A program that answers as `script` says.
    fn start(script: &str) -> Result<Side> {
        Side::start("it", Command::new("sh").args(["-c", script]))
    }

    const READY: &str = r#"echo '{"ready":true,"name":"x","parameters":7,"device":"cpu","threads":2,"versions":{"torch":"2"}}'; "#;

    #[test]
    fn a_step_for_each_line_and_a_summary_at_the_end() {
        let script = format!(
            "{READY} n=0; while read line; do n=$((n+1)); \
             echo '{{\"seconds\":'$n',\"limit\":100}}'; done; \
             echo '{{\"peak_bytes\":5,\"loss\":null,\"flop\":3e9,\"phases\":{{\"ema\":0.5}}}}'"
        );
        let mut side = start(&script).unwrap();
        for round in 0..4 {
            side.once(round >= 2).unwrap();
        }
        let run = side.finish().unwrap();
        assert_eq!((run.ready.parameters, run.ready.versions["torch"].as_str()), (7, "2"));
        let seconds: Vec<f64> = run.samples.iter().map(|sample| sample.seconds).collect();
        assert_eq!(seconds, [3.0, 4.0]);
        assert_eq!((run.end.peak_bytes, run.end.loss, run.end.flop), (Some(5), None, Some(3e9)));
        assert_eq!(run.end.more["phases"]["ema"], 0.5);
    }

    #[test]
    fn programs_that_stop_or_babble_are_reported() {
        let error = start("exit 3").unwrap_err().to_string();
        assert!(error.starts_with("it ended early (exit status: 3)"), "{error}");
        let error = start("echo hello").unwrap_err().to_string();
        assert_eq!(error, "it says what is no answer: hello");
        let mut side = start(&format!("{READY} read line")).unwrap();
        assert!(side.once(true).unwrap_err().to_string().starts_with("it ended early"));
        let script = format!("{READY} echo '{{\"flop\":null}}'; exit 1");
        let error = start(&script).unwrap().finish().unwrap_err().to_string();
        assert!(error.starts_with("it failed in the end (exit status: 1)"), "{error}");
    }
}
