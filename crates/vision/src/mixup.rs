//! Mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019), one draw per batch, as in timm.

use rand::{Rng, RngExt};

use crate::config::AugmentConfig;
use crate::distributions::symmetric_beta;
use crate::resample::Crop;

/// How the images of a batch are mixed. The partner of image `i` is image `B − 1 − i`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// No mixing.
    None,
    /// Mixup with λ: λ of each image plus 1 − λ of its partner.
    Mixup(f64),
    /// CutMix: this rectangle, possibly empty, comes from the partner.
    Cutmix(Crop),
}

impl AugmentConfig {
    /// Samples how a batch of images of `height` × `width` pixels is mixed.
    pub fn sample_mix(&self, height: usize, width: usize, rng: &mut impl Rng) -> Mix {
        let enabled = (self.mixup > 0.0, self.cutmix > 0.0);
        if enabled == (false, false) || rng.random::<f64>() >= self.mixup_prob {
            return Mix::None;
        }
        let cut = match enabled {
            (true, true) => rng.random::<f64>() < self.switch_prob,
            (_, cut) => cut,
        };
        let alpha = if cut { self.cutmix } else { self.mixup };
        let own = symmetric_beta(alpha, rng);
        match cut {
            true => Mix::Cutmix(sample_cut(own, height, width, rng)),
            false => Mix::Mixup(own),
        }
    }
}

/// Samples a rectangle of the image's aspect ratio that covers about 1 − `own` of it, centered at a
/// random pixel and clipped to the image.
fn sample_cut(own: f64, height: usize, width: usize, rng: &mut impl Rng) -> Crop {
    let side = (1.0 - own).sqrt();
    let mut range = |length: usize| {
        let half = (length as f64 * side) as usize / 2;
        let middle = rng.random_range(0..length);
        (middle.saturating_sub(half), (middle + half).min(length))
    };
    let ((top, bottom), (left, right)) = (range(height), range(width));
    Crop { top, left, height: bottom - top, width: right - left }
}

impl Mix {
    /// Returns the share of an image that is its own (λ); its partner contributes the rest.
    pub fn own_share(&self, height: usize, width: usize) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Mixup(own) => *own,
            Self::Cutmix(part) => 1.0 - (part.height * part.width) as f64 / (height * width) as f64,
        }
    }

    /// Mixes a batch in place; `values` are `(B, C, H, W)`.
    pub(crate) fn apply(&self, values: &mut [f32], channels: usize, [height, width]: [usize; 2]) {
        let (plane, size) = (height * width, channels * height * width);
        let (count, mut rest) = (values.len() / size, values);
        // Pairs the outermost images first; the middle one of an odd batch is its own partner.
        for _ in 0..count / 2 {
            let (first, others) = rest.split_at_mut(size);
            let (others, last) = others.split_at_mut(others.len() - size);
            match *self {
                Self::None => {}
                Self::Mixup(own) => {
                    let own = own as f32;
                    for (a, b) in first.iter_mut().zip(last) {
                        (*a, *b) = (own * *a + (1.0 - own) * *b, own * *b + (1.0 - own) * *a);
                    }
                }
                Self::Cutmix(part) => {
                    for (a, b) in first.chunks_exact_mut(plane).zip(last.chunks_exact_mut(plane)) {
                        for row in part.top..part.top + part.height {
                            let row = row * width + part.left..row * width + part.left + part.width;
                            a[row.clone()].swap_with_slice(&mut b[row]);
                        }
                    }
                }
            }
            rest = others;
        }
    }
}

/// Returns the class probabilities `(B, classes)` of a mixed batch; each row sums to 1.
///
/// `own` is [`Mix::own_share`]; `smoothing` is distributed evenly over all classes.
pub(crate) fn soft_labels(batch: &[usize], classes: usize, own: f64, smoothing: f64) -> Vec<f32> {
    let uniform = (smoothing / classes as f64) as f32;
    let mut labels = vec![uniform; batch.len() * classes];
    let partners = batch.iter().rev();
    for ((row, &class), &partner) in labels.chunks_exact_mut(classes).zip(batch).zip(partners) {
        row[class] += ((1.0 - smoothing) * own) as f32;
        row[partner] += ((1.0 - smoothing) * (1.0 - own)) as f32;
    }
    labels
}
