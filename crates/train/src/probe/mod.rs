//! Probes of frozen features: k-NN and a linear classifier on each block's output.

pub mod online;
mod pooled;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use data2vec_core::eval::probe::{knn_accuracy, linear_probe};
use data2vec_core::{
    Encoder, EncoderConfig, FeatureEncoder, FinetuneModality, HeadTask, LabelledSource, Modality,
    OnProgress, Split, TrainState,
};
use serde::Serialize;
use tch::{Device, Kind, Tensor, nn};

use crate::metrics::Line;
use pooled::Pooled;

/// Evaluates frozen features on labelled data at every evaluation of a run.
pub trait Probe<M: Modality> {
    /// Evaluates the student.
    ///
    /// # Errors
    /// If no example is usable, or LibTorch fails.
    fn evaluate(&self, state: &TrainState<M::Encoder>) -> Result<Line>;
}

/// Options of [`probe`].
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Directory of an exported encoder.
    pub encoder: PathBuf,
    /// Labelled examples.
    pub data: PathBuf,
    /// Labelled test examples; `None`: a share of `data`.
    pub test: Option<PathBuf>,
    /// Share of test examples, if `test` is `None` and the data have no split of their own.
    pub test_share: f64,
    /// `all`, `last`, or block numbers from 1, separated by commas.
    pub layers: String,
    /// Maximum number of training and of test examples.
    pub limit: Option<usize>,
    /// Number of neighbours, at least 1.
    pub k: usize,
    /// Probes an untrained encoder of the same sizes instead.
    pub random: bool,
    /// Seed of the split and of the untrained encoder.
    pub seed: u64,
    /// Device of the encoder.
    pub device: Device,
}

impl ProbeOptions {
    /// Probes all blocks with 10 neighbours; a fifth of the examples are test examples.
    pub fn new(encoder: impl Into<PathBuf>, data: impl Into<PathBuf>, device: Device) -> Self {
        Self {
            encoder: encoder.into(),
            data: data.into(),
            test: None,
            test_share: 0.2,
            layers: "all".into(),
            limit: None,
            k: 10,
            random: false,
            seed: 1,
            device,
        }
    }
}

/// Result of [`probe`].
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    /// Directory of the encoder.
    pub encoder: PathBuf,
    /// Whether it was untrained.
    pub random: bool,
    /// Seed of the split.
    pub seed: u64,
    /// Number of neighbours.
    pub k: usize,
    /// Number of classes.
    pub classes: usize,
    /// Number of training examples.
    pub train_examples: i64,
    /// Number of test examples.
    pub test_examples: i64,
    /// Accuracy of always predicting the most frequent class of the training examples.
    pub most_frequent: f64,
    /// Accuracies, block by block.
    pub layers: Vec<LayerReport>,
}

/// Test accuracies on the output of one block.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Number of the block, from 1.
    pub layer: usize,
    /// Accuracy of k-NN.
    pub knn: f64,
    /// Accuracy of a linear classifier.
    pub linear: f64,
    /// Weight decay that the linear classifier chose on a part of the training examples.
    pub weight_decay: f64,
}

/// Probes the frozen features of an exported encoder.
///
/// # Errors
/// If the encoder or the data are unusable.
pub fn probe<M: FinetuneModality>(
    options: &ProbeOptions,
    progress: OnProgress,
) -> Result<ProbeReport> {
    let ProbeOptions { device, seed, k, random, .. } = *options;
    let (trained, config) = Encoder::<M::Encoder>::load(&options.encoder, device)?;
    let layers = parse_layers(&options.layers, config.transformer.depth)?;
    let encoder = if random { untrained(&config, seed, device)? } else { trained };
    let task = HeadTask::Classification;
    let data = M::default_data(&config, task)?;
    let open = |path: &Path, labels: Option<&[String]>, split: Split| {
        M::open_labelled(&LabelledSource {
            path,
            data: &data,
            encoder: &options.encoder,
            config: &config,
            task,
            labels,
            split,
            cache: None,
        })
    };
    let share = if options.test.is_none() { options.test_share } else { 0.0 };
    let splits = open(&options.data, None, Split { test: share, seed, ..Split::NONE })?;
    let classes = splits.labels.len();
    let test = match &options.test {
        Some(path) => open(path, Some(&splits.labels), Split::NONE)?.train,
        None => splits.test.context("--test-share: no test examples")?,
    };
    let pooled = Pooled { encoder: &encoder, layers: &layers, device };
    let limit = options.limit.unwrap_or(usize::MAX);
    ensure!(limit > 0 && k > 0, "limit and k must be at least 1");
    let mut features = |what: &str, data: M::Labelled| {
        let data = Arc::new(M::without_augmentation(data));
        pooled.of(what, &data, limit, seed, progress)
    };
    let (train, test) = (features("training", splits.train)?, features("test", test)?);
    let mut report = ProbeReport {
        encoder: options.encoder.clone(),
        random,
        seed,
        k,
        classes,
        train_examples: train[0].len(),
        test_examples: test[0].len(),
        most_frequent: most_frequent(&train[0].labels, &test[0].labels)?,
        layers: Vec::new(),
    };
    for ((&layer, train), test) in layers.iter().zip(&train).zip(&test) {
        let knn = knn_accuracy(train, Some(test), k)?;
        let linear = linear_probe(train, test, seed)?;
        let (linear, weight_decay) = (linear.accuracy, linear.weight_decay);
        report.layers.push(LayerReport { layer, knn, linear, weight_decay });
    }
    Ok(report)
}

/// Builds an encoder with the weights that pretraining starts from.
fn untrained<F: FeatureEncoder>(
    config: &EncoderConfig<F::Config>,
    seed: u64,
    device: Device,
) -> Result<Encoder<F>> {
    tch::manual_seed(seed as i64);
    let vars = nn::VarStore::new(device);
    Ok(Encoder::new(&(vars.root() / "encoder"), &config.features, &config.transformer)?)
}

/// Parses `--layers` as block numbers from 1.
fn parse_layers(layers: &str, depth: usize) -> Result<Vec<usize>> {
    match layers {
        "all" => return Ok((1..=depth).collect()),
        "last" => return Ok(vec![depth]),
        _ => {}
    }
    let number = |text: &str| text.trim().parse().ok().filter(|n| (1..=depth).contains(n));
    let numbers: Option<Vec<usize>> = layers.split(',').map(number).collect();
    numbers.with_context(|| {
        format!("--layers {layers}: must be all, last, or numbers from 1 to {depth}")
    })
}

/// Returns the share of `test` labels that equal the most frequent label of `train`.
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
    fn parses_layers() {
        assert_eq!(parse_layers("all", 3).expect("layers"), [1, 2, 3]);
        assert_eq!(parse_layers("last", 3).expect("layers"), [3]);
        assert_eq!(parse_layers("1, 3", 3).expect("layers"), [1, 3]);
        for wrong in ["0", "4", "1,,2", "first", ""] {
            let error = parse_layers(wrong, 3).unwrap_err().to_string();
            assert!(error.contains("--layers") && error.contains("1 to 3"), "{error}");
        }
    }

    #[test]
    fn most_frequent_class_is_that_of_training() {
        let (train, test) =
            (Tensor::from_slice(&[2_i64, 1, 2]), Tensor::from_slice(&[1_i64, 1, 2, 1]));
        assert_eq!(most_frequent(&train, &test).expect("a share"), 0.25);
    }
}
