//! Drives a benchmark program: it runs one step, or forward pass, per line on its standard input.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// First message of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Name of the recipe.
    pub name: String,
    /// Number of trained parameters, or of all parameters for inference.
    pub parameters: u64,
    /// Device.
    pub device: String,
    /// Number of CPU threads.
    pub threads: u64,
    /// Versions of the program and its libraries.
    pub versions: BTreeMap<String, String>,
}

/// Measurement of one step or forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Duration.
    pub seconds: f64,
    /// GFLOP/s of a large matrix product right after the step: the attainable limit.
    pub limit: f64,
}

/// Last message of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Peak memory.
    pub peak_bytes: Option<u64>,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Floating-point operations of one step.
    pub flop: Option<f64>,
    /// Further values of data2vec: seconds per phase of a step and per operator.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

/// All messages of a program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// First message.
    pub ready: Ready,
    /// Measurements without warm-up.
    pub samples: Vec<Sample>,
    /// Last message.
    pub end: Summary,
}

/// A running benchmark program; killed on drop.
#[derive(Debug)]
pub struct BenchProcess {
    /// Name in error messages.
    name: &'static str,
    child: Child,
    /// Closed to stop the program.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    ready: Ready,
    samples: Vec<Sample>,
}

impl BenchProcess {
    /// Starts `command` and waits for its first message. Its standard error is inherited.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the program has no standard output")?;
        let ready = Ready {
            name: String::new(),
            parameters: 0,
            device: String::new(),
            threads: 0,
            versions: BTreeMap::new(),
        };
        let stdout = BufReader::new(stdout);
        let mut process = Self { name, child, stdin, stdout, ready, samples: Vec::new() };
        process.ready = process.read_message()?;
        Ok(process)
    }

    /// Returns the first message.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Runs one step; records its measurement if `recorded`.
    pub fn step(&mut self, recorded: bool) -> Result<()> {
        if let Some(stdin) = &mut self.stdin {
            // If the program has ended, reading its response fails.
            let _ = stdin.write_all(b"\n").and_then(|()| stdin.flush());
        }
        let sample = self.read_message()?;
        if recorded {
            self.samples.push(sample);
        }
        Ok(())
    }

    /// Stops the program; returns all messages.
    pub fn finish(mut self) -> Result<Run> {
        self.stdin = None;
        let end = self.read_message()?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{} failed at exit: {status}; see its output above", self.name);
        }
        Ok(Run { ready: self.ready.clone(), samples: std::mem::take(&mut self.samples), end })
    }

    /// Reads one line of JSON.
    fn read_message<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            let status = self.child.wait()?;
            bail!("{} exited early: {status}; see its output above", self.name);
        }
        serde_json::from_str(&line).with_context(|| {
            format!("{} printed an invalid message: {}", self.name, line.trim_end())
        })
    }
}

impl Drop for BenchProcess {
    /// Kills the program, which is still running if the other one failed.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Starts a shell script as a benchmark program.
    fn start(script: &str) -> Result<BenchProcess> {
        BenchProcess::start("it", Command::new("sh").args(["-c", script]))
    }

    const READY: &str = r#"echo '{"ready":true,"name":"x","parameters":7,"device":"cpu","threads":2,"versions":{"torch":"2"}}'; "#;

    #[test]
    fn records_steps_and_summary() {
        let script = format!(
            "{READY} n=0; while read line; do n=$((n+1)); \
             echo '{{\"seconds\":'$n',\"limit\":100}}'; done; \
             echo '{{\"peak_bytes\":5,\"loss\":null,\"flop\":3e9,\"phases\":{{\"ema\":0.5}}}}'"
        );
        let mut process = start(&script).unwrap();
        for round in 0..4 {
            process.step(round >= 2).unwrap();
        }
        let run = process.finish().unwrap();
        assert_eq!((run.ready.parameters, run.ready.versions["torch"].as_str()), (7, "2"));
        let seconds: Vec<f64> = run.samples.iter().map(|sample| sample.seconds).collect();
        assert_eq!(seconds, [3.0, 4.0]);
        assert_eq!((run.end.peak_bytes, run.end.loss, run.end.flop), (Some(5), None, Some(3e9)));
        assert_eq!(run.end.more["phases"]["ema"], 0.5);
    }

    #[test]
    fn reports_exits_and_invalid_messages() {
        let error = start("exit 3").unwrap_err().to_string();
        assert!(error.starts_with("it exited early: exit status: 3"), "{error}");
        let error = start("echo hello").unwrap_err().to_string();
        assert_eq!(error, "it printed an invalid message: hello");
        let mut process = start(&format!("{READY} read line")).unwrap();
        assert!(process.step(true).unwrap_err().to_string().starts_with("it exited early"));
        let script = format!("{READY} echo '{{\"flop\":null}}'; exit 1");
        let error = start(&script).unwrap().finish().unwrap_err().to_string();
        assert!(error.starts_with("it failed at exit: exit status: 1"), "{error}");
    }
}
