//! Inference with a pretrained encoder: images to features.

use std::path::Path;

use data2vec_core::data::batch::to_array;
use data2vec_core::{Encoder, EncoderConfig, EncoderOutput, Error, Precision, Result};
use ndarray::Array2;
use tch::{Device, Kind};

use crate::config::PatchEncoderConfig;
use crate::feature::PatchEncoder;
use crate::pixels::Pixels;

/// A pretrained image encoder for inference.
#[derive(Debug)]
pub struct VisionEncoder {
    encoder: Encoder<PatchEncoder>,
    config: EncoderConfig<PatchEncoderConfig>,
    device: Device,
}

impl VisionEncoder {
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
    pub fn config(&self) -> &EncoderConfig<PatchEncoderConfig> {
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

    /// Returns the features `(T, D)` of the last block, one row per patch, in row-major order.
    ///
    /// The encoder sees the largest center crop of its aspect ratio, resized to its image size.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the encoder's images have neither 1 nor 3 channels.
    pub fn features(&self, image: &Pixels) -> Result<Array2<f32>> {
        self.layers(image)?.pop().ok_or_else(|| Error::Input("the encoder has no blocks".into()))
    }

    /// Returns the features `(T, D)` of each block, first to last.
    ///
    /// # Errors
    /// Returns the errors of [`features`](Self::features).
    pub fn layers(&self, image: &Pixels) -> Result<Vec<Array2<f32>>> {
        let hidden = self.forward(std::slice::from_ref(image))?;
        hidden.layers.iter().map(|layer| to_array(&layer.out.squeeze_dim(0))).collect()
    }

    /// Returns the features `(T, D)` of each image, computed in one batch.
    ///
    /// They equal those of [`features`](Self::features) up to rounding.
    ///
    /// # Errors
    /// Returns the errors of [`features`](Self::features).
    pub fn features_batch(&self, images: &[Pixels]) -> Result<Vec<Array2<f32>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let x = self.forward(images)?.x; // (B, T, D)
        (0..x.size()[0]).map(|row| to_array(&x.get(row))).collect()
    }

    /// Returns the mean of each image's features, `(B, D)`.
    ///
    /// # Errors
    /// Returns the errors of [`features`](Self::features), and [`Error::Input`] if `images` is
    /// empty.
    pub fn embed(&self, images: &[Pixels]) -> Result<Array2<f32>> {
        to_array(&self.forward(images)?.x.mean_dim(&[1_i64][..], false, Kind::Float))
    }

    fn forward(&self, images: &[Pixels]) -> Result<EncoderOutput> {
        let features = &self.config.features;
        let mut values = Vec::new();
        for image in images {
            let image = image.clone().with_channels(features.channels as usize)?;
            values.extend(features.prepare(&image));
        }
        self.encoder.forward(&features.batch(&values)?.to_device(self.device))
    }
}
