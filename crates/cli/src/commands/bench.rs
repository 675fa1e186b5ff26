//! `data2vec bench`: times steps and forward passes for `cargo xtask bench`.
//!
//! Takes one step for each line of standard input, so that it can alternate with another program.
//! Writes results to standard output as JSON lines.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{
    ConvertModality, Dataset, Encoder, FeatureEncoder, Modality, Precision, Source, TrainState,
};
use data2vec_torch_ext::{Op, libtorch_version, memory, profile};
use data2vec_train::device;
use data2vec_train::recipe::Recipe;
use serde_json::{Value, json};
use tch::{Cuda, Device, Kind, Tensor, nn};
use toml::Table;

use crate::registry::{self, ModalityTask};
use crate::terminal::out;

/// Subcommands of `bench`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Time training steps
    Step(Args),
    /// Time forward passes of the encoder, without gradients
    Infer(Args),
    /// Time health measurements; training takes one for each line of metrics.jsonl
    Health(Args),
    /// Time the loading of examples: reading, decoding, augmentation
    Data(DataArgs),
}

/// Arguments of `bench data`.
#[derive(clap::Args)]
pub struct DataArgs {
    /// Recipe: a TOML file
    recipe: PathBuf,
    /// Data as for `pretrain`
    #[arg(long)]
    data: PathBuf,
    /// Seconds to measure
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Number of loading threads
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Override a key of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Arguments of `bench step`, `infer` and `health`.
#[derive(clap::Args)]
pub struct Args {
    /// Recipe: a TOML file
    recipe: PathBuf,
    /// Number of sequences in a batch, before model.copies
    #[arg(long, default_value_t = 2)]
    batch: i64,
    /// Length of each sequence, in seconds of audio or in tokens; ignored for images
    #[arg(long, default_value_t = 10.0)]
    size: f64,
    /// Precision: f32 or bf16 [default: the recipe's]
    #[arg(long)]
    precision: Option<String>,
    /// Device: cpu, cuda or cuda:N [default: a GPU if there is one]
    #[arg(long)]
    device: Option<String>,
    /// Number of CPU threads [default: LibTorch's]
    #[arg(long)]
    threads: Option<i32>,
    /// Override a key of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Measures until standard input ends.
pub fn run(command: &Command) -> Result<ExitCode> {
    let (args, operation) = match command {
        Command::Step(args) => (args, Operation::Step),
        Command::Infer(args) => (args, Operation::Infer),
        Command::Health(args) => (args, Operation::Health),
        Command::Data(args) => {
            return registry::by_recipe(&args.recipe, None, &args.set, |table| DataBench {
                args,
                table,
            });
        }
    };
    let mut set = args.set.clone();
    if let Some(precision) = &args.precision {
        set.push(format!("model.precision={precision}"));
    }
    registry::by_recipe(&args.recipe, None, &set, |table| Bench { args, operation, table })
}

struct DataBench<'a> {
    args: &'a DataArgs,
    table: Table,
}

impl ModalityTask for DataBench<'_> {
    type Output = ExitCode;

    fn run<M: ConvertModality>(self) -> Result<ExitCode> {
        let args = self.args;
        let recipe = Recipe::<M>::from_table(&args.recipe, self.table)?;
        ensure!(args.workers >= 1, "--workers must be at least 1");
        let cache = std::env::temp_dir().join(format!("data2vec-bench-{}", std::process::id()));
        std::fs::create_dir_all(&cache)?;
        let source = Source {
            path: &args.data,
            data: &recipe.data,
            features: &recipe.features,
            held_out: 0.0,
            seed: recipe.seed,
            cache: &cache,
        };
        let splits = M::open(&source, &mut |_| {});
        let measured =
            splits.map_err(Into::into).and_then(|splits| args.measure(&splits.train, recipe.seed));
        std::fs::remove_dir_all(&cache)?;
        let (examples, size, seconds) = measured?;
        out!(
            "{}",
            json!({
                "examples": examples,
                "units": size as f64 / M::UNITS.size,
                "unit": M::UNITS.name,
                "seconds": seconds,
                "workers": args.workers,
            })
        );
        Ok(ExitCode::SUCCESS)
    }
}

