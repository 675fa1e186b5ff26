//! k-NN probe at every evaluation of a pretraining run: shows whether features separate classes,
//! whatever the loss does.

use std::path::Path;

use anyhow::{Context, Result};
use data2vec_core::eval::probe::knn_accuracy;
use data2vec_core::{
    FinetuneModality, HeadTask, LabelledSource, LabelledSplits, Split, TrainState,
};
use tracing::info;

use super::pooled::{Pooled, Pooling, check_classes};
use super::{Probe, most_frequent};
use crate::metrics::{Line, ProbeLine};

/// Number of neighbours.
const K: usize = 10;
/// Maximum number of training and test examples: each evaluation computes their features again.
const MAX_TRAIN: usize = 2_000;
const MAX_TEST: usize = 1_000;
/// Share of test examples, where the data have no split of their own.
const TEST_SHARE: f64 = 0.2;

/// Labelled examples that an encoder is probed with.
pub struct OnlineProbe<M: FinetuneModality> {
    train: M::Labelled,
    test: M::Labelled,
    depth: usize,
    seed: u64,
}

impl<M: FinetuneModality> OnlineProbe<M> {
    /// Opens the labelled examples at `path` for the model of `state`. `cache` holds further files
    /// of the encoder, such as a tokenizer.
    ///
    /// # Errors
    /// If there are no examples of two classes.
    pub fn open(
        path: &Path,
        state: &TrainState<M::Encoder>,
        cache: &Path,
        seed: u64,
    ) -> Result<Self> {
        let (task, config) = (HeadTask::Classification, state.model.encoder_config());
        let splits = M::open_labelled(&LabelledSource {
            path,
            data: &M::default_data(&config, task)?,
            encoder: cache,
            config: &config,
            task,
            labels: None,
            split: Split { test: TEST_SHARE, seed, ..Split::NONE },
            cache: None,
        });
        let at = || format!("--probe {}", path.display());
        let LabelledSplits { train, test, labels, summary, .. } = splits.with_context(at)?;
        let test = test.with_context(|| format!("{}: no test examples", at()))?;
        check_classes(labels.len()).with_context(at)?;
        info!("probe: {} classes; {summary}", labels.len());
        let [train, test] = [train, test].map(M::without_augmentation);
        Ok(Self { train, test, depth: config.transformer.depth, seed })
    }
}

impl<M: FinetuneModality> Probe<M> for OnlineProbe<M> {
    fn evaluate(&self, state: &TrainState<M::Encoder>) -> Result<Line> {
        let (encoder, device) = (state.model.student(), state.model.device());
        let (layers, pooling) = (&[self.depth][..], Pooling::default());
        let pooled = Pooled { encoder, layers, pooling, device };
        let features = |data: &M::Labelled, limit: usize| {
            pooled.of(data, limit, self.seed, &mut |_| {})?.layers.pop().context("no layer")
        };
        let train = features(&self.train, MAX_TRAIN).context("--probe")?;
        let test = features(&self.test, MAX_TEST).context("--probe")?;
        Ok(Line::Probe(ProbeLine {
            step: state.optim.step,
            k: K,
            accuracy: knn_accuracy(&train, Some(&test), K)?,
            chance: most_frequent(&train.labels, &test.labels)?,
        }))
    }
}
