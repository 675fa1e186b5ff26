//! One vector for each labelled example: what a probe looks at.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use data2vec_core::head::mean_over_tokens;
use data2vec_core::loader::TOLERANCE;
use data2vec_core::probe::LabelledFeatures;
use data2vec_core::{
    Dataset, Encoder, FeatureEncoder, Hidden, LabelledBatch, Loader, LoaderConfig, Targets,
};
use indicatif::ProgressBar;
use tch::{Device, Kind, Tensor};

use crate::report::note;

/// Examples of the largest size that go through an encoder at once.
const BATCH: u64 = 64;

/// Features of whole examples: the mean over tokens of some blocks' output.
pub struct Pooled<'a, F> {
    /// What makes them.
    pub encoder: &'a Encoder<F>,
    /// From 1 on.
    pub layers: &'a [usize],
    /// Where the encoder is.
    pub device: Device,
}

impl<F: FeatureEncoder> Pooled<'_, F> {
    /// For each of the layers, those of the examples of `data`, or of random ones if there are more than
    /// `limit`.
    pub fn of<D: Dataset<Batch = LabelledBatch>>(
        &self,
        what: &str,
        data: &Arc<D>,
        limit: usize,
        seed: u64,
    ) -> Result<Vec<LabelledFeatures>> {
        let wanted = data.len().min(limit);
        ensure!(wanted > 0, "no {what} examples");
        let largest = (0..data.len()).map(|index| data.size(index)).max().unwrap_or(1);
        let config = LoaderConfig {
            budget: largest.saturating_mul(BATCH),
            max_examples: None,
            workers: 1,
            queue: 2,
            seed,
            max_bad: usize::MAX,
            tolerance: TOLERANCE,
        };
        let mut loader = Loader::new(data.clone(), config, 0)?;
        let bar = ProgressBar::new(wanted as u64);
        let mut features: Vec<Vec<Tensor>> = self.layers.iter().map(|_| Vec::new()).collect();
        let (mut labels, mut done) = (Vec::new(), 0);
        for _ in 0..loader.batches_per_epoch() {
            let loaded = loader.next()?;
            // After batches of which nothing was of use.
            if loaded.epoch > 0 {
                break;
            }
            let Targets::Classes(classes) = &loaded.batch.targets else {
                bail!("a probe tells classes; the {what} examples have other labels");
            };
            let hidden = self.encoder.forward(&loaded.batch.batch.to_device(self.device))?;
            for (all, &layer) in features.iter_mut().zip(self.layers) {
                all.push(mean(&hidden, layer)); // (B, D)
            }
            labels.push(classes.to_device(self.device));
            done += loaded.examples;
            bar.set_position(done as u64);
            if done >= wanted {
                break;
            }
        }
        bar.finish_and_clear();
        for (_, reason) in loader.bad().iter().take(10) {
            note(format!("skipped {reason}"));
        }
        ensure!(done > 0, "no usable {what} examples");
        let count = wanted.min(done) as i64;
        let labels = Tensor::cat(&labels, 0).narrow(0, 0, count);
        let whole = |parts: Vec<Tensor>| {
            let features = Tensor::cat(&parts, 0).narrow(0, 0, count);
            LabelledFeatures::new(features, labels.shallow_clone())
        };
        Ok(features.into_iter().map(whole).collect::<data2vec_core::Result<_>>()?)
    }
}

/// `(B, D)` f32: the mean of a block's output over real tokens.
fn mean(hidden: &Hidden, layer: usize) -> Tensor {
    let x = hidden.layers[layer - 1].out.to_kind(Kind::Float); // (B, T, D)
    mean_over_tokens(&x, hidden.padding.as_ref())
}
