//! Two images become one, and so do their classes: mixup (Zhang et al. 2017) and cutmix (Yun et al.
//! 2019), as timm does it batch by batch.

use rand::{Rng, RngExt};

use crate::labelled::AugmentConfig;
use crate::noise::symmetric_beta;
use crate::resample::Crop;

/// What happens to a batch: each image meets the one that is as far from the end as it is from the
/// start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// Images stay as they are.
    Nothing,
    /// Weighted sums: of each image this share, the rest of its partner.
    Mixup(f64),
    /// A rectangle, which may be empty, comes from the partner.
    Cutmix(Crop),
}

impl AugmentConfig {
    /// What happens to a batch of images of that size.
    pub fn draw_mix(&self, height: usize, width: usize, rng: &mut impl Rng) -> Mix {
        let kinds = (self.mixup > 0.0, self.cutmix > 0.0);
        if kinds == (false, false) || rng.random::<f64>() >= self.mixup_prob {
            return Mix::Nothing;
        }
        let cut = match kinds {
            (true, true) => rng.random::<f64>() < self.switch_prob,
            (_, cut) => cut,
        };
        let alpha = if cut { self.cutmix } else { self.mixup };
        let own = symmetric_beta(alpha, rng);
        match cut {
            true => Mix::Cutmix(cut_of(own, height, width, rng)),
            false => Mix::Mixup(own),
        }
    }
}

/// A rectangle of the image's shape that leaves about the share `own` of it, around a random pixel:
/// what reaches out of the image is lost.
fn cut_of(own: f64, height: usize, width: usize, rng: &mut impl Rng) -> Crop {
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
    /// The share of each image that is its own.
    pub fn own(&self, height: usize, width: usize) -> f64 {
        match self {
            Self::Nothing => 1.0,
            Self::Mixup(own) => *own,
            Self::Cutmix(part) => 1.0 - (part.height * part.width) as f64 / (height * width) as f64,
        }
    }

    /// Mixes images of `(C, H, W)` values each, one after the other in `values`.
    pub(crate) fn apply(&self, values: &mut [f32], channels: usize, [height, width]: [usize; 2]) {
        let (plane, size) = (height * width, channels * height * width);
        let (count, mut rest) = (values.len() / size, values);
        // The first with the last, then what is between them; one in the middle stays alone.
        for _ in 0..count / 2 {
            let (first, others) = rest.split_at_mut(size);
            let (others, last) = others.split_at_mut(others.len() - size);
            match *self {
                Self::Nothing => {}
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

/// `(B, classes)`: what a mixed batch is, a row that adds up to 1 for each image. `own` of it is the
/// image's class, the rest its partner's, and of both `smoothing` goes to all classes alike.
pub(crate) fn soft_classes(batch: &[usize], classes: usize, own: f64, smoothing: f64) -> Vec<f32> {
    let everywhere = (smoothing / classes as f64) as f32;
    let mut shares = vec![everywhere; batch.len() * classes];
    let partners = batch.iter().rev();
    for ((row, &class), &partner) in shares.chunks_exact_mut(classes).zip(batch).zip(partners) {
        row[class] += ((1.0 - smoothing) * own) as f32;
        row[partner] += ((1.0 - smoothing) * (1.0 - own)) as f32;
    }
    shares
}
