//! Inference with a fine-tuned classifier: recordings to classes.

use std::path::Path;

use data2vec_core::{Error, FinetunedModel, HeadTask, Precision, Result};
use tch::{Device, Kind, Tensor};

use crate::chunking::Chunking;
use crate::feature::WaveEncoder;
use crate::preprocess::{can_pad, pad, prepare};

/// A fine-tuned classifier of recordings for inference.
///
/// ```no_run
/// use data2vec_speech::{AudioClassifier, audio};
///
/// let classifier = AudioClassifier::load("runs/commands/model", tch::Device::Cpu)?;
/// let classes = classifier.classify(&audio::read("hello.wav")?)?;
/// println!("{}: {:.0} %", classes[0].0, 100.0 * classes[0].1);
/// # Ok::<(), data2vec_speech::Error>(())
/// ```
#[derive(Debug)]
pub struct AudioClassifier {
    model: FinetunedModel<WaveEncoder>,
    device: Device,
    chunking: Chunking,
}

impl AudioClassifier {
    /// Loads a fine-tuned or imported model from the directory `dir`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, belongs to another feature encoder, or
    /// the head is not for classification.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let model = FinetunedModel::<WaveEncoder>::load(dir, device)?;
        let task = model.head_config().task;
        if task != HeadTask::Classification {
            let reason = format!("the head is for {task:?}, not for classification");
            return Err(Error::file(dir, reason));
        }
        let chunking = Chunking::new(&model.config().features);
        Ok(Self { model, device, chunking })
    }

    /// Sets the precision of inference; scores are always f32. bf16 is faster on hardware that
    /// supports it.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { model: self.model.with_precision(precision), ..self }
    }

    /// Returns the class names, in the order of the outputs.
    pub fn labels(&self) -> &[String] {
        self.model.labels()
    }

    /// Returns all classes with their probabilities for mono `samples` at 16 kHz, most probable
    /// first.
    ///
    /// Recordings of more than 30 s are split into chunks that overlap by 4 s; their probabilities
    /// are averaged, weighted by length.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the samples are too few or not finite.
    pub fn classify(&self, samples: &[f32]) -> Result<Vec<(String, f64)>> {
        let samples = prepare(samples, &self.model.config().features)?;
        let chunks = self.chunking.split(samples.len());
        let total: usize = chunks.iter().map(|chunk| chunk.samples.len()).sum();
        let mut mean = vec![0.0; self.labels().len()];
        for chunk in chunks {
            let weight = chunk.samples.len() as f64 / total as f64;
            let probabilities = self.probabilities(&[&samples[chunk.samples]])?; // (1, C)
            for (sum, probability) in
                mean.iter_mut().zip(Vec::<f64>::try_from(probabilities.flatten(0, -1))?)
            {
                *sum += probability * weight;
            }
        }
        Ok(self.model.rank_labels(mean))
    }

    /// Classifies several recordings, those of at most 30 s in one padded batch; see
    /// [`classify`](Self::classify).
    ///
    /// # Errors
    /// Returns the errors of [`classify`](Self::classify).
    pub fn classify_batch(
        &self,
        recordings: &[impl AsRef<[f32]>],
    ) -> Result<Vec<Vec<(String, f64)>>> {
        let recordings: Vec<&[f32]> = recordings.iter().map(AsRef::as_ref).collect();
        let features = &self.model.config().features;
        let single = |samples: &&[f32]| self.chunking.is_single(samples.len());
        let short: Vec<&[f32]> = recordings.iter().copied().filter(single).collect();
        if short.is_empty() || !can_pad(&short, features) {
            return recordings.into_iter().map(|samples| self.classify(samples)).collect();
        }
        let prepared = short.iter().map(|samples| prepare(samples, features));
        let probabilities = self.probabilities(&prepared.collect::<Result<Vec<_>>>()?)?; // (B, C)
        let mut rows = 0..;
        let rank = |samples: &&[f32]| match single(samples).then(|| rows.next()).flatten() {
            Some(row) => Ok(self.model.rank_labels(Vec::<f64>::try_from(probabilities.get(row))?)),
            None => self.classify(samples),
        };
        recordings.iter().map(rank).collect()
    }

    /// Returns the probabilities `(B, C)` of prepared recordings.
    fn probabilities(&self, recordings: &[impl AsRef<[f32]>]) -> Result<Tensor> {
        let scores = self.model.forward(&pad(recordings, self.device)?)?.0;
        Ok(scores.softmax(-1, Kind::Double))
    }
}
