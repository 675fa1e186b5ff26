//! Feature extraction from files, whatever the modality.

use std::path::Path;

use ndarray::Array2;
use tch::Device;

use crate::data::batch::{Batch, to_array};
use crate::error::Result;
use crate::model::encoder::{Encoder, EncoderConfig};
use crate::model::feature::FeatureEncoder;
use crate::train::precision::Precision;

/// Returns the output `(T, D)` of each block for a file.
type Layers = dyn Fn(&Path) -> Result<Vec<Array2<f32>>>;

/// An exported encoder that reads files.
pub struct Extractor {
    depth: usize,
    layers: Box<Layers>,
}

impl Extractor {
    /// Creates an extractor of `depth` blocks from a function that returns the output `(T, D)` of
    /// each block for a file.
    pub fn new(depth: usize, layers: impl Fn(&Path) -> Result<Vec<Array2<f32>>> + 'static) -> Self {
        Self { depth, layers: Box::new(layers) }
    }

    /// Loads the encoder `F` in the directory `dir`. `read` reads a file as a batch of one example.
    ///
    /// # Errors
    /// If a file is missing or damaged, or belongs to another feature encoder.
    pub fn load<F: FeatureEncoder + 'static>(
        dir: &Path,
        device: Device,
        precision: Precision,
        read: impl Fn(&EncoderConfig<F::Config>, &Path) -> Result<Batch> + 'static,
    ) -> Result<Self> {
        let (encoder, config) = Encoder::<F>::load(dir, device)?;
        let encoder = encoder.with_precision(precision);
        Ok(Self::new(config.transformer.depth, move |path| {
            let output = encoder.forward(&read(&config, path)?.to_device(device))?;
            output.layers.iter().map(|layer| to_array(&layer.out.get(0))).collect()
        }))
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Returns the output `(T, D)` of each block for the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, or is too short.
    pub fn layers(&self, path: &Path) -> Result<Vec<Array2<f32>>> {
        (self.layers)(path)
    }
}
