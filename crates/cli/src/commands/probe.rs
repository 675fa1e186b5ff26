//! `data2vec probe`: how much an encoder's features tell of classes without being trained for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use data2vec_core::probe::{LabelledFeatures, knn_accuracy, linear_probe};
use data2vec_core::{Encoder, EncoderConfig, FeatureEncoder, HeadTask};
use serde::Serialize;
use tch::{Device, Kind, Tensor, nn};

use crate::device;
use crate::modality::{ModelTask, Source, Split, Tunable, with_model};
use crate::report::out;
use pooled::Pooled;

mod online;
mod pooled;

pub use online::OnlineProbe;

/// What `probe` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folder with encoder.safetensors and encoder.toml
    #[arg(long)]
    encoder: PathBuf,
    /// Labelled examples to learn from: a folder for each class, a table of labels, shards, …
    #[arg(long)]
    data: PathBuf,
    /// Labelled examples to tell; without it those for validation that --data has of its own, or a
    /// share of it
    #[arg(long, conflicts_with = "test_share")]
    test: Option<PathBuf>,
    /// Share of --data to tell, where it has none for validation
    #[arg(long, default_value_t = 0.2)]
    test_share: f64,
    /// Which blocks' output: all, last, or numbers from 1 on with commas between them
    #[arg(long, default_value = "all")]
    layers: String,
    /// Most examples to learn from, and most to tell
    #[arg(long)]
    limit: Option<usize>,
    /// Neighbours that vote
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// The same for an untrained encoder of the same sizes
    #[arg(long)]
    random: bool,
    /// Of which examples are told, and of the untrained encoder's weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// cpu, cuda or cuda:N; without it: a GPU if there is one
    #[arg(long)]
    device: Option<String>,
}

/// What `--json` holds.
#[derive(Serialize)]
struct Report {
    encoder: PathBuf,
    random: bool,
    seed: u64,
    k: usize,
    classes: usize,
    train_examples: i64,
    test_examples: i64,
    /// Share of the test examples that are of the class that is most frequent in training.
    most_frequent: f64,
    layers: Vec<Layer>,
}

/// Shares of the test examples that are told from a block's output.
#[derive(Serialize)]
struct Layer {
    layer: usize,
    knn: f64,
    linear: f64,
    weight_decay: f64,
}

impl Args {
    /// Probes.
    pub fn run(&self) -> Result<ExitCode> {
        ensure!(self.limit != Some(0), "--limit 0: no examples");
        ensure!(self.k > 0, "--k 0: nobody votes");
        with_model(&self.encoder, self)
    }
}

impl ModelTask for &Args {
    fn run<M: Tunable>(self) -> Result<ExitCode> {
        let device = device::choose(self.device.as_deref())?;
        let (trained, config) = Encoder::<M::Encoder>::load(&self.encoder, device)?;
        let layers = chosen(&self.layers, config.transformer.depth)?;
        let encoder = if self.random { untrained(&config, self.seed, device)? } else { trained };
        let task = HeadTask::Classification;
        let data = M::usual_data(&config, task)?;
        let open = |path: &Path, labels: Option<&[String]>, split: Split| {
            M::open_labelled(&Source {
                path,
                data: &data,
                encoder: &self.encoder,
                config: &config,
                task,
                labels,
                split,
                cache: None,
            })
        };
        let share = if self.test.is_none() { self.test_share } else { 0.0 };
        let split = Split { test: share, seed: self.seed, ..Split::NONE };
        let examples = open(&self.data, None, split)?;
        let test = match &self.test {
            Some(path) => open(path, Some(&examples.labels), Split::NONE)?.train,
            None => examples.test.context("--test-share: nothing is left to tell")?,
        };
        let pooled = Pooled { encoder: &encoder, layers: &layers, device };
        let features = |what: &str, data: M::Labelled| {
            let data = Arc::new(M::unvaried(data));
            pooled.of(what, &data, self.limit.unwrap_or(usize::MAX), self.seed)
        };
        let train = features("training", examples.train)?;
        let test = features("test", test)?;
        self.tell(&layers, examples.labels.len(), &train, &test)
    }
}

