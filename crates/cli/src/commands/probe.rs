//! `data2vec probe`: probes frozen features.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use data2vec_core::ConvertModality;
use data2vec_train::probe::{ProbeOptions, probe};
use data2vec_train::{device, run_dir};

use crate::commands::shared::count;
use crate::registry::{self, ModalityTask};
use crate::terminal::{Bar, out};

/// Arguments of `probe`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory with encoder.safetensors and encoder.toml
    #[arg(long)]
    encoder: PathBuf,
    /// Labelled examples: a directory, a file, or shards
    #[arg(long)]
    data: PathBuf,
    /// Labelled test examples [default: the validation split of --data, or a share of it]
    #[arg(long, conflicts_with = "test_share")]
    test: Option<PathBuf>,
    /// Share of test examples, if the data have no split of their own
    #[arg(long, default_value_t = 0.2)]
    test_share: f64,
    /// Blocks to probe: all, last, or numbers from 1 separated by commas
    #[arg(long, default_value = "all")]
    layers: String,
    /// Maximum number of training examples, and of test examples [default: all]
    #[arg(long, value_parser = count)]
    limit: Option<usize>,
    /// Number of nearest neighbours
    #[arg(long, default_value_t = 10, value_parser = count)]
    k: usize,
    /// Probe an untrained encoder of the same sizes, as a baseline
    #[arg(long)]
    random: bool,
    /// Seed of the split and of the untrained encoder
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the results to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Device: cpu, cuda or cuda:N [default: a GPU if there is one]
    #[arg(long)]
    device: Option<String>,
}

/// Probes an encoder.
pub fn run(args: &Args) -> Result<ExitCode> {
    registry::by_model(&args.encoder, args)
}

impl ModalityTask for &Args {
    type Output = ExitCode;

    fn run<M: ConvertModality>(self) -> Result<ExitCode> {
        let options = ProbeOptions {
            encoder: self.encoder.clone(),
            data: self.data.clone(),
            test: self.test.clone(),
            test_share: self.test_share,
            layers: self.layers.clone(),
            limit: self.limit,
            k: self.k,
            random: self.random,
            seed: self.seed,
            device: device::choose(self.device.as_deref())?,
        };
        let bar = Bar::default();
        let report = probe::<M>(&options, &mut |progress| bar.update(progress))?;
        bar.clear();
        out!(
            "{} encoder, {} classes: {} training examples, {} test examples",
            if report.random { "untrained" } else { "trained" },
            report.classes,
            report.train_examples,
            report.test_examples
        );
        let most_frequent = 100.0 * report.most_frequent;
        out!("baseline, the most frequent class: {most_frequent:.2} % correct");
        out!();
        out!("block  kNN %  linear %");
        for layer in &report.layers {
            out!("{:>5}  {:>5.2}  {:>8.2}", layer.layer, 100.0 * layer.knn, 100.0 * layer.linear);
        }
        if let Some(path) = &self.json {
            run_dir::write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
