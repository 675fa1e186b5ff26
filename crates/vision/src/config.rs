//! How labelled images vary from one epoch to the next, and how they are looked at without.

use data2vec_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::augment::VisionDataConfig;
use crate::pixels::Pixels;
use crate::rand_augment::RandAugment;
use crate::resample::Crop;

/// How labelled images vary: what timm's `create_transform` and `Mixup` do, in that order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentConfig {
    /// Share of the image's area that a random crop has, at least and at most.
    pub crop_scale: [f64; 2],
    /// Width over height of a random crop, at least and at most; even in the logarithm.
    pub crop_ratio: [f64; 2],
    /// Chance that left and right are swapped.
    pub flip: f64,
    /// Random changes of the crop; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
    /// Chance that a part of 2 % to a third of it is replaced by noise.
    pub erasing: f64,
    /// The Beta distribution's parameter of the shares in which two images are added up; 0: never.
    pub mixup: f64,
    /// The same of the area that one image gets from another; 0: never.
    pub cutmix: f64,
    /// Chance that a batch is mixed in either way.
    pub mixup_prob: f64,
    /// Chance that it is cutmix where both are possible.
    pub switch_prob: f64,
    /// Share of each label that is spread over all classes.
    pub label_smoothing: f64,
    /// Share of an image's shorter side that is looked at without augmentation: 0.875 is 224 of 256
    /// pixels.
    pub eval_crop: f64,
}

/// Images as they are, seen whole as far as their shape allows.
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
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, reason: &str| Err(Error::config(format!("data.{key}"), reason));
        self.cropping().validate()?;
        if let Some(rand_augment) = &self.rand_augment {
            rand_augment.validate("data.rand_augment")?;
        }
        for (key, chance) in [
            ("erasing", self.erasing),
            ("mixup_prob", self.mixup_prob),
            ("switch_prob", self.switch_prob),
        ] {
            if !(0.0..=1.0).contains(&chance) {
                return bad(key, "must be a chance from 0 to 1");
            }
        }
        for (key, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if alpha != 0.0 && !(0.1..=100.0).contains(&alpha) {
                return bad(key, "must be from 0.1 to 100, or 0 for none");
            }
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return bad("label_smoothing", "must be a share below 1");
        }
        if !(0.1..=1.0).contains(&self.eval_crop) {
            return bad("eval_crop", "must be a share from 0.1 to 1");
        }
        Ok(())
    }

    /// The part that pretraining has as well.
    pub(crate) fn cropping(&self) -> VisionDataConfig {
        VisionDataConfig {
            crop_scale: self.crop_scale,
            crop_ratio: self.crop_ratio,
            flip: self.flip,
            jitter: None,
        }
    }

    /// Whether images of a batch, or their labels, are mixed: labels are shares of classes then.
    pub(crate) fn softens(&self) -> bool {
        let mixes = self.mixup_prob > 0.0 && (self.mixup > 0.0 || self.cutmix > 0.0);
        mixes || self.label_smoothing > 0.0
    }
}

impl Pixels {
    /// The middle of the image, `height` × `width` after resizing so that this is the share `crop` of
    /// the side that limits it: torchvision's `Resize` and `CenterCrop`.
    ///
    /// # Panics
    /// If the size is 0 or `crop` is not above 0 and up to 1.
    pub fn centre(&self, crop: f64, height: usize, width: usize) -> Self {
        assert!(crop > 0.0 && crop <= 1.0 && height > 0 && width > 0, "an empty image");
        let [down, across] = [height, width].map(|side| (side as f64 / crop).floor() as usize);
        // The side that limits is exact, the other one rounded down.
        let (full_height, full_width) = if down * self.width >= across * self.height {
            (down, down * self.width / self.height)
        } else {
            (across * self.height / self.width, across)
        };
        let whole = Crop { top: 0, left: 0, height: self.height, width: self.width };
        let middle = |full: usize, part: usize| ((full - part) as f64 / 2.0).round_ties_even();
        let part = Crop {
            top: middle(full_height, height) as usize,
            left: middle(full_width, width) as usize,
            height,
            width,
        };
        self.window(whole, [full_height, full_width], part)
    }
}
