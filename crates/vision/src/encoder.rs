//! A pretrained encoder, from pixels to features.

use std::path::Path;

use data2vec_core::{Encoder, EncoderConfig, Error, Hidden, Precision, Result};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

use crate::{PatchEncoder, PatchEncoderConfig, Pixels};

/// An exported vision encoder, ready for inference.
#[derive(Debug)]
pub struct VisionEncoder {
    encoder: Encoder<PatchEncoder>,
    config: EncoderConfig<PatchEncoderConfig>,
    device: Device,
}

impl VisionEncoder {
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
    pub fn config(&self) -> &EncoderConfig<PatchEncoderConfig> {
        &self.config
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.config.transformer.depth
    }

    /// `(T, D)`: the last block's features, one vector a patch, row by row.
    ///
    /// Of the image, the largest part in the middle that has the encoder's shape is resized to its
    /// size.
    ///
    /// # Errors
    /// [`Error::Input`] if images of the encoder have neither 1 nor 3 channels.
    pub fn features(&self, image: &Pixels) -> Result<Array2<f32>> {
        self.layers(image)?.pop().ok_or_else(|| Error::Input("an encoder without blocks".into()))
    }

    /// `(T, D)` of each block, first to last.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn layers(&self, image: &Pixels) -> Result<Vec<Array2<f32>>> {
        let hidden = self.forward(std::slice::from_ref(image))?;
        hidden.layers.iter().map(|layer| to_array(&layer.out.squeeze_dim(0))).collect()
    }

    /// `(B, D)`: one vector for each image, the mean of its patches' features.
    ///
    /// # Errors
    /// As [`features`](Self::features), and if there is no image.
    pub fn embed(&self, images: &[Pixels]) -> Result<Array2<f32>> {
        to_array(&self.forward(images)?.x.mean_dim(&[1_i64][..], false, Kind::Float))
    }

    fn forward(&self, images: &[Pixels]) -> Result<Hidden> {
        let features = &self.config.features;
        let mut values = Vec::new();
        for image in images {
            let image = image.clone().with_channels(features.channels as usize)?;
            values.extend(features.prepare(&image));
        }
        self.encoder.forward(&features.batch(&values)?.to_device(self.device))
    }
}

/// A tensor `(rows, columns)` as an array.
pub(crate) fn to_array(x: &Tensor) -> Result<Array2<f32>> {
    let (rows, columns) = x.size2()?;
    let values = Vec::<f32>::try_from(x.to_device(Device::Cpu).to_kind(Kind::Float).flatten(0, 1))?;
    Array2::from_shape_vec((rows as usize, columns as usize), values)
        .map_err(|e| Error::Input(e.to_string()))
}
