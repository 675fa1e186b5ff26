//! Probes of frozen features: k-NN and a linear classifier on each block's output.

pub mod online;
mod pooled;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use data2vec_core::eval::probe::{
    LabelledFeatures, LinearProbe, knn_accuracy, linear_probe, linear_probe_as_is,
};
use data2vec_core::{
    Dataset, Encoder, EncoderConfig, FeatureEncoder, Features, FinetuneModality, HeadTask,
    LabelledSource, Modality, OnProgress, RawFeatures, Split, TrainState,
};
use serde::Serialize;
use tch::{Device, Kind, Tensor, nn};
use tracing::warn;

use crate::metrics::Line;
use pooled::{Pooled, PooledExamples, check_classes};
pub use pooled::{Pooling, Reduce};

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
    /// How tokens become one vector.
    pub pooling: Pooling,
    /// Maximum number of training and of test examples.
    pub limit: Option<usize>,
    /// Number of neighbours, at least 1.
    pub k: usize,
    /// Probes the raw input and an untrained encoder of the same sizes too.
    pub baselines: bool,
    /// Seed of the split and of the untrained encoder.
    pub seed: u64,
    /// Device of the encoder.
    pub device: Device,
}

impl ProbeOptions {
    /// Probes the mean over tokens of all blocks with 10 neighbours, and the baselines; a fifth of
    /// the examples are test examples.
    pub fn new(encoder: impl Into<PathBuf>, data: impl Into<PathBuf>, device: Device) -> Self {
        Self {
            encoder: encoder.into(),
            data: data.into(),
            test: None,
            test_share: 0.2,
            layers: "all".into(),
            pooling: Pooling::default(),
            limit: None,
            k: 10,
            baselines: true,
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
    /// Seed of the split and of the untrained encoder.
    pub seed: u64,
    /// Number of neighbours.
    pub k: usize,
    /// How tokens became one vector.
    pub pooling: Pooling,
    /// Number of classes.
    pub classes: usize,
    /// Number of training examples.
    pub train_examples: i64,
    /// Number of test examples.
    pub test_examples: i64,
    /// Accuracy of always predicting the most frequent class of the training examples.
    pub most_frequent: f64,
    /// Accuracies of the raw input; `None` without baselines, or if the modality has none.
    pub raw: Option<RawReport>,
    /// Accuracies of the untrained encoder, block by block; empty without baselines.
    pub untrained: Vec<LayerReport>,
    /// Accuracies of the encoder, block by block.
    pub layers: Vec<LayerReport>,
}

/// Test accuracies of some features.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Accuracies {
    /// Accuracy of k-NN.
    pub knn: f64,
    /// Accuracy of a linear classifier.
    pub linear: f64,
    /// Weight decay that the linear classifier chose on a part of the training examples.
    pub weight_decay: f64,
}

/// Test accuracies on features of the raw input.
#[derive(Clone, Debug, Serialize)]
pub struct RawReport {
    /// What the features are.
    pub name: &'static str,
    /// Their accuracies.
    #[serde(flatten)]
    pub accuracies: Accuracies,
}

/// Test accuracies on the output of one block.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LayerReport {
    /// Number of the block, from 1.
    pub layer: usize,
    /// Its accuracies.
    #[serde(flatten)]
    pub accuracies: Accuracies,
}

/// [`linear_probe`] or [`linear_probe_as_is`].
type FitLinear =
    fn(&LabelledFeatures, &LabelledFeatures, u64) -> data2vec_core::Result<LinearProbe>;

/// Test examples may be fewer or more than this factor times the share that was asked for, before a
/// warning.
const MAX_SHARE_FACTOR: f64 = 1.5;

