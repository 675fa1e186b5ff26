//! A pretrained encoder, from samples to features.

use std::path::Path;

use data2vec_core::{Batch, Encoder, EncoderConfig, Error, Precision, Result};
use ndarray::{Array2, ArrayView1};
use tch::{Device, Kind, Tensor};

use crate::{WaveEncoder, WaveEncoderConfig, audio};

/// Longest recording that is encoded at once: attention's memory grows with the square of it.
const MAX_SECONDS: f64 = 300.0;

/// An exported speech encoder, ready for inference.
#[derive(Debug)]
pub struct SpeechEncoder {
    encoder: Encoder<WaveEncoder>,
    config: EncoderConfig<WaveEncoderConfig>,
    device: Device,
}

impl SpeechEncoder {
    /// Reads the folder that pretraining exported.
    ///
    /// # Errors
    /// If a file is missing or broken, or holds another kind of encoder.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let (encoder, config) = Encoder::load(dir, device)?;
        Ok(Self { encoder, config, device })
    }

    /// Computes in `precision` from now on; features are f32 in any. bf16 is the faster one on hardware that has it.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { encoder: self.encoder.in_precision(precision), ..self }
    }

    /// What it was built with.
    pub fn config(&self) -> &EncoderConfig<WaveEncoderConfig> {
        &self.config
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.config.transformer.depth
    }

    /// `(T, D)`: the last block's features of mono `samples` at 16 kHz, one vector each 20 ms in the
    /// published sizes.
    ///
    /// # Errors
    /// [`Error::Input`] for samples that are too few, too many, or not finite.
    pub fn features(&self, samples: &[f32]) -> Result<Array2<f32>> {
        self.layers(samples)?.pop().ok_or_else(|| Error::Input("an encoder without blocks".into()))
    }

    /// `(T, D)` of each block, first to last, of mono `samples` at 16 kHz.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn layers(&self, samples: &[f32]) -> Result<Vec<Array2<f32>>> {
        if let Some(at) = samples.iter().position(|x| !x.is_finite()) {
            return Err(Error::Input(format!("sample {at} is not a number")));
        }
        let seconds = samples.len() as f64 / f64::from(audio::SAMPLE_RATE);
        if seconds > MAX_SECONDS {
            return Err(Error::Input(format!(
                "{seconds:.0} s at once would take too much memory; cut it to {MAX_SECONDS} s"
            )));
        }
        let mut samples = ArrayView1::from(samples).to_vec();
        if self.config.features.normalize {
            audio::normalize(&mut samples);
        }
        let inputs = Tensor::from_slice(&samples).unsqueeze(0).to_device(self.device); // (1, S)
        let hidden = self.encoder.forward(&Batch::new(inputs)?)?;
        hidden.layers.iter().map(|layer| to_array(&layer.out.squeeze_dim(0))).collect()
    }
}

/// A tensor `(T, D)` as an array.
pub(crate) fn to_array(x: &Tensor) -> Result<Array2<f32>> {
    let (rows, columns) = x.size2()?;
    let values = Vec::<f32>::try_from(x.to_device(Device::Cpu).to_kind(Kind::Float).flatten(0, 1))?;
    Array2::from_shape_vec((rows as usize, columns as usize), values)
        .map_err(|e| Error::Input(e.to_string()))
}
