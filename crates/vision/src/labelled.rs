//! Images with classes, as examples for fine-tuning and evaluation.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use data2vec_core::data::split::{Amount, stratified_split};
use data2vec_core::modality::finetune::Splittable;
use data2vec_core::{Dataset, Error, LabelledBatch, Result, Targets};
use rand::{RngExt, rngs::StdRng};
use tch::Tensor;

use crate::config::{AugmentConfig, PatchEncoderConfig};
use crate::erase::erase;
use crate::listing::Images;
use crate::mixup::soft_labels;

mod listing;

use listing::Listing;
pub use listing::has_validation_split;

/// Images with classes.
///
/// An example is `(C, H, W)` values and a class. A batch is `(B, C, H, W)` f32 with classes `(B)`,
/// or with class probabilities `(B, classes)` if mixing or label smoothing is on. Clones and all
/// parts share one listing.
#[derive(Clone, Debug)]
pub struct LabelledImages {
    images: Arc<Images>,
    /// Class of each image in `images`.
    labels: Arc<[u32]>,
    classes: Arc<[String]>,
    /// Indices into `images`.
    chosen: Arc<[u32]>,
    config: AugmentConfig,
    features: PatchEncoderConfig,
    augment: bool,
}

/// An example of [`LabelledImages`].
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledImage {
    /// `(C, H, W)`
    pub values: Vec<f32>,
    /// Index of the class.
    pub class: usize,
}

impl LabelledImages {
    /// Lists the images at `path`; returns (train, validation), where validation is present only
    /// if `path` has its own.
    ///
    /// `path` is one of: a directory with one directory per class; a directory with `train` and
    /// `val`, as ImageNet has; a directory with a `labels.tsv` (or such a file) of
    /// `path<TAB>label` lines; IDX images with their labels, and `t10k` for validation; shards
    /// with a field `cls` or `label`. Validation images are not augmented.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if a setting is invalid, [`Error::Io`] or [`Error::File`] if a
    /// file cannot be read, an image has no class, or there are fewer than two classes.
    pub fn open(
        path: impl AsRef<Path>,
        config: &AugmentConfig,
        features: &PatchEncoderConfig,
        cache: Option<&Path>,
    ) -> Result<(Self, Option<Self>)> {
        config.validate()?;
        features.validate_for_files()?;
        let (train, validation) = listing::train_and_validation(path.as_ref())?;
        let from_listing = |listing: Listing| Self {
            chosen: listing.images.indices(),
            images: Arc::new(listing.images),
            labels: listing.labels.into(),
            classes: listing.classes.into(),
            config: config.clone(),
            features: features.clone(),
            augment: true,
        };
        let train = from_listing(Listing::open(&train, cache)?.check()?);
        let validation = match validation {
            Some(path) => {
                let validation = from_listing(Listing::open(&path, cache)?);
                Some(validation.with_classes(&train.classes)?.without_augmentation())
            }
            None => None,
        };
        Ok((train, validation))
    }

    /// Returns the same images, labelled by index into `classes`, e.g. those of a fine-tuned model.
    ///
    /// # Errors
    /// Returns [`Error::File`] if the class of an image is not in `classes`.
    pub fn with_classes(&self, classes: &[String]) -> Result<Self> {
        let indices: HashMap<_, _> = classes.iter().zip(0..).collect();
        let label = |&label: &u32| {
            let name = &self.classes[label as usize];
            indices.get(name).copied().ok_or_else(|| {
                let known = classes.iter().take(10).map(String::as_str).collect::<Vec<_>>();
                let more = if classes.len() > known.len() { ", …" } else { "" };
                let reason = format!(
                    "class `{name}` is not one of the {} known classes: {}{more}",
                    classes.len(),
                    known.join(", ")
                );
                Error::file(self.images.path(), reason)
            })
        };
        let labels: Result<Vec<u32>> = self.labels.iter().map(label).collect();
        Ok(Self { labels: labels?.into(), classes: classes.into(), ..self.clone() })
    }

    /// Returns class and identity of each image, as [`stratified_split`] expects them.
    fn classes_and_keys(&self) -> Vec<(u64, u64)> {
        let entry =
            |&at: &u32| (u64::from(self.labels[at as usize]), self.images.identity(at as usize));
        self.chosen.iter().map(entry).collect()
    }