/// Probes the frozen features of an exported encoder, and beside them the raw input and an untrained
/// encoder under the same protocol.
///
/// # Errors
/// If the encoder or the data are unusable.
pub fn probe<M: FinetuneModality>(
    options: &ProbeOptions,
    progress: OnProgress,
) -> Result<ProbeReport> {
    let ProbeOptions { device, seed, k, pooling, .. } = *options;
    let (encoder, config) = Encoder::<M::Encoder>::load(&options.encoder, device)?;
    let layers = parse_layers(&options.layers, config.transformer.depth)?;
    let limit = options.limit.unwrap_or(usize::MAX);
    ensure!(limit > 0 && k > 0, "limit and k must be at least 1");
    let (train_data, test_data, classes) = open::<M>(options, &config)?;
    let pool = |encoder: &Encoder<M::Encoder>, progress: OnProgress| {
        let pooled = Pooled { encoder, layers: &layers, pooling, device };
        let train = pooled.of(&train_data, limit, seed, progress).context("training examples")?;
        let test = pooled.of(&test_data, limit, seed, progress).context("test examples")?;
        anyhow::Ok([train, test])
    };
    let accuracies = |train: &LabelledFeatures, test: &LabelledFeatures, linear: FitLinear| {
        let knn = knn_accuracy(train, Some(test), k)?;
        let LinearProbe { accuracy: linear, weight_decay } = linear(train, test, seed)?;
        anyhow::Ok(Accuracies { knn, linear, weight_decay })
    };
    let reports = |[train, test]: &[PooledExamples; 2]| {
        let sides = layers.iter().zip(train.layers.iter().zip(&test.layers));
        let reports = sides.map(|(&layer, (train, test))| {
            Ok(LayerReport { layer, accuracies: accuracies(train, test, linear_probe)? })
        });
        reports.collect::<Result<Vec<_>>>()
    };
    let pooled = pool(&encoder, progress)?;
    let [train, test] = &pooled;
    let [train_labels, test_labels] = [train, test].map(|side| &side.layers[0].labels);
    let (mut raw, mut untrained) = (None, Vec::new());
    if options.baselines {
        let features = M::raw_features((&train_data, &train.indices), (&test_data, &test.indices))?;
        if let Some(RawFeatures { name, train, test }) = features {
            let labelled = |features: Tensor, labels: &Tensor| {
                LabelledFeatures::new(features.to_device(device), labels.shallow_clone())
            };
            let (train, test) = (labelled(train, train_labels)?, labelled(test, test_labels)?);
            raw = Some(RawReport {
                name,
                accuracies: accuracies(&train, &test, linear_probe_as_is)?,
            });
        }
        untrained = reports(&pool(&new_encoder::<M::Encoder>(&config, seed, device)?, progress)?)?;
    }
    Ok(ProbeReport {
        encoder: options.encoder.clone(),
        seed,
        k,
        pooling,
        classes,
        train_examples: train_labels.size()[0],
        test_examples: test_labels.size()[0],
        most_frequent: most_frequent(train_labels, test_labels)?,
        raw,
        untrained,
        layers: reports(&pooled)?,
    })
}

/// Opens training and test examples, without augmentation. Returns the number of classes too.
fn open<M: FinetuneModality>(
    options: &ProbeOptions,
    config: &EncoderConfig<Features<M>>,
) -> Result<(M::Labelled, M::Labelled, usize)> {
    let task = HeadTask::Classification;
    let data = M::default_data(config, task)?;
    let open = |path: &Path, labels: Option<&[String]>, split: Split| {
        M::open_labelled(&LabelledSource {
            path,
            data: &data,
            encoder: &options.encoder,
            config,
            task,
            labels,
            split,
            cache: None,
        })
    };
    let share = if options.test.is_none() { options.test_share } else { 0.0 };
    let splits =
        open(&options.data, None, Split { test: share, seed: options.seed, ..Split::NONE })?;
    check_classes(splits.labels.len()).with_context(|| options.data.display().to_string())?;
    let test = match &options.test {
        Some(path) => open(path, Some(&splits.labels), Split::NONE)?.train,
        None => splits.test.context("--test-share: no test examples")?,
    };
    let (train_len, test_len) = (splits.train.len() as f64, test.len() as f64);
    let actual = test_len / (train_len + test_len);
    let factor = (actual / options.test_share).max(options.test_share / actual);
    if options.test.is_none() && factor > MAX_SHARE_FACTOR {
        warn!(
            "{test_len} of {} examples are test examples: the data have a split of their own, or              classes too small to split",
            train_len + test_len
        );
    }
    let [train, test] = [splits.train, test].map(M::without_augmentation);
    Ok((train, test, splits.labels.len()))
}

/// Builds an encoder with the weights that pretraining starts from.
fn new_encoder<F: FeatureEncoder>(
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
