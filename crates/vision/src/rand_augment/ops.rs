//! What RandAugment does to an image, value for value as Pillow does it.

use std::array;

use crate::augment::{Light, blend};
use crate::pixels::Pixels;

/// One change of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ImageOp {
    /// Stretches each channel so that its darkest value becomes 0 and its lightest 255.
    AutoContrast,
    /// Makes the values of each channel about equally frequent.
    Equalize,
    /// The negative.
    Invert,
    /// Turns it around its middle, counter-clockwise, by so many degrees.
    Rotate(f64),
    /// Keeps so many bits of each value, 0 to 8.
    Posterize(u32),
    /// The negative of values from this one on.
    Solarize(u32),
    /// Adds this to values below 128.
    SolarizeAdd(u32),
    /// Turns a property of its light up (above 1) or down.
    Light(Light, f64),
    /// Sharper (above 1) or smoother.
    Sharpness(f64),
    /// Moves each row by this share of its distance from the top, to the left.
    ShearX(f64),
    /// Moves each column by this share of its distance from the left, upwards.
    ShearY(f64),
    /// Moves it to the left by this share of its width.
    TranslateX(f64),
    /// Moves it upwards by this share of its height.
    TranslateY(f64),
}

/// What lies between pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// Straight lines through two neighbours in each direction.
    Bilinear,
    /// Cubic curves through four.
    Bicubic,
}

impl Pixels {
    /// The image changed by `op`. Where one moves it and nothing is left, it has the colour `fill`, a
    /// value a channel; what comes between pixels is told by `between`.
    ///
    /// # Panics
    /// If `fill` has fewer values than the image has channels.
    #[must_use]
    pub fn changed(mut self, op: ImageOp, between: Between, fill: &[u8]) -> Self {
        let moved = |by: [f64; 6]| self.moved(by, between, &fill[..self.channels]);
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
            ImageOp::Light(light, factor) => self.enhance(light, factor),
            ImageOp::Sharpness(factor) => self.sharpen(factor),
            ImageOp::Rotate(degrees) => return moved(self.rotation(degrees)),
            ImageOp::ShearX(share) => return moved([1.0, share, 0.0, 0.0, 1.0, 0.0]),
            ImageOp::ShearY(share) => return moved([1.0, 0.0, 0.0, share, 1.0, 0.0]),
            ImageOp::TranslateX(share) => {
                return moved([1.0, 0.0, share * self.width as f64, 0.0, 1.0, 0.0]);
            }
            ImageOp::TranslateY(share) => {
                return moved([1.0, 0.0, 0.0, 0.0, 1.0, share * self.height as f64]);
            }
        }
        self
    }

    /// Replaces each value.
    fn map(&mut self, value: impl Fn(u8) -> u8) {
        self.values.iter_mut().for_each(|v| *v = value(*v));
    }

    /// Replaces the values of each channel by what `table` makes of their numbers.
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

    /// Towards or away from a smoothed image: of each pixel and its eight neighbours, of which it
    /// counts five times. Pixels at the edge stay.
    fn sharpen(&mut self, factor: f64) {
        let (stride, from) = (self.width * self.channels, self.values.clone());
        for row in 1..self.height.saturating_sub(1) {
            for at in row * stride + self.channels..(row + 1) * stride - self.channels {
                let around = [at - stride, at, at + stride]
                    .into_iter()
                    .flat_map(|middle| [middle - self.channels, middle, middle + self.channels]);
                let sum: u32 = around.map(|i| u32::from(from[i])).sum();
                // A sum in thirteenths is never half-way.
                let smooth = (2 * (sum + 4 * u32::from(from[at])) + 13) / 26;
                self.values[at] = blend(smooth as f32, from[at], factor as f32);
            }
        }
    }

    /// From places in the turned image to places in this one.
    fn rotation(&self, degrees: f64) -> [f64; 6] {
        // Rounded as Pillow does, so that the sine of 30° is a half.
        let round = |x: f64| (x * 1e15).round() / 1e15;
        let (sin, cos) = (-degrees.to_radians()).sin_cos();
        let (sin, cos) = (round(sin), round(cos));
        let (x, y) = (self.width as f64 / 2.0, self.height as f64 / 2.0);
        [cos, sin, -x * cos - y * sin + x, -sin, cos, x * sin - y * cos + y]
    }

    /// An image of the same size that has at each place (x, y) what this one has at
    /// (a·x + b·y + c, d·x + e·y + f).
    fn moved(&self, [a, b, c, d, e, f]: [f64; 6], between: Between, fill: &[u8]) -> Self {
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
                match between {
                    Between::Bilinear => self.sample(x, y, linear, &mut values),
                    Between::Bicubic => self.sample(x, y, cubic, &mut values),
                }
            }
        }
        Self { values, ..*self }
    }

    /// Adds to `values` the pixel at (x, y): a curve through N pixels along each of N rows, then one
    /// through what they give.
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
            values.push(curve(along, dy) as u8); // cut off, and clamped
        }
    }
}

/// `at` of the way from the first value to the second.
fn linear([a, b]: [f64; 2], at: f64) -> f64 {
    a + (b - a) * at
}

/// The same from the second to the third: Keys's cubic with a = −1.
fn cubic([a, b, c, d]: [f64; 4], at: f64) -> f64 {
    b + at * (c - a + at * (2.0 * (a - b) + c - d + at * (b - a - c + d)))
}

/// `None`: nothing to stretch.
fn auto_contrast(counts: &[u32; 256]) -> Option<[u8; 256]> {
    let low = counts.iter().position(|&n| n > 0)?;
    let high = counts.iter().rposition(|&n| n > 0)?;
    let scale = 255.0 / (high.checked_sub(low).filter(|&range| range > 0)?) as f64;
    let offset = -(low as f64) * scale;
    Some(array::from_fn(|value| (value as f64 * scale + offset) as u8))
}

/// `None`: too few pixels to share out.
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
