//! Nearest neighbours while an encoder is pretrained: whether its features tell classes, whatever the loss does.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use data2vec_core::probe::knn_accuracy;
use data2vec_core::{Encoder, EncoderConfig, HeadTask};
use tch::Device;

use super::most_frequent;
use super::pooled::Pooled;
use crate::metrics::ProbeLine;
use crate::modality::{LabelledExamples, Source, Split, Tunable};
use crate::report::tell;

/// Neighbours that vote.
const K: usize = 10;
/// Most examples to learn from, and most to tell: each evaluation computes their features again.
const LEARN: usize = 2_000;
const TELL: usize = 1_000;
/// Share of the examples to tell, where the data have none of their own for validation.
const SHARE: f64 = 0.2;

/// Labelled examples by which an encoder is probed again and again.
pub struct OnlineProbe<M: Tunable> {
    train: Arc<M::Labelled>,
    test: Arc<M::Labelled>,
    depth: usize,
    seed: u64,
}

impl<M: Tunable> OnlineProbe<M> {
    /// Of the examples at `path`, for encoders of these settings. What else belongs to them (a tokenizer) is in the
    /// folder `beside`.
    pub fn open(
        path: &Path,
        config: &EncoderConfig<<M::Encoder as data2vec_core::FeatureEncoder>::Config>,
        beside: &Path,
        seed: u64,
    ) -> Result<Self> {
        let task = HeadTask::Classification;
        let examples = M::open_labelled(&Source {
            path,
            data: &M::usual_data(config, task)?,
            encoder: beside,
            config,
            task,
            labels: None,
            split: Split { test: SHARE, seed, ..Split::NONE },
            cache: None,
        });
        let LabelledExamples { train, test, labels, summary, .. } =
            examples.with_context(|| format!("--probe {}", path.display()))?;
        let test = test.with_context(|| format!("--probe {}: nothing to tell", path.display()))?;
        ensure!(labels.len() > 1, "--probe {}: there is one class alone", path.display());
        tell!("probe: {} classes; {summary}", labels.len());
        let [train, test] = [train, test].map(|data| Arc::new(M::unvaried(data)));
        Ok(Self { train, test, depth: config.transformer.depth, seed })
    }

    /// What the last block's features tell after `step` steps.
    pub fn ask(
        &self,
        encoder: &Encoder<M::Encoder>,
        device: Device,
        step: u64,
    ) -> Result<ProbeLine> {
        let pooled = Pooled { encoder, layers: &[self.depth], device };
        let features = |what: &str, data: &Arc<M::Labelled>, limit: usize| {
            let mut features = pooled.of(what, data, limit, self.seed)?;
            features.pop().context("no layer")
        };
        let train = features("probe's", &self.train, LEARN)?;
        let test = features("probe's", &self.test, TELL)?;
        Ok(ProbeLine {
            step,
            k: K,
            accuracy: knn_accuracy(&train, Some(&test), K)?,
            chance: most_frequent(&train.labels, &test.labels)?,
        })
    }
}
