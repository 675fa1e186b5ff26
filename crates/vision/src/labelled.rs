//! Images with classes, as examples for fine-tuning and evaluation.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data2vec_core::split::{Amount, stratified};
use data2vec_core::{Dataset, Error, LabelledBatch, Result, Targets};
use rand::{RngExt, rngs::StdRng};
use tch::Tensor;

use crate::erase::erase;
use crate::feature::PatchEncoderConfig;
use crate::images::{self, Images};
use crate::mixup::soft_classes;

mod config;
mod layout;

pub use config::AugmentConfig;
use layout::Listing;
pub use layout::has_sides;
pub(crate) use layout::{sorted, table_in};

/// Images with classes: `load` gives one as `(C, H, W)` values with its class, a batch is
/// `(B, C, H, W)` f32 with classes `(B)`, or shares of classes `(B, C)` where they are mixed or smoothed.
///
/// A clone, and all parts of one, share what was listed.
#[derive(Clone, Debug)]
pub struct LabelledImages {
    images: Arc<Images>,
    /// The class of each of them.
    labels: Arc<[u32]>,
    classes: Arc<[String]>,
    /// Which of them.
    chosen: Arc<[u32]>,
    config: AugmentConfig,
    features: PatchEncoderConfig,
    augment: bool,
}

/// One image of [`LabelledImages`].
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledImage {
    /// `(C, H, W)`
    pub values: Vec<f32>,
    /// Number of its class.
    pub class: usize,
}

impl LabelledImages {
    /// Lists the images at `path`, and those for validation if it has such of its own: a folder with a
    /// folder for each class; ImageNet's with one in `train` and one in `val`; a folder with a
    /// `labels.tsv` (or such a file) of `path<TAB>label` a line; IDX images with their labels beside
    /// them, and those of `t10k` for validation; or shards with a field `cls` or `label`.
    ///
    /// Images for validation are seen without augmentation.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is impossible, [`Error::Io`] or [`Error::File`] if
    /// something cannot be read, an image has no class, or there are not at least two classes.
    pub fn open(
        path: impl AsRef<Path>,
        config: &AugmentConfig,
        features: &PatchEncoderConfig,
        cache: Option<&Path>,
    ) -> Result<(Self, Option<Self>)> {
        config.validate()?;
        images::check(features)?;
        let (train, validation) = layout::sides(path.as_ref())?;
        let of = |listing: Listing| -> Result<Self> {
            Ok(Self {
                chosen: listing.images.all(),
                images: Arc::new(listing.images),
                labels: listing.labels.into(),
                classes: listing.classes.into(),
                config: config.clone(),
                features: features.clone(),
                augment: true,
            })
        };
        let train = of(Listing::read(&train, cache)?.check()?)?;
        let validation = match validation {
            Some(path) => {
                let listing = Listing::read(&path, cache)?;
                Some(of(listing)?.with_classes(&train.classes)?.without_augmentation())
            }
            None => None,
        };
        Ok((train, validation))
    }

    /// The same images with the numbers of `classes`, a fine-tuned model's.
    ///
    /// # Errors
    /// [`Error::File`] if the class of an image is not among them.
    pub fn with_classes(&self, classes: &[String]) -> Result<Self> {
        let numbers: HashMap<_, _> = classes.iter().zip(0..).collect();
        let label = |&label: &u32| {
            let name = &self.classes[label as usize];
            numbers.get(name).copied().ok_or_else(|| {
                let known = classes.iter().take(10).map(String::as_str).collect::<Vec<_>>();
                let more = if classes.len() > known.len() { ", …" } else { "" };
                let reason = format!(
                    "class `{name}` is none of the {} known ones: {}{more}",
                    classes.len(),
                    known.join(", ")
                );
                Error::file(self.images.path(), reason)
            })
        };
        let labels: Result<Vec<u32>> = self.labels.iter().map(label).collect();
        Ok(Self { labels: labels?.into(), classes: classes.into(), ..self.clone() })
    }

    /// The rest, and the share `held_out` of each class for validation, at least one of each that has
    /// two: the same for the same names and seed. Images of the second are seen without augmentation.
    ///
    /// # Errors
    /// [`Error::Config`] if one side would be empty.
    pub fn split(&self, held_out: f64, seed: u64) -> Result<(Self, Self)> {
        let (rest, held) = if held_out > 0.0 && held_out < 1.0 {
            stratified(&self.ranked(), Amount::Share(held_out), seed)
        } else {
            (Vec::new(), Vec::new())
        };
        if rest.is_empty() || held.is_empty() {
            let reason = format!(
                "{held_out} of {} images does not leave one at least on both sides",
                self.len()
            );
            return Err(Error::config("train.held_out", reason));
        }
        Ok((self.part(&rest), self.part(&held).without_augmentation()))
    }

