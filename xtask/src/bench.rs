//! `cargo xtask bench`: how long steps and forward passes take, alone or in turn with PyTorch's.

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

use crate::bench::process::Side;
use crate::bench::table::{Figures, Unit};
use crate::{libtorch, python, repo, train};

/// Taken before anything is measured: the first ones build caches and take memory.
const WARM_UP: usize = 2;

/// What the user typed.
#[derive(Clone, Debug, Args)]
pub struct Bench {
    /// What is timed
    #[arg(value_enum, default_value = "step")]
    pub what: What,
    /// Recipes of recipes/ by name
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "speech-v1,vision-v1,nlp-v1,speech,vision,nlp"
    )]
    pub recipes: Vec<String>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Of matrix products and convolutions
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Precision,
    /// How often each is timed, after two that are not
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repeat: usize,
    /// Threads of each program [default: one for each core; of `data`: 1]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Sequences or images in a batch [default: 2 of speech, 8 images, 8 or (2.0) 1 of text]
    #[arg(long, value_name = "N")]
    pub batch: Option<u64>,
    /// Seconds of audio or tokens in a sequence [default: 10 or 512]
    #[arg(long, value_name = "N")]
    pub size: Option<f64>,
    /// Override a key of the recipes; may be given often
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// With `peer`: forward passes of the encoder rather than steps
    #[arg(long)]
    pub infer: bool,
    /// With `peer`: PyTorch compiles its blocks
    #[arg(long)]
    pub compile: bool,
    /// With `peer`: whether its allocator keeps freed memory, as ours does
    #[arg(long, value_enum, default_value = "ours")]
    pub peer_malloc: Malloc,
    /// With `peer`: an interpreter that has torch and transformers [default: one in target/bench/venv]
    #[arg(long, value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// A `data2vec` program that is there already, instead of a build
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Whole training steps
    Step,
    /// Forward passes of the encoder
    Infer,
    /// Steps, in turn with the same in plain PyTorch
    Peer,
    /// Reading, decoding and augmenting files, in turn with the same in Python
    Data,
}

/// Of matrix products and convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32 bits
    F32,
    /// 16 bits, of which 8 are the exponent
    Bf16,
}

/// Settings of glibc's allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Malloc {
    /// Freed memory is kept
    Ours,
    /// glibc's own
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

/// What of a recipe a benchmark depends on.
#[derive(Clone, Debug, Deserialize)]
struct Recipe {
    modality: String,
    model: Model,
}

#[derive(Clone, Debug, Deserialize)]
struct Model {
    copies: u64,
}

/// A batch, and how what is in it is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    batch: u64,
    size: f64,
    unit: Unit,
}

impl Shape {
    /// A step takes seconds on a desktop CPU and fits its memory.
    fn usual(recipe: &Recipe) -> Self {
        match recipe.modality.as_str() {
            "speech" => Self { batch: 2, size: 10.0, unit: Unit::Seconds },
            "vision" => Self { batch: 8, size: 1.0, unit: Unit::Images },
            _ if recipe.model.copies > 1 => Self { batch: 1, size: 512.0, unit: Unit::Tokens },
            _ => Self { batch: 8, size: 512.0, unit: Unit::Tokens },
        }
    }

    /// How much a batch holds, in its unit.
    fn amount(self) -> f64 {
        match self.unit {
            Unit::Images => self.batch as f64,
            Unit::Seconds | Unit::Tokens => self.batch as f64 * self.size,
        }
    }
}

impl Bench {
    /// Of the file of results.
    fn name(&self) -> String {
        let device = self.device.split(':').next().unwrap_or_default();
        if self.what == What::Data {
            return "data".to_owned();
        }
        let mut parts = vec![if self.infers() { "infer" } else { "step" }];
        if self.what == What::Peer {
            parts.insert(0, "peer");
        }
        if self.compile {
            parts.push("compiled");
        }
        parts.extend([self.precision.name(), device]);
        parts.join("-")
    }

    fn infers(&self) -> bool {
        self.infer || self.what == What::Infer
    }

