//! `cargo xtask bench`: times training steps, inference and data loading, optionally against
//! PyTorch.
//!
//! The PyTorch reference is called the peer; the two programs take turns, step by step.

mod data;
mod machine;
mod process;
mod table;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::json;

use crate::bench::process::BenchProcess;
use crate::bench::table::{RecipeResult, Unit};
use crate::{libtorch, python, repo, train};

/// Warm-up steps, not measured: they fill caches and allocate memory.
const WARM_UP: usize = 2;

/// Arguments of `cargo xtask bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Benchmark to run
    #[arg(value_enum, default_value = "step")]
    pub kind: BenchKind,
    /// Recipes in recipes/, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "speech-v1,vision-v1,nlp-v1,speech,vision,nlp"
    )]
    pub recipes: Vec<String>,
    /// Device: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Precision of matrix products and convolutions
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Precision,
    /// Number of measurements, after two warm-up steps
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repeat: usize,
    /// Threads of each program [default: one per core; 1 for `data`]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Batch size [default: speech 2, vision 8, nlp 8 (1.0) or 1 (2.0)]
    #[arg(long, value_name = "N")]
    pub batch: Option<u64>,
    /// Length of a sequence [default: 10 s of audio, 512 tokens]
    #[arg(long, value_name = "N")]
    pub size: Option<f64>,
    /// Override a key of the recipes; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// With `peer`: time inference instead of training steps
    #[arg(long)]
    pub infer: bool,
    /// With `peer`: compile the blocks of the PyTorch model
    #[arg(long)]
    pub compile: bool,
    /// With `peer`: allocator settings of the PyTorch program
    #[arg(long, value_enum, default_value = "ours")]
    pub peer_malloc: Malloc,
    /// With `peer` or `data`: Python interpreter with torch and transformers [default: a virtual
    /// environment in target/bench/venv]
    #[arg(long, value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// Use an existing `data2vec` program [default: build it]
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
}

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchKind {
    /// Training steps
    Step,
    /// Forward passes of the encoder
    Infer,
    /// Training steps, compared with plain PyTorch
    Peer,
    /// Reading, decoding and augmenting files, compared with Python
    Data,
}

/// Precision of matrix products and convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32-bit floating point
    F32,
    /// bfloat16 autocast
    Bf16,
}

/// Settings of the glibc allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Malloc {
    /// Keep freed memory, as data2vec does
    Ours,
    /// Keep the glibc defaults
    Default,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Keys of a recipe that determine the default batch.
#[derive(Clone, Debug, Deserialize)]
struct Recipe {
    modality: String,
    model: Model,
}

#[derive(Clone, Debug, Deserialize)]
struct Model {
    copies: u64,
}

/// Shape of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    batch: u64,
    size: f64,
    unit: Unit,
}

impl Shape {
    /// Returns the default shape for a recipe: a step takes seconds and fits into memory on a
    /// desktop CPU.
    fn default_for(recipe: &Recipe) -> Self {
        match recipe.modality.as_str() {
            "speech" => Self { batch: 2, size: 10.0, unit: Unit::Seconds },
            "vision" => Self { batch: 8, size: 1.0, unit: Unit::Images },
            _ if recipe.model.copies > 1 => Self { batch: 1, size: 512.0, unit: Unit::Tokens },
            _ => Self { batch: 8, size: 512.0, unit: Unit::Tokens },
        }
    }

    /// Returns the content of a batch in its unit.
    fn amount(self) -> f64 {
        match self.unit {
            Unit::Images => self.batch as f64,
            Unit::Seconds | Unit::Tokens => self.batch as f64 * self.size,
        }
    }
}

impl BenchArgs {
    /// Returns the name of the result file without extension.
    fn result_name(&self) -> String {
        let device = self.device.split(':').next().unwrap_or_default();
        if self.kind == BenchKind::Data {
            return "data".to_owned();
        }
        let mut parts = vec![if self.infers() { "infer" } else { "step" }];
        if self.kind == BenchKind::Peer {
            parts.insert(0, "peer");
        }
        if self.compile {
            parts.push("compiled");
        }
        parts.extend([self.precision.name(), device]);
        parts.join("-")
    }

    fn infers(&self) -> bool {
        self.infer || self.kind == BenchKind::Infer
    }

    /// Returns the arguments for both programs.
    fn arguments(&self, recipe: &Path, shape: Shape, threads: usize) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![if self.infers() { "infer" } else { "step" }.into()];
        line.push(recipe.into());
        for (flag, value) in [
            ("--batch", shape.batch.to_string()),
            ("--size", shape.size.to_string()),
            ("--precision", self.precision.name().to_owned()),
            ("--device", self.device.clone()),
            ("--threads", threads.to_string()),
            // With LayerDrop, the cost of a step would be random.
            ("--set", "transformer.layer_drop=0".to_owned()),
        ] {
            line.extend([OsString::from(flag), value.into()]);
        }
        for set in &self.set {
            line.extend(["--set".into(), OsString::from(set)]);
        }
        line
    }
}

