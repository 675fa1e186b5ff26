//! Brightness, contrast and saturation, as in PIL's `ImageEnhance`, and the color jitter made of
//! them.

use rand::{Rng, RngExt};

use crate::pixels::{Pixels, luma};

/// A property of an image that [`Pixels::enhance`] raises (factor above 1) or lowers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enhancement {
    /// Distance of each value from black.
    Brightness,
    /// Distance of each value from the image's mean gray.
    Contrast,
    /// Distance of each value from its pixel's gray.
    Saturation,
}

/// Number of (gray, value) pairs, 8 bits each.
const PAIRS: usize = 1 << 16;

/// Interpolates from `base` (factor 0) to `value` (factor 1), or extrapolates beyond it.
pub(crate) fn blend(base: f32, value: u8, factor: f32) -> u8 {
    // PIL truncates; the cast also clamps.
    (base + factor * (f32::from(value) - base)) as u8
}

impl Pixels {
    /// Changes the property `enhancement` by `factor`, in place, as PIL's `ImageEnhance` does.
    pub fn enhance(&mut self, enhancement: Enhancement, factor: f64) {
        let blended = |base: u8, value: u8| blend(f32::from(base), value, factor as f32);
        match enhancement {
            Enhancement::Brightness => self.map_values(|value| blended(0, value)),
            Enhancement::Contrast => {
                let mean = self.mean_gray();
                self.map_values(|value| blended(mean, value));
            }
            Enhancement::Saturation if self.channels == 1 => {} // gray has no saturation
            // A table is cheaper once the image has more values than there are pairs.
            Enhancement::Saturation if self.values.len() > 3 * PAIRS => {
                let pairs: Vec<u8> =
                    (0..PAIRS).map(|pair| blended((pair >> 8) as u8, pair as u8)).collect();
                self.saturate(|gray, value| pairs[usize::from(gray) << 8 | usize::from(value)]);
            }
            Enhancement::Saturation => self.saturate(blended),
        }
    }

    /// Replaces each value by `change(value)`.
    fn map_values(&mut self, change: impl Fn(u8) -> u8) {
        let table: [u8; 256] = std::array::from_fn(|value| change(value as u8));
        self.values.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
    }

    /// Replaces each value by `change(gray, value)`, with the gray of its pixel.
    fn saturate(&mut self, change: impl Fn(u8, u8) -> u8) {
        for rgb in self.values.as_chunks_mut::<3>().0 {
            let gray = luma(rgb);
            *rgb = rgb.map(|value| change(gray, value));
        }
    }

    /// Returns the mean gray, rounded.
    fn mean_gray(&self) -> u8 {
        let sum = match self.channels {
            1 => self.values.iter().map(|&gray| u64::from(gray)).sum::<u64>(),
            _ => self.values.as_chunks::<3>().0.iter().map(|rgb| u64::from(luma(rgb))).sum::<u64>(),
        };
        (sum as f64 / (self.values.len() / self.channels) as f64 + 0.5) as u8
    }

    /// Changes brightness, contrast and saturation by random factors, in random order.
    ///
    /// Each factor is uniform in `[1 − x, 1 + x]`, with `x` given in that order.
    pub fn jitter(&mut self, [brightness, contrast, saturation]: [f64; 3], rng: &mut impl Rng) {
        let mut enhancements = [
            (Enhancement::Brightness, brightness),
            (Enhancement::Contrast, contrast),
            (Enhancement::Saturation, saturation),
        ];
        for last in (1..enhancements.len()).rev() {
            enhancements.swap(last, rng.random_range(0..=last));
        }
        for (enhancement, range) in enhancements {
            self.enhance(enhancement, 1.0 + range * (2.0 * rng.random::<f64>() - 1.0));
        }
    }
}
