//! Settings of the encoder, of pretraining data and of fine-tuning data.
//!
//! Each `Default` is the published value of data2vec 2.0 Base, except for [`AugmentConfig`].

use data2vec_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::positions::Positions;
use crate::rand_augment::RandAugment;

/// Largest image side and patch side in pixels; keeps products of sizes from overflowing.
const MAX_SIDE: i64 = 1 << 16;

/// Image format and sizes of a [`PatchEncoder`](crate::PatchEncoder).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchEncoderConfig {
    /// Height and width in pixels, multiples of `patch_size`.
    pub image_size: [i64; 2],
    /// Number of channels: 3 for RGB, 1 for grayscale.
    pub channels: i64,
    /// Mean of each channel, subtracted from values in 0..=1.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, by which centered values are divided.
    pub std: Vec<f64>,
    /// Height and width of a patch in pixels; each patch becomes one token.
    pub patch_size: i64,
    /// Position encoding of the patches.
    pub positions: Positions,
}

impl Default for PatchEncoderConfig {
    fn default() -> Self {
        Self {
            image_size: [224; 2],
            channels: 3,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            patch_size: 16,
            positions: Positions::SinCos,
        }
    }
}

impl PatchEncoderConfig {
    /// Checks all settings that do not depend on the transformer.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, reason: String| Err(Error::config(format!("features.{key}"), reason));
        let patch = self.patch_size;
        if !(1..=MAX_SIDE).contains(&patch) {
            return bad("patch_size", format!("must be from 1 to {MAX_SIDE} pixels, not {patch}"));
        }
        let fits = |side: &i64| (1..=MAX_SIDE).contains(side) && side % patch == 0;
        if !self.image_size.iter().all(fits) {
            let reason = format!(
                "must be [height, width] in multiples of patch_size = {patch}, not {:?}",
                self.image_size
            );
            return bad("image_size", reason);
        }
        if !(1..=1024).contains(&self.channels) {
            return bad("channels", format!("must be from 1 to 1024, not {}", self.channels));
        }
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() as i64 != self.channels || values.iter().any(|v| !v.is_finite()) {
                let reason = format!("must be {} numbers, one per channel", self.channels);
                return bad(key, reason);
            }
        }
        if self.std.iter().any(|&std| std <= 0.0) {
            return bad("std", "must be above 0; use 1 to leave values unscaled".into());
        }
        Ok(())
    }

    /// Checks all settings of an encoder that reads image files, which have 1 or 3 channels.
    pub(crate) fn validate_for_files(&self) -> Result<()> {
        self.validate()?;
        if ![1, 3].contains(&self.channels) {
            let reason = format!("must be 1 or 3 for image files, not {}", self.channels);
            return Err(Error::config("features.channels", reason));
        }
        Ok(())
    }

    /// Returns the number of patch rows and patch columns of a valid config.
    pub fn grid(&self) -> [i64; 2] {
        self.image_size.map(|side| side / self.patch_size.max(1))
    }
}

/// Augmentation of images during pretraining.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionDataConfig {
    /// Smallest and largest area of a random crop, as a share of the image's area.
    pub crop_scale: [f64; 2],
    /// Smallest and largest aspect ratio (width / height) of a random crop; log-uniform.
    pub crop_ratio: [f64; 2],
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Color jitter before the crop: brightness, contrast and saturation change by factors in
    /// `[1 − x, 1 + x]`, in random order. Absent: no jitter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<[f64; 3]>,
}

impl Default for VisionDataConfig {
    fn default() -> Self {
        Self { crop_scale: [0.2, 1.0], crop_ratio: [3.0 / 4.0, 4.0 / 3.0], flip: 0.5, jitter: None }
    }
}

impl VisionDataConfig {
    /// Checks all settings.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, reason: &str| Err(Error::config(format!("data.{key}"), reason));
        let [low, high] = self.crop_scale;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return bad("crop_scale", "must be two numbers in (0, 1], the smaller one first");
        }
        let [low, high] = self.crop_ratio;
        if !(low > 0.0 && low <= high && high.is_finite()) {
            return bad("crop_ratio", "must be two numbers above 0, the smaller one first");
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return bad("flip", "must be a probability from 0 to 1");
        }
        if self.jitter.is_some_and(|jitter| jitter.iter().any(|x| !(0.0..=1.0).contains(x))) {
            return bad("jitter", "must be three numbers from 0 to 1");
        }
        Ok(())
    }
}

/// Augmentation of labelled images: timm's `create_transform` and `Mixup`, in that order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentConfig {
    /// Smallest and largest area of a random crop, as a share of the image's area.
    pub crop_scale: [f64; 2],
    /// Smallest and largest aspect ratio (width / height) of a random crop; log-uniform.
    pub crop_ratio: [f64; 2],
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// RandAugment, applied to the crop; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
    /// Probability of random erasing (2 % to 1/3 of the area becomes noise).
    pub erasing: f64,
    /// Beta distribution parameter α of mixup; 0 disables mixup.
    pub mixup: f64,
    /// Beta distribution parameter α of CutMix; 0 disables CutMix.
    pub cutmix: f64,
    /// Probability that a batch is mixed, by mixup or CutMix.
    pub mixup_prob: f64,
    /// Probability of CutMix where both are enabled.
    pub switch_prob: f64,
    /// Label smoothing: share of each label that is distributed evenly over all classes.
    pub label_smoothing: f64,
    /// Center crop without augmentation, as a share of the shorter side: 0.875 is 224 of 256
    /// pixels.
    pub eval_crop: f64,
}

/// No augmentation.
impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            crop_scale: [1.0; 2],
            crop_ratio: [1.0; 2],
            flip: 0.0,
            rand_augment: None,
            erasing: 0.0,
            mixup: 0.0,
            cutmix: 0.0,
            mixup_prob: 0.0,
            switch_prob: 0.0,
            label_smoothing: 0.0,
            eval_crop: 1.0,
        }
    }
}

impl AugmentConfig {
    /// Checks all settings.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, reason: &str| Err(Error::config(format!("data.{key}"), reason));
        self.cropping().validate()?;
        if let Some(rand_augment) = &self.rand_augment {
            rand_augment.validate("data.rand_augment")?;
        }
        for (key, probability) in [
            ("erasing", self.erasing),
            ("mixup_prob", self.mixup_prob),
            ("switch_prob", self.switch_prob),
        ] {
            if !(0.0..=1.0).contains(&probability) {
                return bad(key, "must be a probability from 0 to 1");
            }
        }
        for (key, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if alpha != 0.0 && !(0.1..=100.0).contains(&alpha) {
                return bad(key, "must be from 0.1 to 100, or 0 to disable it");
            }
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return bad("label_smoothing", "must be at least 0 and below 1");
        }
        if !(0.1..=1.0).contains(&self.eval_crop) {
            return bad("eval_crop", "must be from 0.1 to 1");
        }
        Ok(())
    }

    /// Returns the settings shared with pretraining.
    pub(crate) fn cropping(&self) -> VisionDataConfig {
        VisionDataConfig {
            crop_scale: self.crop_scale,
            crop_ratio: self.crop_ratio,
            flip: self.flip,
            jitter: None,
        }
    }

    /// Returns true if labels become distributions over classes: by mixing or label smoothing.
    pub(crate) fn has_soft_labels(&self) -> bool {
        let mixes = self.mixup_prob > 0.0 && (self.mixup > 0.0 || self.cutmix > 0.0);
        mixes || self.label_smoothing > 0.0
    }
}
