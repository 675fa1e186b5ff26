//! Random erasing: part of an image becomes noise (Zhong et al. 2017), as timm's `pixel` mode.

use rand::{Rng, RngExt};

use crate::noise::normal;
use crate::resample::Crop;

/// Share of the image that is erased, at least and at most.
const AREA: [f64; 2] = [0.02, 1.0 / 3.0];
/// Height over width, at least and at most; even in the logarithm.
const ASPECT: [f64; 2] = [0.3, 1.0 / 0.3];
/// Draws of a rectangle that may not fit before the image stays as it is.
const ATTEMPTS: usize = 10;

/// A random rectangle to erase in an image of that size; `None` if none of ten fits.
pub fn erased_part(height: usize, width: usize, rng: &mut impl Rng) -> Option<Crop> {
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

/// With the chance `chance`, replaces a part of the image `(C, H, W)` by noise from N(0, 1), another
/// for each value.
pub(crate) fn erase(
    values: &mut [f32],
    [height, width]: [usize; 2],
    chance: f64,
    rng: &mut impl Rng,
) {
    if rng.random::<f64>() >= chance {
        return;
    }
    let Some(part) = erased_part(height, width, rng) else { return };
    for plane in values.chunks_exact_mut(height * width) {
        for row in plane.chunks_exact_mut(width).skip(part.top).take(part.height) {
            for value in &mut row[part.left..part.left + part.width] {
                *value = normal(rng) as f32;
            }
        }
    }
}
