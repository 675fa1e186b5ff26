//! Runs on several ranks, and comparisons of their results.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output};

use data2vec_core::io::checkpoint::read_tensors;
use tch::Kind;

use super::*;

/// Overrides for up to four ranks: four batches a step, with dropout and LayerDrop, which must not
/// depend on the world size.
pub const FOUR: [&str; 8] = [
    "train.accumulate=4",
    "train.steps=6",
    "train.eval_every=3",
    "train.log_every=1",
    "train.save_every=2",
    "transformer.dropout=0.1",
    "transformer.layer_drop=0.2",
    "schedule.warmup_steps=1",
];

/// Tolerance of values that differ only by the order of sums.
pub const TOLERANCE: f64 = 1e-5;

/// Returns the command of `make` for each of `size` ranks.
pub fn ranks(size: usize, make: &dyn Fn() -> Command) -> Vec<Command> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let command_of = |rank: usize| {
        let mut command = make();
        let (rank, size) = (rank.to_string(), size.to_string());
        for (name, value) in [
            ("RANK", &rank),
            ("WORLD_SIZE", &size),
            ("LOCAL_RANK", &rank),
            ("LOCAL_WORLD_SIZE", &size),
            ("MASTER_PORT", &port),
        ] {
            command.env(name, value);
        }
        if command.get_args().all(|arg| arg != "--dist-timeout") {
            command.args(["--dist-timeout", "20"]);
        }
        command.env("MASTER_ADDR", "127.0.0.1");
        command
    };
    (0..size).map(command_of).collect()
}

pub fn start(size: usize, make: &dyn Fn() -> Command) -> Vec<Child> {
    ranks(size, make).iter_mut().map(|command| command.spawn().unwrap()).collect()
}

pub fn end(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(finish).collect()
}

/// Runs `size` ranks and expects success, with output of rank 0 only. Returns its standard error.
pub fn run_on(size: usize, make: &dyn Fn() -> Command) -> String {
    let outputs = end(start(size, make));
    for (rank, output) in outputs.iter().enumerate() {
        let printed = stderr(output);
        assert!(output.status.success(), "rank {rank} of {size}: {printed}");
        assert!(
            rank == 0 || (printed.is_empty() && output.stdout.is_empty()),
            "rank {rank}: {printed}"
        );
    }
    stderr(&outputs[0])
}

/// Returns the last line of each rank's standard error.
pub fn errors(outputs: &[Output]) -> Vec<String> {
    let last = |output: &Output| {
        let printed = stderr(output);
        assert!(!printed.contains("panicked"), "{printed}");
        printed.lines().last().unwrap_or_default().to_owned()
    };
    outputs.iter().map(last).collect()
}

/// Asserts that two runs have the same metrics and tensors up to rounding.
pub fn assert_close(one: &Path, other: &Path) {
    let (a, b) = (timeless_metrics(one), timeless_metrics(other));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        let (x, y) = (numbers(a), numbers(b));
        assert_eq!(a["kind"], b["kind"]);
        assert_eq!(x.keys().collect::<Vec<_>>(), y.keys().collect::<Vec<_>>());
        for (key, x) in x {
            match (x, y[&key]) {
                (Some(x), Some(y)) => {
                    assert!((x - y).abs() <= TOLERANCE * x.abs().max(1.0), "{key}: {a} {b}");
                }
                (x, y) => assert_eq!(x, y, "{key}: {a} {b}"),
            }
        }
    }
    let (a, b) = (tensors(one), tensors(other));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, a) in &a {
        let off = (a.to_kind(Kind::Double) - &b[name]).abs().max().double_value(&[]);
        assert!(off <= TOLERANCE, "{name} is off by {off}");
    }
}

/// Reads the tensors of the exported model and of the last checkpoint.
pub fn tensors(run: &Path) -> BTreeMap<String, tch::Tensor> {
    let last = checkpoint(run, *checkpoints(run).last().unwrap());
    let mut all = BTreeMap::new();
    for dir in [run.join("encoder"), run.join("model"), last] {
        for path in fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|end| end == "safetensors") {
                let name = path.strip_prefix(run).unwrap().display().to_string();
                let tensors = read_tensors(&path).unwrap();
                all.extend(tensors.into_iter().map(|(key, x)| (format!("{name}: {key}"), x)));
            }
        }
    }
    assert!(all.len() > 20);
    all
}

pub fn with<'a>(overrides: &[&'a str]) -> Vec<&'a str> {
    FOUR.iter().chain(overrides).copied().collect()
}