    /// Returns the examples at `indices`.
    fn select(&self, indices: &[usize]) -> Self {
        let chosen = indices.iter().map(|&index| self.chosen[index]).collect();
        Self { chosen, ..self.clone() }
    }

    /// Returns the same images without augmentation: center crops of size
    /// [`AugmentConfig::eval_crop`].
    pub fn without_augmentation(&self) -> Self {
        Self { augment: false, ..self.clone() }
    }

    /// Returns the class names, in the order of class indices.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns the class of an image as an index into [`classes`](Self::classes).
    pub fn class(&self, index: usize) -> usize {
        self.labels[self.at(index)] as usize
    }

    /// Returns [`AugmentConfig::eval_crop`].
    pub(crate) fn eval_crop(&self) -> f64 {
        self.config.eval_crop
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

impl Splittable for LabelledImages {
    /// Splits off the given `share` of each class, at least one image where a class has two:
    /// returns (train, held out).
    ///
    /// The same paths and `seed` give the same split. Held-out images are not augmented.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if one side would be empty.
    fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)> {
        let (train, held_out) = if share > 0.0 && share < 1.0 {
            stratified_split(&self.classes_and_keys(), Amount::Share(share), seed)
        } else {
            (Vec::new(), Vec::new())
        };
        if train.is_empty() || held_out.is_empty() {
            let reason = format!(
                "{share} of {} images leaves one side empty; both sides need at least one",
                self.len()
            );
            return Err(Error::config("train.held_out", reason));
        }
        Ok((self.select(&train), self.select(&held_out).without_augmentation()))
    }

    /// Returns a subset of each class, e.g. 1 % of the labels. Larger amounts with the same `seed`
    /// contain smaller ones.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if the subset would be empty.
    fn subsample(&self, amount: Amount, seed: u64) -> Result<Self> {
        let valid = match amount {
            Amount::Share(share) => share > 0.0 && share <= 1.0,
            Amount::Each(count) => count > 0,
        };
        if !valid {
            let reason = format!("{amount:?} of each class leaves no images");
            return Err(Error::config("label_share", reason));
        }
        if amount == Amount::Share(1.0) {
            return Ok(self.clone());
        }
        Ok(self.select(&stratified_split(&self.classes_and_keys(), amount, seed).1))
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
            let pixels = pixels.center_crop(config.eval_crop, height, width);
            let values = pixels.normalized(&features.mean, &features.std, false);
            return Ok(LabelledImage { values, class });
        }
        let crop = config.cropping().sample_crop(pixels.height(), pixels.width(), rng);
        let mut pixels = pixels.resized(crop, height, width);
        // timm flips before RandAugment. Its operations are symmetric, so flipping later is
        // equivalent, and normalization flips for free.
        let flip = rng.random::<f64>() < config.flip;
        if let Some(rand_augment) = &config.rand_augment {
            pixels = rand_augment.apply(pixels, &features.mean_color(), rng);
        }
        let mut values = pixels.normalized(&features.mean, &features.std, flip);
        erase(&mut values, [height, width], config.erasing, rng);
        Ok(LabelledImage { values, class })
    }

    fn collate(&self, examples: Vec<LabelledImage>, rng: &mut StdRng) -> Result<LabelledBatch> {
        let classes: Vec<usize> = examples.iter().map(|example| example.class).collect();
        let mut values =
            examples.into_iter().flat_map(|example| example.values).collect::<Vec<_>>();
        let targets = if self.augment && self.config.has_soft_labels() {
            let [height, width] = self.features.image_size.map(|side| side as usize);
            let mix = self.config.sample_mix(height, width, rng);
            mix.apply(&mut values, self.features.channels as usize, [height, width]);
            let own = mix.own_share(height, width);
            let count = self.classes.len();
            let labels = soft_labels(&classes, count, own, self.config.label_smoothing);
            Targets::SoftLabels(Tensor::from_slice(&labels).reshape([-1, count as i64])) // (B, C)
        } else {
            let classes: Vec<i64> = classes.iter().map(|&class| class as i64).collect();
            Targets::Classes(Tensor::from_slice(&classes)) // (B)
        };
        Ok(LabelledBatch { batch: self.features.batch(&values)?, targets })
    }
}
