//! Images as examples for pretraining.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data2vec_core::random::{Purpose, seed_for};
use data2vec_core::{Batch, Dataset, Error, Result};
use rand::{RngExt, rngs::StdRng};
use tch::Tensor;

use crate::augment::{VisionDataConfig, central};
use crate::feature::PatchEncoderConfig;
use crate::images::{self, Images};
use crate::pixels::Pixels;

/// Images on disk: `load` gives one as `(C, H, W)` values, a batch is `(B, C, H, W)` f32.
///
/// A clone, and both sides of a [`split`](Self::split), share what was listed.
#[derive(Clone, Debug)]
pub struct VisionDataset {
    images: Arc<Images>,
    /// Which of its images.
    chosen: Arc<[u32]>,
    config: VisionDataConfig,
    features: PatchEncoderConfig,
    augment: bool,
}

impl VisionDataset {
    /// Lists the images at `path` as [`Images::open`] does.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is impossible, and as [`Images::open`].
    pub fn open(
        path: impl AsRef<Path>,
        config: &VisionDataConfig,
        features: &PatchEncoderConfig,
        cache: Option<&Path>,
    ) -> Result<Self> {
        config.validate()?;
        images::check(features)?;
        let images = Images::open(path, cache)?;
        Ok(Self {
            chosen: images.all(),
            images: Arc::new(images),
            config: config.clone(),
            features: features.clone(),
            augment: true,
        })
    }

    /// The rest, and about the share `held_out` for validation: the same for the same names and seed.
    /// Images of the second are seen as they are, without augmentation.
    ///
    /// # Errors
    /// [`Error::Config`] if one side would be empty.
    pub fn split(&self, held_out: f64, seed: u64) -> Result<(Self, Self)> {
        // Whether an image is held out depends on its own name alone, so that a folder can grow
        // without moving any from one side to the other.
        let below = (held_out.clamp(0.0, 1.0) * 2_f64.powi(64)) as u64;
        let rank = |&&chosen: &&u32| {
            seed_for(seed, Purpose::Split, &[self.images.identity(chosen as usize)])
        };
        let (held, rest): (Vec<u32>, Vec<u32>) =
            self.chosen.iter().partition(|chosen| rank(chosen) < below);
        if held.is_empty() || rest.is_empty() {
            let reason = format!(
                "{held_out} holds out {} of {} images; both sides need one at least",
                held.len(),
                self.chosen.len()
            );
            return Err(Error::config("train.held_out", reason));
        }
        let side =
            |chosen: Vec<u32>, augment| Self { chosen: chosen.into(), augment, ..self.clone() };
        Ok((side(rest, self.augment), side(held, false)))
    }

    /// The same images as they are: the largest part in the middle that has the encoder's shape,
    /// resized; not flipped, not lit otherwise.
    pub fn without_augmentation(&self) -> Self {
        Self { augment: false, ..self.clone() }
    }

    /// One image as it is on disk, grey or in colour as the encoder wants it.
    ///
    /// # Errors
    /// As [`Pixels::read`].
    pub fn read(&self, index: usize) -> Result<Pixels> {
        self.images.read(self.at(index))?.with_channels(self.features.channels as usize)
    }

    /// The image's class, as [`Images::label`] tells it. `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Data`] if a shard cannot be read.
    pub fn label(&self, index: usize) -> Result<Option<usize>> {
        self.images.label(self.at(index))
    }

    /// Names of the classes; in IDX files, their numbers.
    ///
    /// # Errors
    /// [`Error::Data`] if a shard cannot be read.
    pub fn classes(&self) -> Result<Vec<String>> {
        self.images.classes()
    }

    /// What could not be looked into, and why.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        self.images.skipped()
    }

    /// The image's number among all.
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
        let pixels = self.read(index)?;
        if !self.augment {
            return Ok(self.features.prepare(&pixels));
        }
        let mut pixels = pixels;
        if let Some(jitter) = self.config.jitter {
            pixels.jitter(jitter, rng);
        }
        let crop = self.config.crop(pixels.height, pixels.width, rng);
        let flip = rng.random::<f64>() < self.config.flip;
        let [height, width] = self.features.image_size.map(|side| side as usize);
        let resized = pixels.resized(crop, height, width);
        Ok(resized.normalized(&self.features.mean, &self.features.std, flip))
    }

    fn collate(&self, examples: Vec<Vec<f32>>, _rng: &mut StdRng) -> Result<Batch> {
        self.features.batch(&examples.concat())
    }
}

impl PatchEncoderConfig {
    /// A batch `(B, C, H, W)` of images, one after the other in `values`.
    pub(crate) fn batch(&self, values: &[f32]) -> Result<Batch> {
        let [height, width] = self.image_size;
        let size = self.channels * height * width;
        if values.len() as i64 % size != 0 {
            let reason = format!("{} values are no images of {size}", values.len());
            return Err(Error::Input(reason));
        }
        let count = values.len() as i64 / size;
        Batch::new(Tensor::from_slice(values).reshape([count, self.channels, height, width]))
    }

    /// `(C, H, W)` values of an image as the encoder wants it: the largest part in the middle that
    /// has its shape, resized to its size, normalised. The image has its number of channels.
    pub(crate) fn prepare(&self, pixels: &Pixels) -> Vec<f32> {
        let [height, width] = self.image_size.map(|side| side as usize);
        let crop = central(width as f64 / height as f64, pixels.height, pixels.width);
        pixels.resized(crop, height, width).normalized(&self.mean, &self.std, false)
    }
}
