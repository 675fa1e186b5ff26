//! Random erasing (Zhong et al. 2017): a rectangle of the image becomes noise, as in timm's `pixel`
//! mode.

use rand::{Rng, RngExt};

use crate::distributions::normal;
use crate::resample::Crop;

/// Smallest and largest erased share of the image's area.
const AREA: [f64; 2] = [0.02, 1.0 / 3.0];
/// Smallest and largest aspect ratio (height / width); log-uniform.
const ASPECT: [f64; 2] = [0.3, 1.0 / 0.3];
/// Number of random rectangles tried before the image is left unchanged.
const ATTEMPTS: usize = 10;

/// Samples a rectangle to erase from an image of `height` × `width` pixels; `None` if none of ten
/// samples fits.
pub fn sample_erase_box(height: usize, width: usize, rng: &mut impl Rng) -> Option<Crop> {
    let between = |[a, b]: [f64; 2], rng: &mut _| a + (b - a) * RngExt::random::<f64>(rng);
    for _ in 0..ATTEMPTS {
        let area = (height * width) as f64 * between(AREA, rng);
        let aspect = between(ASPECT.map(f64::ln), rng).exp();
        let h = (area * aspect).sqrt().round_ties_even() as usize;
        let w = (area / aspect).sqrt().round_ties_even() as usize;
        if h < height && w < width {
            let top = rng.random_range(0..=height - h);
            let left = rng.random_range(0..=width - w);
            return Some(Crop { top, left, height: h, width: w });
        }
    }
    None
}

/// Erases a random rectangle of the image `(C, H, W)` with the given `probability`; each erased
/// value is drawn from N(0, 1).
pub(crate) fn erase(
    values: &mut [f32],
    [height, width]: [usize; 2],
    probability: f64,
    rng: &mut impl Rng,
) {
    if rng.random::<f64>() >= probability {
        return;
    }
    let Some(part) = sample_erase_box(height, width, rng) else { return };
    for plane in values.chunks_exact_mut(height * width) {
        for row in plane.chunks_exact_mut(width).skip(part.top).take(part.height) {
            for value in &mut row[part.left..part.left + part.width] {
                *value = normal(rng) as f32;
            }
        }
    }
}
