//! Operations of RandAugment, bit-exact with Pillow.

use std::array;

use crate::enhance::{Enhancement, blend};
use crate::pixels::Pixels;

/// An operation on an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ImageOp {
    /// Stretches each channel to the range 0 to 255.
    AutoContrast,
    /// Equalizes the histogram of each channel.
    Equalize,
    /// Inverts all values.
    Invert,
    /// Rotates around the center, counter-clockwise, by this number of degrees.
    Rotate(f64),
    /// Keeps this number of bits of each value, 0 to 8.
    Posterize(u32),
    /// Inverts values from this threshold on.
    Solarize(u32),
    /// Adds this to values below 128.
    SolarizeAdd(u32),
    /// Changes brightness, contrast or saturation by this factor, see [`Pixels::enhance`].
    Enhance(Enhancement, f64),
    /// Sharpens (factor above 1) or smooths (below 1).
    Sharpness(f64),
    /// Shifts each row to the left by this share of its distance from the top.
    ShearX(f64),
    /// Shifts each column up by this share of its distance from the left.
    ShearY(f64),
    /// Shifts the image to the left by this share of its width.
    TranslateX(f64),
    /// Shifts the image up by this share of its height.
    TranslateY(f64),
}

/// Interpolation between pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// Linear, from 2 × 2 pixels.
    Bilinear,
    /// Cubic, from 4 × 4 pixels.
    Bicubic,
}

impl Pixels {
    /// Applies `op` to the image.
    ///
    /// Geometric operations interpolate by `resampling`; pixels from outside the image get the color
    /// `fill`, one value per channel.
    ///
    /// # Panics
    /// Panics if `fill` has fewer values than the image has channels.
    #[must_use]
    pub fn apply_op(mut self, op: ImageOp, resampling: Resampling, fill: &[u8]) -> Self {
        let transform = |by: [f64; 6]| self.transform(by, resampling, &fill[..self.channels]);
        match op {
            ImageOp::AutoContrast => self.map_channels(auto_contrast),
            ImageOp::Equalize => self.map_channels(equalize),
            ImageOp::Invert => self.map(|value| 255 - value),
            ImageOp::Posterize(bits) => {
                let kept = !(0xff_u32 >> bits.min(8)) as u8;
                self.map(|value| value & kept);
            }
            ImageOp::Solarize(from) => {
                self.map(|value| if u32::from(value) < from { value } else { 255 - value });
            }
            ImageOp::SolarizeAdd(add) => self.map(|value| match value {
                0..128 => (u32::from(value) + add).min(255) as u8,
                _ => value,
            }),
            ImageOp::Enhance(enhancement, factor) => self.enhance(enhancement, factor),
            ImageOp::Sharpness(factor) => self.sharpen(factor),
            ImageOp::Rotate(degrees) => return transform(self.rotation(degrees)),
            ImageOp::ShearX(share) => return transform([1.0, share, 0.0, 0.0, 1.0, 0.0]),
            ImageOp::ShearY(share) => return transform([1.0, 0.0, 0.0, share, 1.0, 0.0]),
            ImageOp::TranslateX(share) => {
                return transform([1.0, 0.0, share * self.width as f64, 0.0, 1.0, 0.0]);
            }
            ImageOp::TranslateY(share) => {
                return transform([1.0, 0.0, 0.0, 0.0, 1.0, share * self.height as f64]);
            }
        }
        self
    }

    /// Replaces each value.
    fn map(&mut self, value: impl Fn(u8) -> u8) {
        self.values.iter_mut().for_each(|v| *v = value(*v));
    }

    /// Maps the values of each channel by the lookup table that `table` derives from its histogram.
    fn map_channels(&mut self, table: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) {
        for channel in 0..self.channels {
            let mut counts = [0; 256];
            let values = self.values.iter_mut().skip(channel).step_by(self.channels);
            values.for_each(|value| counts[usize::from(*value)] += 1);
            if let Some(table) = table(&counts) {
                let values = self.values.iter_mut().skip(channel).step_by(self.channels);
                values.for_each(|value| *value = table[usize::from(*value)]);
            }
        }
    }

    /// Blends with a smoothed image: the mean of each pixel, weighted 5, and its eight neighbors.
    /// Pixels at the border are unchanged.
    fn sharpen(&mut self, factor: f64) {
        let (stride, from) = (self.width * self.channels, self.values.clone());
        for row in 1..self.height.saturating_sub(1) {
            for at in row * stride + self.channels..(row + 1) * stride - self.channels {
                let around = [at - stride, at, at + stride]
                    .into_iter()
                    .flat_map(|middle| [middle - self.channels, middle, middle + self.channels]);
                let sum: u32 = around.map(|i| u32::from(from[i])).sum();
                // 26 is twice the sum of the weights: rounds to nearest, and ties cannot occur.
                let smooth = (2 * (sum + 4 * u32::from(from[at])) + 13) / 26;
                self.values[at] = blend(smooth as f32, from[at], factor as f32);
            }
        }
    }