impl DataArgs {
    /// Loads examples for the given time. Returns their number, the sum of their sizes, and the
    /// seconds it took.
    fn measure(&self, dataset: &impl Dataset, seed: u64) -> Result<(u64, u64, f64)> {
        let next = AtomicU64::new(0);
        let end = Duration::from_secs_f64(self.seconds.max(0.0));
        let start = Instant::now();
        let work = || -> Result<(u64, u64)> {
            let (mut examples, mut size) = (0, 0);
            while start.elapsed() < end {
                let count = next.fetch_add(1, Ordering::Relaxed);
                let index = (count % dataset.len() as u64) as usize;
                let mut rng = stream(seed, Purpose::Order, &[count]);
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

/// The operation to measure.
enum Operation {
    Step,
    Infer,
    Health,
}

/// The operation to measure, with its model.
enum Work<F: FeatureEncoder> {
    Step(TrainState<F>),
    Infer(Encoder<F>),
    Health(TrainState<F>),
}

struct Bench<'a> {
    args: &'a Args,
    operation: Operation,
    table: Table,
}

impl ModalityTask for Bench<'_> {
    type Output = ExitCode;

    fn run<M: ConvertModality>(self) -> Result<ExitCode> {
        let args = self.args;
        let recipe = Recipe::<M>::from_table(&args.recipe, self.table)?;
        ensure!(args.batch >= 1, "--batch must be at least 1");
        ensure!(args.size > 0.0, "--size must be above 0");
        if let Some(threads) = args.threads {
            ensure!(threads >= 1, "--threads must be at least 1");
            tch::set_num_threads(threads);
        }
        let device = device::choose(args.device.as_deref())?;
        let precision = recipe.model.precision;
        let train_state = |work: fn(TrainState<M::Encoder>) -> Work<M::Encoder>| -> Result<_> {
            let state = recipe.state(device)?;
            Ok((state.model.parameters().0, work(state)))
        };
        let (parameters, mut work) = match self.operation {
            Operation::Infer => {
                let (parameters, encoder) = encoder::<M>(&recipe, device)?;
                (parameters, Work::Infer(encoder))
            }
            Operation::Step => train_state(Work::Step)?,
            Operation::Health => train_state(Work::Health)?,
        };
        tch::manual_seed(recipe.seed as i64);
        let batch = M::random_batch(&recipe.features, args.batch, args.size)?.to_device(device);
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

        let mut run_once = || -> Result<f64> {
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
            synchronize(device);
            Ok(result)
        };
        let mut result = 0.0;
        for line in std::io::stdin().lock().lines() {
            line?;
            let start = Instant::now();
            result = run_once()?;
            let seconds = start.elapsed().as_secs_f64();
            out!(
                "{}",
                json!({ "seconds": seconds, "limit": matmul_flops(precision, device) / 1e9 })
            );
        }
        let peak = memory(device).ok().map(|memory| memory.peak);
        let (done, ops) = profile(&mut run_once)?;
        done?;
        out!("{}", summary(peak, result, &ops));
        Ok(ExitCode::SUCCESS)
    }
}

/// Creates the recipe's encoder as users load one. Returns its number of parameters too.
fn encoder<M: Modality>(
    recipe: &Recipe<M>,
    device: Device,
) -> Result<(usize, Encoder<M::Encoder>)> {
    let mut vars = nn::VarStore::new(device);
    let encoder = Encoder::new(&vars.root(), &recipe.features, &recipe.transformer)?;
    vars.freeze();
    let parameters = vars.variables().values().map(Tensor::numel).sum();
    Ok((parameters, encoder.with_precision(recipe.model.precision)))
}

/// Summarizes the operators of a profiled step, and the peak memory.
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

fn synchronize(device: Device) {
    if let Device::Cuda(n) = device {
        Cuda::synchronize(n as i64);
    }
}

/// Measures the floating-point operations per second of a large matrix product.
fn matmul_flops(precision: Precision, device: Device) -> f64 {
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
            synchronize(device);
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
    fn summary_separates_phases_from_operators() {
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
