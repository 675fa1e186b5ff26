//! What an image goes through before it is an example: another cut, another side, another light each
//! time it is seen.

use data2vec_core::{Error, Result};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::pixels::{Pixels, luma};
use crate::resample::Crop;

/// Draws of a crop that may not fit before the centre is taken.
const ATTEMPTS: usize = 10;

/// How images vary from one epoch to the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionDataConfig {
    /// Share of the image's area that a random crop has, at least and at most.
    pub crop_scale: [f64; 2],
    /// Width over height of a random crop, at least and at most; even in the logarithm.
    pub crop_ratio: [f64; 2],
    /// Chance that left and right are swapped.
    pub flip: f64,
    /// By how much brightness, contrast and saturation vary: a factor from 1 − x to 1 + x each, in
    /// random order, before the crop. Absent: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<[f64; 3]>,
}

impl VisionDataConfig {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, reason: &str| Err(Error::config(format!("data.{key}"), reason));
        let [low, high] = self.crop_scale;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return bad(
                "crop_scale",
                "must be two shares above 0 and up to 1, the smaller one first",
            );
        }
        let [low, high] = self.crop_ratio;
        if !(low > 0.0 && low <= high && high.is_finite()) {
            return bad("crop_ratio", "must be two numbers above 0, the smaller one first");
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return bad("flip", "must be a chance from 0 to 1");
        }
        if self.jitter.is_some_and(|jitter| jitter.iter().any(|x| !(0.0..=1.0).contains(x))) {
            return bad("jitter", "must be three numbers from 0 to 1");
        }
        Ok(())
    }

    /// A random crop of an image of that size; the largest in the middle that fits `crop_ratio` if
    /// ten draws reach out of the image.
    pub fn crop(&self, height: usize, width: usize, rng: &mut impl Rng) -> Crop {
        let between = |[a, b]: [f64; 2], rng: &mut _| a + (b - a) * RngExt::random::<f64>(rng);
        for _ in 0..ATTEMPTS {
            let area = (height * width) as f64 * between(self.crop_scale, rng);
            let ratio = between(self.crop_ratio.map(f64::ln), rng).exp();
            let w = (area * ratio).sqrt().round_ties_even() as usize;
            let h = (area / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = rng.random_range(0..=height - h);
                let left = rng.random_range(0..=width - w);
                return Crop { top, left, height: h, width: w };
            }
        }
        let [low, high] = self.crop_ratio;
        central((width as f64 / height as f64).clamp(low, high), height, width)
    }
}

/// The largest crop in the middle whose width over height is `ratio`.
pub(crate) fn central(ratio: f64, height: usize, width: usize) -> Crop {
    let fit = |side: f64, most: usize| (side.round_ties_even() as usize).clamp(1, most);
    let crop_height = fit((width as f64 / ratio).min(height as f64), height);
    let crop_width = fit((height as f64 * ratio).min(width as f64), width);
    Crop {
        top: (height - crop_height) / 2,
        left: (width - crop_width) / 2,
        height: crop_height,
        width: crop_width,
    }
}

/// A property of an image's light that can be turned up (factor above 1) or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Light {
    /// Towards or away from black.
    Brightness,
    /// Towards or away from the mean grey.
    Contrast,
    /// Towards or away from each pixel's own grey.
    Saturation,
}

/// Of a grey and a value, 8 bits each.
const PAIRS: usize = 1 << 16;

/// From `base` (factor 0) through `value` (1) and on.
pub(crate) fn blend(base: f32, value: u8, factor: f32) -> u8 {
    // Cut off, not rounded; a cast to u8 also clamps.
    (base + factor * (f32::from(value) - base)) as u8
}

impl Pixels {
    /// Turns `light` up or down by `factor`, in place, as PIL's enhancers do.
    pub fn enhance(&mut self, light: Light, factor: f64) {
        let blended = |base: u8, value: u8| blend(f32::from(base), value, factor as f32);
        match light {
            Light::Brightness => self.map_values(|value| blended(0, value)),
            Light::Contrast => {
                let mean = self.mean_grey();
                self.map_values(|value| blended(mean, value));
            }
            Light::Saturation if self.channels == 1 => {} // grey has none
            // Where there are more pixels than pairs of a grey and a value, each pair is worked out once.
            Light::Saturation if self.values.len() > 3 * PAIRS => {
                let pairs: Vec<u8> =
                    (0..PAIRS).map(|pair| blended((pair >> 8) as u8, pair as u8)).collect();
                self.saturate(|grey, value| pairs[usize::from(grey) << 8 | usize::from(value)]);
            }
            Light::Saturation => self.saturate(blended),
        }
    }

    /// Puts `change` of each value in its place.
    fn map_values(&mut self, change: impl Fn(u8) -> u8) {
        let table: [u8; 256] = std::array::from_fn(|value| change(value as u8));
        self.values.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
    }

    /// Puts `change` of its pixel's grey and itself in the place of each value.
    fn saturate(&mut self, change: impl Fn(u8, u8) -> u8) {
        for rgb in self.values.as_chunks_mut::<3>().0 {
            let grey = luma(rgb);
            *rgb = rgb.map(|value| change(grey, value));
        }
    }

    fn mean_grey(&self) -> u8 {
        let sum = match self.channels {
            1 => self.values.iter().map(|&grey| u64::from(grey)).sum::<u64>(),
            _ => self.values.as_chunks::<3>().0.iter().map(|rgb| u64::from(luma(rgb))).sum::<u64>(),
        };
        (sum as f64 / (self.values.len() / self.channels) as f64 + 0.5) as u8
    }

    /// Brightness, contrast and saturation by random factors from 1 − x to 1 + x, in random order.
    pub fn jitter(&mut self, [brightness, contrast, saturation]: [f64; 3], rng: &mut impl Rng) {
        let mut lights = [
            (Light::Brightness, brightness),
            (Light::Contrast, contrast),
            (Light::Saturation, saturation),
        ];
        for last in (1..lights.len()).rev() {
            lights.swap(last, rng.random_range(0..=last));
        }
        for (light, most) in lights {
            self.enhance(light, 1.0 + most * (2.0 * rng.random::<f64>() - 1.0));
        }
    }

    /// `(C, H, W)` values as an encoder wants them: of 0..=1, minus `mean`, over `std`; with `flip`,
    /// left and right are swapped.
    pub(crate) fn normalized(&self, mean: &[f64], std: &[f64], flip: bool) -> Vec<f32> {
        let plane = self.width * self.height;
        let mut values = vec![0.0; plane * self.channels];
        for (channel, plane) in values.chunks_exact_mut(plane).enumerate() {
            let (mean, std) = (mean[channel] as f32, std[channel] as f32);
            let table: Vec<f32> =
                (0..=255_u8).map(|v| (f32::from(v) / 255.0 - mean) / std).collect();
            let stride = self.width * self.channels;
            for (to, from) in
                plane.chunks_exact_mut(self.width).zip(self.values.chunks_exact(stride))
            {
                let row = from.iter().skip(channel).step_by(self.channels);
                to.iter_mut().zip(row).for_each(|(to, &value)| *to = table[usize::from(value)]);
                if flip {
                    to.reverse();
                }
            }
        }
        values
    }
}