    /// Returns the affine map from output to input positions of a rotation.
    fn rotation(&self, degrees: f64) -> [f64; 6] {
        // Rounded as in Pillow, so that the sine of 30° is exactly 0.5.
        let round = |x: f64| (x * 1e15).round() / 1e15;
        let (sin, cos) = (-degrees.to_radians()).sin_cos();
        let (sin, cos) = (round(sin), round(cos));
        let (x, y) = (self.width as f64 / 2.0, self.height as f64 / 2.0);
        [cos, sin, -x * cos - y * sin + x, -sin, cos, x * sin - y * cos + y]
    }

    /// Applies an affine transform: the output at (x, y) is the input at
    /// (a·x + b·y + c, d·x + e·y + f).
    fn transform(&self, [a, b, c, d, e, f]: [f64; 6], resampling: Resampling, fill: &[u8]) -> Self {
        let (width, height) = (self.width as f64, self.height as f64);
        let mut values = Vec::with_capacity(self.values.len());
        for row in 0..self.height {
            for column in 0..self.width {
                let (x, y) = (column as f64 + 0.5, row as f64 + 0.5);
                let (x, y) = (a * x + b * y + c, d * x + e * y + f);
                if !((0.0..width).contains(&x) && (0.0..height).contains(&y)) {
                    values.extend_from_slice(fill);
                    continue;
                }
                match resampling {
                    Resampling::Bilinear => self.sample(x, y, linear, &mut values),
                    Resampling::Bicubic => self.sample(x, y, cubic, &mut values),
                }
            }
        }
        Self { values, ..*self }
    }

    /// Appends the interpolated pixel at (x, y) to `values`: `curve` along each of N rows, then along
    /// the column of their results.
    fn sample<const N: usize>(
        &self,
        x: f64,
        y: f64,
        curve: fn([f64; N], f64) -> f64,
        values: &mut Vec<u8>,
    ) {
        let near = |at: f64, count: usize| -> ([usize; N], f64) {
            let (at, last) = (at - 0.5, count as i64 - 1);
            let first = at.floor() as i64 + 1 - N as i64 / 2;
            (array::from_fn(|i| (first + i as i64).clamp(0, last) as usize), at - at.floor())
        };
        let ((columns, dx), (rows, dy)) = (near(x, self.width), near(y, self.height));
        for channel in 0..self.channels {
            let value = |row: usize, column: usize| {
                f64::from(self.values[(row * self.width + column) * self.channels + channel])
            };
            let along = rows.map(|row| curve(columns.map(|column| value(row, column)), dx));
            values.push(curve(along, dy) as u8); // truncated and clamped
        }
    }
}

/// Interpolates linearly from the first value (`at` = 0) to the second (1).
fn linear([a, b]: [f64; 2], at: f64) -> f64 {
    a + (b - a) * at
}

/// Interpolates from the second value (`at` = 0) to the third (1): cubic convolution with a = −1.
fn cubic([a, b, c, d]: [f64; 4], at: f64) -> f64 {
    b + at * (c - a + at * (2.0 * (a - b) + c - d + at * (b - a - c + d)))
}

/// Returns the lookup table of [`ImageOp::AutoContrast`]; `None` if all values are equal.
fn auto_contrast(counts: &[u32; 256]) -> Option<[u8; 256]> {
    let low = counts.iter().position(|&n| n > 0)?;
    let high = counts.iter().rposition(|&n| n > 0)?;
    let scale = 255.0 / (high.checked_sub(low).filter(|&range| range > 0)?) as f64;
    let offset = -(low as f64) * scale;
    Some(array::from_fn(|value| (value as f64 * scale + offset) as u8))
}

/// Returns the lookup table of [`ImageOp::Equalize`]; `None` if the image has too few pixels.
fn equalize(counts: &[u32; 256]) -> Option<[u8; 256]> {
    let last = *counts.iter().rev().find(|&&n| n > 0)?;
    let step = (counts.iter().sum::<u32>() - last) / 255;
    if step == 0 {
        return None;
    }
    let mut sum = step / 2;
    Some(array::from_fn(|value| {
        let level = (sum / step).min(255) as u8;
        sum += counts[value];
        level
    }))
}