/// Runs the benchmark, prints a table, and writes all measurements to target/bench.
pub fn run(root: &Path, bench: &BenchArgs) -> Result<()> {
    let peer = bench.kind == BenchKind::Peer;
    ensure!(bench.repeat >= 1, "--repeat must be at least 1");
    ensure!(peer || !(bench.infer || bench.compile), "--infer and --compile require `bench peer`");
    let recipes = bench.recipes.iter().map(|name| read(root, name)).collect::<Result<Vec<_>>>()?;
    let threads = match bench.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()
            .context("cannot find the number of cores; set --threads")?
            .get(),
    };
    let ours = data2vec_command(root, bench)?;
    let python = match (&bench.python, peer || bench.kind == BenchKind::Data) {
        (Some(python), _) => python.clone(),
        (None, true) => python::environment(root)?,
        (None, false) => PathBuf::new(),
    };
    let name = bench.result_name();
    let file = root.join("target/bench").join(format!("{name}.json"));
    if bench.kind == BenchKind::Data {
        let workers = bench.threads.unwrap_or(1);
        let results = data::measure(root, &ours, &python, workers, bench.repeat)?;
        let all = json!({
            "name": name,
            "date": machine::today(),
            "cpu": machine::cpu_name(),
            "results": results,
        });
        write(&file, &serde_json::to_string_pretty(&all)?)?;
        out!("{}", data::table(&results));
        out!("{}; all measurements: {}", machine::cpu_name(), repo::display_path(&file).display());
        return Ok(());
    }
    let mut results = Vec::new();
    for (path, recipe) in recipes {
        let mut shape = Shape::default_for(&recipe);
        shape.batch = bench.batch.unwrap_or(shape.batch);
        shape.size = bench.size.unwrap_or(shape.size);
        let arguments = bench.arguments(&path, shape, threads);
        let mut processes = vec![BenchProcess::start("data2vec", ours().args(&arguments))?];
        if peer {
            let mut command = peer_command(root, bench, &python);
            processes.push(BenchProcess::start("the peer", command.args(&arguments))?);
        }
        status!(
            "{}: {} steps after {WARM_UP} warm-up steps",
            processes[0].ready().name,
            bench.repeat
        );
        for round in 0..WARM_UP + bench.repeat {
            for process in &mut processes {
                process.step(round >= WARM_UP)?;
            }
        }
        let runs = processes.into_iter().map(BenchProcess::finish).collect::<Result<Vec<_>>>()?;
        results.push(RecipeResult {
            batch: shape.batch,
            size: shape.size,
            unit: shape.unit,
            amount: shape.amount(),
            runs,
        });
        let all = json!({
            "name": name,
            "date": machine::today(),
            "cpu": machine::cpu_name(),
            "threads": threads,
            "precision": bench.precision.name(),
            "set": bench.set,
            "compiled": bench.compile,
            "peer_keeps_freed_memory": peer.then_some(bench.peer_malloc == Malloc::Ours),
            "results": results,
        });
        write(&file, &serde_json::to_string_pretty(&all)?)?;
    }
    out!("{}", table::table(&results));
    out!("{}; all measurements: {}", machine::cpu_name(), repo::display_path(&file).display());
    Ok(())
}

/// Reads a recipe by name; returns its path too.
fn read(root: &Path, name: &str) -> Result<(PathBuf, Recipe)> {
    let path = root.join("recipes").join(format!("{}.toml", name.trim_end_matches(".toml")));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("--recipes {name}: cannot read {}", path.display()))?;
    let recipe =
        toml::from_str(&text).with_context(|| format!("invalid recipe: {}", path.display()))?;
    Ok((path, recipe))
}

/// Returns a function that creates `data2vec bench` commands. Builds the program unless `--program`
/// names one.
fn data2vec_command(root: &Path, bench: &BenchArgs) -> Result<impl Fn() -> Command> {
    let (program, libtorch) = match &bench.program {
        Some(program) => (program.clone(), None),
        None => {
            let cuda = bench.device.starts_with("cuda");
            let libtorch = libtorch::ensure(root, cuda, None)?;
            train::build(root, &libtorch)?;
            (train::program_path(root), Some(libtorch))
        }
    };
    Ok(move || {
        let mut command = Command::new(&program);
        if let Some(libtorch) = &libtorch {
            repo::with_libtorch(&mut command, libtorch);
        }
        command.arg("bench");
        command
    })
}

fn peer_command(root: &Path, bench: &BenchArgs, python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(root.join("benches/peer.py"));
    if bench.peer_malloc == Malloc::Ours {
        // Matches `keep_freed_memory` in crates/torch-ext.
        command
            .env("MALLOC_MMAP_MAX_", "0")
            .env("MALLOC_TRIM_THRESHOLD_", i32::MAX.to_string())
            .env("MALLOC_TOP_PAD_", (64 << 20).to_string());
    }
    if bench.compile {
        command.arg("--compile");
    }
    command
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
#[path = "bench_tests.rs"]
mod tests;
