//! Mean-pooled features of labelled examples, the input of a probe.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use data2vec_core::data::loader::TOLERANCE;
use data2vec_core::eval::probe::LabelledFeatures;
use data2vec_core::model::head::mean_over_tokens;
use data2vec_core::{
    Dataset, Encoder, EncoderOutput, FeatureEncoder, LabelledBatch, Loader, LoaderConfig,
    OnProgress, Progress, Targets,
};
use tch::{Device, Kind, Tensor};
use tracing::warn;

/// Examples of the largest size in a batch.
const BATCH: u64 = 64;

/// Pools features of examples: the mean over tokens of the output of some blocks.
pub struct Pooled<'a, F> {
    /// The encoder.
    pub encoder: &'a Encoder<F>,
    /// Blocks, counted from 1.
    pub layers: &'a [usize],
    /// The device of the encoder.
    pub device: Device,
}

impl<F: FeatureEncoder> Pooled<'_, F> {
    /// Returns features of the examples of `data` for each of the layers; of at most `limit` random
    /// ones. `what` names the data in messages.
    ///
    /// # Errors
    /// If there is no usable example, or labels are not classes.
    pub fn of<D: Dataset<Batch = LabelledBatch>>(
        &self,
        what: &str,
        data: &Arc<D>,
        limit: usize,
        seed: u64,
        progress: OnProgress,
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
        let mut features: Vec<Vec<Tensor>> = self.layers.iter().map(|_| Vec::new()).collect();
        let (mut labels, mut done) = (Vec::new(), 0);
        for _ in 0..loader.batches_per_epoch() {
            let loaded = loader.next()?;
            // Some batches had no usable example.
            if loaded.epoch > 0 {
                break;
            }
            let Targets::Classes(classes) = &loaded.batch.targets else {
                bail!("a probe needs classes; the {what} examples have other labels");
            };
            let hidden = self.encoder.forward(&loaded.batch.batch.to_device(self.device))?;
            for (all, &layer) in features.iter_mut().zip(self.layers) {
                all.push(mean(&hidden, layer)); // (B, D)
            }
            labels.push(classes.to_device(self.device));
            done += loaded.examples;
            let (what, total) = ("examples", wanted as u64);
            progress(Progress { what, done: done.min(wanted) as u64, total });
            if done >= wanted {
                break;
            }
        }
        for (_, reason) in loader.bad().iter().take(10) {
            warn!("skipped {reason}");
        }
        ensure!(done > 0, "no usable {what} examples");
        let count = wanted.min(done) as i64;
        let labels = Tensor::cat(&labels, 0).narrow(0, 0, count);
        let pooled = |parts: Vec<Tensor>| {
            let features = Tensor::cat(&parts, 0).narrow(0, 0, count);
            LabelledFeatures::new(features, labels.shallow_clone())
        };
        Ok(features.into_iter().map(pooled).collect::<data2vec_core::Result<_>>()?)
    }
}

/// Returns the mean of a block's output over real tokens, `(B, D)` f32.
fn mean(hidden: &EncoderOutput, layer: usize) -> Tensor {
    let x = hidden.layers[layer - 1].out.to_kind(Kind::Float); // (B, T, D)
    mean_over_tokens(&x, hidden.padding.as_ref())
}
