//! `data2vec probe`: probes frozen features.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use data2vec_core::ConvertModality;
use data2vec_train::probe::{Accuracies, LayerReport, Pooling, ProbeOptions, ProbeReport, probe};
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
    /// Pooling of an example's tokens: mean, max, or mean:N or max:N of N parts of a sequence or
    /// N × N parts of an image, which keep where something is
    #[arg(long, default_value = "mean")]
    pool: Pooling,
    /// Leave out the baselines: the raw input (pixels, log-mel statistics, TF-IDF of words) and an
    /// untrained encoder of the same sizes
    #[arg(long)]
    no_baselines: bool,
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
            pooling: self.pool,
            baselines: !self.no_baselines,
            seed: self.seed,
            device: device::choose(self.device.as_deref())?,
        };
        let bar = Bar::default();
        let report = probe::<M>(&options, &mut |progress| bar.update(progress))?;
        bar.clear();
        print(&report);
        if let Some(path) = &self.json {
            run_dir::write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints accuracies in percent, baselines first.
fn print(report: &ProbeReport) {
    let ProbeReport { classes, train_examples, test_examples, pooling, .. } = report;
    out!(
        "{classes} classes: {train_examples} training examples, {test_examples} test examples; {pooling} over tokens"
    );
    out!();
    let mut rows = Vec::new();
    if let Some(raw) = &report.raw {
        rows.push((raw.name.to_owned(), raw.accuracies));
    }
    for (name, layers) in [("untrained encoder", &report.untrained), ("encoder", &report.layers)] {
        let row =
            |layer: &LayerReport| (format!("{name}, block {}", layer.layer), layer.accuracies);
        rows.extend(layers.iter().map(row));
    }
    let most_frequent = "most frequent class";
    let names = rows.iter().map(|(name, _)| name.len());
    let width = names.max().unwrap_or(0).max(most_frequent.len());
    out!("{:width$}  kNN %  linear %", "");
    let most = 100.0 * report.most_frequent;
    out!("{most_frequent:width$}  {most:>5.2}  {most:>8.2}");
    for (name, Accuracies { knn, linear, .. }) in rows {
        out!("{name:width$}  {:>5.2}  {:>8.2}", 100.0 * knn, 100.0 * linear);
    }
}
