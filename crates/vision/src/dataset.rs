//! Images as examples for pretraining.

use std::path::Path;
use std::sync::Arc;

use data2vec_core::data::split::empty_side;
use data2vec_core::random::{Purpose, seed_for};
use data2vec_core::{Batch, Dataset, Result};
use rand::{RngExt, rngs::StdRng};

use crate::config::{PatchEncoderConfig, VisionDataConfig};
use crate::listing::Images;
use crate::pixels::Pixels;

/// Unlabelled images: an example is `(C, H, W)` values, a batch `(B, C, H, W)` f32.
///
/// Clones and both sides of a [`split`](Self::split) share one listing.
#[derive(Clone, Debug)]
pub struct VisionDataset {
    images: Arc<Images>,
    /// Indices into `images`.
    chosen: Arc<[u32]>,
    config: VisionDataConfig,
    features: PatchEncoderConfig,
    augment: bool,
}

impl VisionDataset {
    /// Lists the images at `path`; see [`Images::open`] for accepted paths and for `cache`.
    ///
    /// # Errors
    /// Returns [`Error::Config`](data2vec_core::Error::Config) if a setting is invalid, and the
    /// errors of [`Images::open`].
    pub fn open(
        path: impl AsRef<Path>,
        config: &VisionDataConfig,
        features: &PatchEncoderConfig,
        cache: Option<&Path>,
    ) -> Result<Self> {
        config.validate()?;
        features.validate_for_files()?;
        let images = Images::open(path, cache)?;
        Ok(Self {
            chosen: images.indices(),
            images: Arc::new(images),
            config: config.clone(),
            features: features.clone(),
            augment: true,
        })
    }

    /// Splits off about `share` of the images: returns (train, held out).
    ///
    /// The same paths and `seed` give the same split. Held-out images are not augmented.
    ///
    /// # Errors
    /// Returns [`Error::Config`](data2vec_core::Error::Config) if one side would be empty.
    pub fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)> {
        // Depends on each image's own path only, so a growing dataset never moves an image to the
        // other side.
        let below = (share.clamp(0.0, 1.0) * 2_f64.powi(64)) as u64;
        let hash = |&chosen: &u32| {
            seed_for(seed, Purpose::Split, &[self.images.identity(chosen as usize)])
        };
        let (held_out, train): (Vec<u32>, Vec<u32>) =
            self.chosen.iter().partition(|chosen| hash(chosen) < below);
        if held_out.is_empty() || train.is_empty() {
            let hashes: Vec<u64> = self.chosen.iter().map(hash).collect();
            return Err(empty_side(share, &hashes, "images"));
        }
        let side =
            |chosen: Vec<u32>, augment| Self { chosen: chosen.into(), augment, ..self.clone() };
        Ok((side(train, self.augment), side(held_out, false)))
    }

    /// Returns the same images without augmentation: each is the largest center crop of the
    /// encoder's aspect ratio, resized.
    pub fn without_augmentation(&self) -> Self {
        Self { augment: false, ..self.clone() }
    }

    /// Reads an image in its stored size, with the encoder's number of channels.
    ///
    /// # Errors
    /// Returns the errors of [`Pixels::read`].
    pub fn read(&self, index: usize) -> Result<Pixels> {
        self.images.read(self.at(index))?.with_channels(self.features.channels as usize)
    }

    /// Returns the image's class, see [`Images::label`]; `None` if it has none.
    ///
    /// # Errors
    /// Returns [`Error::Data`](data2vec_core::Error::Data) if a shard cannot be read.
    pub fn label(&self, index: usize) -> Result<Option<usize>> {
        self.images.label(self.at(index))
    }

    /// Returns the class names, see [`Images::classes`].
    ///
    /// # Errors
    /// Returns [`Error::Data`](data2vec_core::Error::Data) if a shard cannot be read.
    pub fn classes(&self) -> Result<Vec<String>> {
        self.images.classes()
    }

    /// Returns one line for each skipped file or directory: `path: reason`.
    pub fn skipped(&self) -> Vec<String> {
        self.images.skipped()
    }

    /// Returns the image's index in the listing.
    fn at(&self, index: usize) -> usize {
        self.chosen[index] as usize
    }
}

impl Dataset for VisionDataset {
    type Example = Vec<f32>;
    type Batch = Batch;

    fn len(&self) -> usize {
        self.chosen.len()
    }

    fn size(&self, _index: usize) -> u64 {
        1
    }

    fn name(&self, index: usize) -> String {
        self.images.name(self.at(index))
    }

    fn prefetch(&self, indices: &[u32]) {
        self.images.prefetch(indices.iter().map(|&index| self.at(index as usize)));
    }

    fn load(&self, index: usize, rng: &mut StdRng) -> Result<Vec<f32>> {
        let mut pixels = self.read(index)?;
        if !self.augment {
            return Ok(self.features.prepare(&pixels));
        }
        if let Some(jitter) = self.config.jitter {
            pixels.jitter(jitter, rng);
        }
        let crop = self.config.sample_crop(pixels.height, pixels.width, rng);
        let flip = rng.random::<f64>() < self.config.flip;
        let [height, width] = self.features.image_size.map(|side| side as usize);
        let resized = pixels.resized(crop, height, width);
        Ok(resized.normalized(&self.features.mean, &self.features.std, flip))
    }

    fn collate(&self, examples: Vec<Vec<f32>>, _rng: &mut StdRng) -> Result<Batch> {
        self.features.batch(&examples.concat())
    }
}