impl Args {
    /// Probes each of the layers, and writes what came out.
    fn tell(
        &self,
        layers: &[usize],
        classes: usize,
        train: &[LabelledFeatures],
        test: &[LabelledFeatures],
    ) -> Result<ExitCode> {
        let mut report = Report {
            encoder: self.encoder.clone(),
            random: self.random,
            seed: self.seed,
            k: self.k,
            classes,
            train_examples: train[0].len(),
            test_examples: test[0].len(),
            most_frequent: most_frequent(&train[0].labels, &test[0].labels)?,
            layers: Vec::new(),
        };
        out!(
            "{} encoder, {classes} classes: {} examples to learn from, {} to tell",
            if self.random { "untrained" } else { "trained" },
            report.train_examples,
            report.test_examples
        );
        out!("always the most frequent class: {:.2} % right", 100.0 * report.most_frequent);
        out!();
        out!("block  kNN %  linear %");
        for ((&layer, train), test) in layers.iter().zip(train).zip(test) {
            let knn = knn_accuracy(train, Some(test), self.k)?;
            let linear = linear_probe(train, test, self.seed)?;
            out!("{layer:>5}  {:>5.2}  {:>8.2}", 100.0 * knn, 100.0 * linear.accuracy);
            let (linear, weight_decay) = (linear.accuracy, linear.weight_decay);
            report.layers.push(Layer { layer, knn, linear, weight_decay });
        }
        if let Some(path) = &self.json {
            crate::run::write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// An encoder as training would start with it.
fn untrained<F: FeatureEncoder>(
    config: &EncoderConfig<F::Config>,
    seed: u64,
    device: Device,
) -> Result<Encoder<F>> {
    tch::manual_seed(seed as i64);
    let vars = nn::VarStore::new(device);
    Ok(Encoder::new(&(vars.root() / "encoder"), &config.features, &config.transformer)?)
}

/// Numbers of blocks, from 1 on.
fn chosen(layers: &str, depth: usize) -> Result<Vec<usize>> {
    match layers {
        "all" => return Ok((1..=depth).collect()),
        "last" => return Ok(vec![depth]),
        _ => {}
    }
    let number = |text: &str| text.trim().parse().ok().filter(|n| (1..=depth).contains(n));
    let numbers: Option<Vec<usize>> = layers.split(',').map(number).collect();
    numbers.with_context(|| {
        format!("--layers {layers}: neither all nor last nor some of 1 to {depth}")
    })
}

/// The share of `test` that is right if the class that is most frequent in `train` is always said.
fn most_frequent(train: &Tensor, test: &Tensor) -> Result<f64> {
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for label in Vec::<i64>::try_from(train)? {
        *counts.entry(label).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|&(_, count)| count).map_or(0, |(label, _)| label);
    Ok(test.eq(most).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_all_or_the_last() {
        assert_eq!(chosen("all", 3).expect("layers"), [1, 2, 3]);
        assert_eq!(chosen("last", 3).expect("layers"), [3]);
        assert_eq!(chosen("1, 3", 3).expect("layers"), [1, 3]);
        for wrong in ["0", "4", "1,,2", "first", ""] {
            let error = chosen(wrong, 3).unwrap_err().to_string();
            assert!(error.contains("--layers") && error.contains("1 to 3"), "{error}");
        }
    }

    #[test]
    fn the_most_frequent_class_is_that_of_training() {
        let (train, test) =
            (Tensor::from_slice(&[2_i64, 1, 2]), Tensor::from_slice(&[1_i64, 1, 2, 1]));
        assert_eq!(most_frequent(&train, &test).expect("a share"), 0.25);
    }
}
