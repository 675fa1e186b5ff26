//! Steps and forward passes on demand, for `cargo xtask bench`: one for each line of standard input,
//! so that another program's can be taken in turn. Answers are lines of JSON on standard output.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Dataset, Encoder, FeatureEncoder, Precision, TrainState};
use data2vec_torch_ext::{Op, libtorch_version, memory, profile};
use serde_json::{Value, json};
use tch::{Cuda, Device, Kind, Tensor, nn};
use toml::Table;

use crate::device;
use crate::modality::{Task, Tunable, with_recipe};
use crate::recipe::Recipe;
use crate::report::out;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Whole training steps
    Step(Args),
    /// Forward passes of the encoder, without gradients
    Infer(Args),
    /// Looks at the model's health, as training takes one with each line of metrics.jsonl
    Health(Args),
    /// Examples as training sees them: read, decoded, augmented
    Data(DataArgs),
}

/// Which examples.
#[derive(clap::Args)]
pub struct DataArgs {
    /// A recipe
    recipe: PathBuf,
    /// As of `pretrain`
    #[arg(long)]
    data: PathBuf,
    /// How long to go on
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Threads that load
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Another value for a key of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What is measured.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe
    recipe: PathBuf,
    /// Sequences in a batch, before copies
    #[arg(long, default_value_t = 2)]
    batch: i64,
    /// Length of each: seconds of audio, tokens; images are as large as the recipe says
    #[arg(long, default_value_t = 10.0)]
    size: f64,
    /// f32 or bf16, in place of the recipe's
    #[arg(long)]
    precision: Option<String>,
    /// cpu, cuda or cuda:N; without it: a GPU if there is one
    #[arg(long)]
    device: Option<String>,
    /// Threads on the CPU
    #[arg(long)]
    threads: Option<i32>,
    /// Another value for a key of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Measures until standard input ends.
pub fn run(command: &Command) -> Result<ExitCode> {
    let (args, what) = match command {
        Command::Step(args) => (args, What::Step),
        Command::Infer(args) => (args, What::Infer),
        Command::Health(args) => (args, What::Health),
        Command::Data(args) => return with_recipe(&args.recipe, None, &args.set, args),
    };
    let mut set = args.set.clone();
    if let Some(precision) = &args.precision {
        set.push(format!("model.precision={precision}"));
    }
    with_recipe(&args.recipe, None, &set, Bench { args, what })
}

impl Task for &DataArgs {
    fn run<M: Tunable>(self, path: &Path, table: Table) -> Result<ExitCode> {
        let recipe = Recipe::<M>::from_table(path, table)?;
        ensure!(self.workers >= 1, "--workers: 0 threads load nothing");
        let cache = std::env::temp_dir().join(format!("data2vec-bench-{}", std::process::id()));
        std::fs::create_dir_all(&cache)?;
        let examples =
            M::open(&self.data, &recipe.data, &recipe.features, 0.0, recipe.seed, &cache);
        let measured = examples.and_then(|examples| self.measure(&examples.train, recipe.seed));
        std::fs::remove_dir_all(&cache)?;
        let (examples, size, seconds) = measured?;
        out!(
            "{}",
            json!({
                "examples": examples,
                "units": size as f64 / M::UNITS.size,
                "unit": M::UNITS.name,
                "seconds": seconds,
                "workers": self.workers,
            })
        );
        Ok(ExitCode::SUCCESS)
    }
}

impl DataArgs {
    /// Examples, their sizes' sum, and seconds.
    fn measure(&self, dataset: &impl Dataset, seed: u64) -> Result<(u64, u64, f64)> {
        let next = AtomicU64::new(0);
        let end = Duration::from_secs_f64(self.seconds.max(0.0));
        let start = Instant::now();
        let work = || -> Result<(u64, u64)> {
            let (mut examples, mut size) = (0, 0);
            while start.elapsed() < end {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let index = (place % dataset.len() as u64) as usize;
                let mut rng = stream(seed, Purpose::Order, &[place]);
                std::hint::black_box(dataset.load(index, &mut rng)?);
                examples += 1;
                size += dataset.size(index);
            }
            Ok((examples, size))
        };
        let counts: Vec<Result<(u64, u64)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.workers).map(|_| scope.spawn(work)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        let seconds = start.elapsed().as_secs_f64();
        let mut total = (0, 0);
        for count in counts {
            let (examples, size) = count?;
            total = (total.0 + examples, total.1 + size);
        }
        Ok((total.0, total.1, seconds))
    }
}

/// What is done for each line.
enum What {
    Step,
    Infer,
    Health,
}

/// The same with what it needs.
enum Work<F: FeatureEncoder> {
    Step(TrainState<F>),
    Infer(Encoder<F>),
    Health(TrainState<F>),
}

struct Bench<'a> {
    args: &'a Args,
    what: What,
}