    /// The arguments that both programs take.
    fn arguments(&self, recipe: &Path, shape: Shape, threads: usize) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![if self.infers() { "infer" } else { "step" }.into()];
        line.push(recipe.into());
        for (flag, value) in [
            ("--batch", shape.batch.to_string()),
            ("--size", shape.size.to_string()),
            ("--precision", self.precision.name().to_owned()),
            ("--device", self.device.clone()),
            ("--threads", threads.to_string()),
            // Blocks left out at random would make steps of different cost.
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

/// Measures, prints a table, and writes all figures to target/bench.
pub fn run(root: &Path, bench: &Bench) -> Result<()> {
    let peer = bench.what == What::Peer;
    ensure!(bench.repeat >= 1, "--repeat: {} is below 1", bench.repeat);
    ensure!(peer || !(bench.infer || bench.compile), "--infer and --compile are for `bench peer`");
    let recipes = bench.recipes.iter().map(|name| read(root, name)).collect::<Result<Vec<_>>>()?;
    let threads = match bench.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().context("how many cores are there?")?.get(),
    };
    let ours = our_command(root, bench)?;
    let python = match (&bench.python, peer || bench.what == What::Data) {
        (Some(python), _) => python.clone(),
        (None, true) => python::environment(root)?,
        (None, false) => PathBuf::new(),
    };
    let name = bench.name();
    let file = root.join("target/bench").join(format!("{name}.json"));
    if bench.what == What::Data {
        let workers = bench.threads.unwrap_or(1);
        let results = data::measure(root, &ours, &python, workers, bench.repeat)?;
        let all = json!({
            "name": name,
            "date": machine::today(),
            "cpu": machine::cpu(),
            "results": results,
        });
        write(&file, &serde_json::to_string_pretty(&all)?)?;
        out!("{}", data::table(&results));
        out!("{}; all figures: {}", machine::cpu(), repo::shown(&file).display());
        return Ok(());
    }
    let mut results = Vec::new();
    for (path, recipe) in recipes {
        let mut shape = Shape::usual(&recipe);
        shape.batch = bench.batch.unwrap_or(shape.batch);
        shape.size = bench.size.unwrap_or(shape.size);
        let arguments = bench.arguments(&path, shape, threads);
        let mut sides = vec![Side::start("data2vec", ours().args(&arguments))?];
        if peer {
            let mut command = peer_command(root, bench, &python);
            sides.push(Side::start("the peer", command.args(&arguments))?);
        }
        tell!("{}: {} rounds after {WARM_UP} of warm-up", sides[0].ready().name, bench.repeat);
        for round in 0..WARM_UP + bench.repeat {
            for side in &mut sides {
                side.once(round >= WARM_UP)?;
            }
        }
        let runs = sides.into_iter().map(Side::finish).collect::<Result<Vec<_>>>()?;
        results.push(Figures {
            batch: shape.batch,
            size: shape.size,
            unit: shape.unit,
            amount: shape.amount(),
            runs,
        });
        let all = json!({
            "name": name,
            "date": machine::today(),
            "cpu": machine::cpu(),
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
    out!("{}; all figures: {}", machine::cpu(), repo::shown(&file).display());
    Ok(())
}

fn read(root: &Path, name: &str) -> Result<(PathBuf, Recipe)> {
    let path = root.join("recipes").join(format!("{}.toml", name.trim_end_matches(".toml")));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("--recipes {name}: cannot read {}", path.display()))?;
    let recipe =
        toml::from_str(&text).with_context(|| format!("{} is no recipe", path.display()))?;
    Ok((path, recipe))
}

/// What makes the command of our side, which is built if need be.
fn our_command(root: &Path, bench: &Bench) -> Result<impl Fn() -> Command> {
    let (program, libtorch) = match &bench.program {
        Some(program) => (program.clone(), None),
        None => {
            let cuda = bench.device.starts_with("cuda");
            let libtorch = libtorch::ensure(root, cuda, None)?;
            train::build(root, &libtorch)?;
            (train::program(root), Some(libtorch))
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

fn peer_command(root: &Path, bench: &Bench, python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(root.join("benches/peer.py"));
    if bench.peer_malloc == Malloc::Ours {
        // As `keep_freed_memory` of crates/torch-ext sets them.
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
            .with_context(|| format!("cannot make {}", parent.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
#[path = "bench_tests.rs"]
mod tests;