    /// Few of each class: what a model learns from 1 % of the labels. A larger amount holds all of a
    /// smaller one's images.
    ///
    /// # Errors
    /// [`Error::Config`] if nothing would be left.
    pub fn few(&self, amount: Amount, seed: u64) -> Result<Self> {
        let possible = match amount {
            Amount::Share(share) => share > 0.0 && share <= 1.0,
            Amount::Each(count) => count > 0,
        };
        if !possible {
            let reason = format!("{amount:?} of each class is nothing to learn from");
            return Err(Error::config("label_share", reason));
        }
        if amount == Amount::Share(1.0) {
            return Ok(self.clone());
        }
        Ok(self.part(&stratified(&self.ranked(), amount, seed).1))
    }

    /// Class and identity of each image.
    fn ranked(&self) -> Vec<(u64, u64)> {
        let of =
            |&at: &u32| (u64::from(self.labels[at as usize]), self.images.identity(at as usize));
        self.chosen.iter().map(of).collect()
    }

    /// The images in these places.
    fn part(&self, places: &[usize]) -> Self {
        let chosen = places.iter().map(|&place| self.chosen[place]).collect();
        Self { chosen, ..self.clone() }
    }

    /// The same images as they are: the middle of each, as large as `eval_crop` says.
    pub fn without_augmentation(&self) -> Self {
        Self { augment: false, ..self.clone() }
    }

    /// Names of the classes, by their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The image's class.
    pub fn class(&self, index: usize) -> usize {
        self.labels[self.at(index)] as usize
    }

    /// See [`AugmentConfig::eval_crop`].
    pub(crate) fn eval_crop(&self) -> f64 {
        self.config.eval_crop
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

impl Dataset for LabelledImages {
    type Example = LabelledImage;
    type Batch = LabelledBatch;

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

    fn load(&self, index: usize, rng: &mut StdRng) -> Result<LabelledImage> {
        let (config, features, class) = (&self.config, &self.features, self.class(index));
        let pixels = self.images.read(self.at(index))?.with_channels(features.channels as usize)?;
        let [height, width] = features.image_size.map(|side| side as usize);
        if !self.augment {
            let pixels = pixels.centre(config.eval_crop, height, width);
            let values = pixels.normalized(&features.mean, &features.std, false);
            return Ok(LabelledImage { values, class });
        }
        let crop = config.cropping().crop(pixels.height(), pixels.width(), rng);
        let mut pixels = pixels.resized(crop, height, width);
        // Whether it is flipped before or after random changes, none of which knows left from right,
        // makes no difference.
        let flip = rng.random::<f64>() < config.flip;
        if let Some(rand_augment) = &config.rand_augment {
            pixels = rand_augment.apply(pixels, &features.mean_colour(), rng);
        }
        let mut values = pixels.normalized(&features.mean, &features.std, flip);
        erase(&mut values, [height, width], config.erasing, rng);
        Ok(LabelledImage { values, class })
    }

    fn collate(&self, examples: Vec<LabelledImage>, rng: &mut StdRng) -> Result<LabelledBatch> {
        let classes: Vec<usize> = examples.iter().map(|example| example.class).collect();
        let mut values =
            examples.into_iter().flat_map(|example| example.values).collect::<Vec<_>>();
        let targets = if self.augment && self.config.softens() {
            let [height, width] = self.features.image_size.map(|side| side as usize);
            let mix = self.config.draw_mix(height, width, rng);
            mix.apply(&mut values, self.features.channels as usize, [height, width]);
            let own = mix.own(height, width);
            let count = self.classes.len();
            let shares = soft_classes(&classes, count, own, self.config.label_smoothing);
            Targets::Shares(Tensor::from_slice(&shares).reshape([-1, count as i64])) // (B, C)
        } else {
            let classes: Vec<i64> = classes.iter().map(|&class| class as i64).collect();
            Targets::Classes(Tensor::from_slice(&classes)) // (B)
        };
        Ok(LabelledBatch { batch: self.features.batch(&values)?, targets })
    }
}

impl PatchEncoderConfig {
    /// The colour that is 0 after normalisation, as far as 8 bits tell.
    fn mean_colour(&self) -> Vec<u8> {
        self.mean.iter().map(|&mean| (255.0 * mean).round_ties_even() as u8).collect()
    }
}