impl Task for Bench<'_> {
    fn run<M: Tunable>(self, path: &Path, table: Table) -> Result<ExitCode> {
        let recipe = Recipe::<M>::from_table(path, table)?;
        let args = self.args;
        ensure!(args.batch >= 1, "--batch: {} is below 1", args.batch);
        ensure!(args.size > 0.0, "--size: {} is not above 0", args.size);
        if let Some(threads) = args.threads {
            ensure!(threads >= 1, "--threads: {threads} is below 1");
            tch::set_num_threads(threads);
        }
        let device = device::choose(args.device.as_deref())?;
        let precision = recipe.model.precision;
        let training = |work: fn(TrainState<M::Encoder>) -> Work<M::Encoder>| -> Result<_> {
            let state = recipe.state(device)?;
            Ok((state.model.parameters().0, work(state)))
        };
        let (parameters, mut work) = match self.what {
            What::Infer => {
                let (parameters, encoder) = encoder::<M>(&recipe, device)?;
                (parameters, Work::Infer(encoder))
            }
            What::Step => training(Work::Step)?,
            What::Health => training(Work::Health)?,
        };
        tch::manual_seed(recipe.seed as i64);
        let batch = M::random(&recipe.features, args.batch, args.size)?.to_device(device);
        out!(
            "{}",
            json!({
                "ready": true,
                "name": args.recipe.file_stem().map(|name| name.to_string_lossy()),
                "parameters": parameters,
                "device": device::name(device),
                "threads": tch::get_num_threads(),
                "versions": {
                    "data2vec": env!("CARGO_PKG_VERSION"),
                    "libtorch": libtorch_version(),
                },
            })
        );

        let mut once = || -> Result<f64> {
            let result = match &mut work {
                Work::Step(state) => state.step(std::slice::from_ref(&batch))?.loss,
                Work::Infer(encoder) => {
                    encoder.forward(&batch)?.x.mean(Kind::Float).double_value(&[])
                }
                Work::Health(state) => {
                    let mut rng = stream(recipe.seed, Purpose::Health, &[0]);
                    state.model.health(&batch, &mut rng)?.target_rank.unwrap_or(f64::NAN)
                }
            };
            wait_for(device);
            Ok(result)
        };
        let mut result = 0.0;
        for line in std::io::stdin().lock().lines() {
            line?;
            let start = Instant::now();
            result = once()?;
            let seconds = start.elapsed().as_secs_f64();
            out!("{}", json!({ "seconds": seconds, "limit": limit(precision, device) / 1e9 }));
        }
        let peak = memory(device).ok().map(|memory| memory.peak);
        let (done, ops) = profile(&mut once)?;
        done?;
        out!("{}", summary(peak, result, &ops));
        Ok(ExitCode::SUCCESS)
    }
}

/// How many parameters the recipe's encoder has, and itself, as users load one.
fn encoder<M: Tunable>(recipe: &Recipe<M>, device: Device) -> Result<(usize, Encoder<M::Encoder>)> {
    let mut vars = nn::VarStore::new(device);
    let encoder = Encoder::new(&vars.root(), &recipe.features, &recipe.transformer)?;
    vars.freeze();
    let parameters = vars.variables().values().map(Tensor::numel).sum();
    Ok((parameters, encoder.in_precision(recipe.model.precision)))
}

/// What one more step consists of.
fn summary(peak: Option<u64>, result: f64, ops: &[Op]) -> Value {
    let (phases, ops): (Vec<&Op>, Vec<&Op>) = ops.iter().partition(|op| op.is_scope);
    let phases: BTreeMap<&str, f64> =
        phases.iter().map(|op| (op.name.as_str(), op.seconds)).collect();
    let flop: f64 = ops.iter().map(|op| op.flop).sum();
    let slowest: Vec<Value> = ops
        .iter()
        .take(25)
        .map(|op| json!({ "name": op.name, "calls": op.calls, "seconds": op.seconds, "flop": op.flop }))
        .collect();
    json!({
        "peak_bytes": peak,
        "loss": result,
        "flop": flop,
        "phases": phases,
        "ops": slowest,
    })
}

fn wait_for(device: Device) {
    if let Device::Cuda(n) = device {
        Cuda::synchronize(n as i64);
    }
}

/// Floating-point operations a second that a large matrix product reaches.
fn limit(precision: Precision, device: Device) -> f64 {
    let n: i64 = if device == Device::Cpu { 2048 } else { 8192 };
    let kind = match precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let [a, b] = [(); 2].map(|()| Tensor::ones([n, n], (kind, device)));
    let mut times: Vec<f64> = (0..3)
        .map(|_| {
            let start = Instant::now();
            let _product = tch::no_grad(|| a.matmul(&b));
            wait_for(device);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    2.0 * (n * n * n) as f64 / times[1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_parts_of_a_step_and_no_operators() {
        let op = |name: &str, is_scope, flop| Op {
            name: name.into(),
            is_scope,
            calls: 1,
            seconds: 0.5,
            flop,
        };
        let ops = [op("backward", true, 0.0), op("aten::mm", false, 8.0), op("detach", false, 0.0)];
        let summary = summary(None, 1.0, &ops);
        assert_eq!(summary["phases"], json!({ "backward": 0.5 }));
        let names: Vec<_> =
            summary["ops"].as_array().expect("a list").iter().map(|op| &op["name"]).collect();
        assert_eq!(names, ["aten::mm", "detach"]);
        assert_eq!(summary["flop"], 8.0);
    }
}
