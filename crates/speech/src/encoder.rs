//! Inference with a pretrained encoder: samples to features.

use std::path::Path;

use data2vec_core::data::batch::to_array;
use data2vec_core::{Encoder, EncoderConfig, EncoderOutput, Error, Precision, Result};
use ndarray::{Array2, s};
use tch::Device;

use crate::audio::SAMPLE_RATE;
use crate::config::WaveEncoderConfig;
use crate::feature::WaveEncoder;
use crate::preprocess::{can_pad, pad, prepare};

/// Maximum length of a recording in seconds: the memory of attention grows with its square.
const MAX_SECONDS: f64 = 300.0;

/// A pretrained speech encoder for inference.
#[derive(Debug)]
pub struct SpeechEncoder {
    encoder: Encoder<WaveEncoder>,
    config: EncoderConfig<WaveEncoderConfig>,
    device: Device,
}

impl SpeechEncoder {
    /// Loads an exported encoder from the directory `dir`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, or belongs to another feature encoder.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let (encoder, config) = Encoder::load(dir, device)?;
        Ok(Self { encoder, config, device })
    }

    /// Sets the precision of inference; features are always f32. bf16 is faster on hardware that
    /// supports it.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { encoder: self.encoder.with_precision(precision), ..self }
    }

    /// Returns the settings of the encoder.
    pub fn config(&self) -> &EncoderConfig<WaveEncoderConfig> {
        &self.config
    }

    /// Returns the number of transformer blocks.
    pub fn depth(&self) -> usize {
        self.config.transformer.depth
    }

    /// Returns the size of a feature vector (D).
    pub fn dim(&self) -> usize {
        self.config.transformer.dim as usize
    }

    /// Returns the features `(T, D)` of the last block for mono `samples` at 16 kHz, one row every
    /// 20 ms in the published sizes.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the samples are too few, too many or not finite.
    pub fn features(&self, samples: &[f32]) -> Result<Array2<f32>> {
        self.layers(samples)?.pop().ok_or_else(|| Error::Input("the encoder has no blocks".into()))
    }

    /// Returns the features `(T, D)` of each block, first to last, for mono `samples` at 16 kHz.
    ///
    /// # Errors
    /// Returns the errors of [`features`](Self::features).
    pub fn layers(&self, samples: &[f32]) -> Result<Vec<Array2<f32>>> {
        let hidden = self.forward(&[samples])?;
        hidden.layers.iter().map(|layer| to_array(&layer.out.squeeze_dim(0))).collect()
    }

    /// Returns the features `(T, D)` of each recording, computed in one padded batch.
    ///
    /// They equal those of [`features`](Self::features) up to rounding. Encoders with
    /// [`WaveCompat::PaddingLeaks`](crate::WaveCompat::PaddingLeaks) encode recordings of different
    /// lengths one after the other.
    ///
    /// # Errors
    /// Returns the errors of [`features`](Self::features).
    pub fn features_batch(&self, recordings: &[impl AsRef<[f32]>]) -> Result<Vec<Array2<f32>>> {
        let recordings: Vec<&[f32]> = recordings.iter().map(AsRef::as_ref).collect();
        if recordings.is_empty() {
            return Ok(Vec::new());
        }
        if !can_pad(&recordings, &self.config.features) {
            return recordings.into_iter().map(|samples| self.features(samples)).collect();
        }
        let EncoderOutput { layers, lengths, .. } = self.forward(&recordings)?;
        let last = layers.last().ok_or_else(|| Error::Input("the encoder has no blocks".into()))?;
        let row = |(row, &len): (i64, &i64)| {
            Ok(to_array(&last.out.get(row))?.slice_move(s![..len as usize, ..]))
        };
        (0..).zip(&lengths).map(row).collect()
    }

    fn forward(&self, recordings: &[&[f32]]) -> Result<EncoderOutput> {
        let prepared = recordings.iter().map(|samples| {
            let seconds = samples.len() as f64 / f64::from(SAMPLE_RATE);
            if seconds > MAX_SECONDS {
                return Err(Error::Input(format!(
                    "{seconds:.0} s are too long to encode at once; split the recording into parts \
                     of at most {MAX_SECONDS} s"
                )));
            }
            prepare(samples, &self.config.features)
        });
        let prepared = prepared.collect::<Result<Vec<_>>>()?;
        self.encoder.forward(&pad(&prepared, self.device)?)
    }
}
