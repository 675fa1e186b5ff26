//! Images of another size: bicubic interpolation that averages where it shrinks, as PIL does it.

use crate::pixels::Pixels;

/// Bits after the point of a weight: 8 of a value and two of sign and overshoot make 32.
const PRECISION: u32 = 22;
/// Pixels to both sides that the kernel reaches when nothing shrinks.
const REACH: f64 = 2.0;

/// Part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
}

/// Keys's cubic kernel with a = −1/2.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}

/// For each value of the new size: the first old one it is made of, and the weights from there on.
fn weights(from: usize, to: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    let shrink = scale.max(1.0);
    let reach = REACH * shrink;
    let fixed = |w: f64| (w * f64::from(1_u32 << PRECISION) + 0.5_f64.copysign(w)) as i32;
    (0..to)
        .map(|at| {
            let centre = (at as f64 + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(from);
            let weight = |i: usize| cubic((i as f64 - centre + 0.5) / shrink);
            let total: f64 = (first..end).map(weight).sum();
            (first, (first..end).map(|i| fixed(weight(i) / total)).collect())
        })
        .collect()
}

/// What adding up weighted values starts from: half a unit, for rounding.
const HALF: i32 = 1 << (PRECISION - 1);

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The sum cannot overflow (weights add up to one, with overshoots of a few tenths); saying so lets
/// the loop run on several values at once.
fn add(sum: i32, value: u8, weight: i32) -> i32 {
    sum.wrapping_add(i32::from(value).wrapping_mul(weight))
}

impl Pixels {
    /// `crop` of the image, resized to `height` × `width` with antialiased bicubic interpolation:
    /// along rows first, then along columns, rounded to 8 bits in between.
    ///
    /// # Panics
    /// If the crop is empty or reaches out of the image, or the size is 0.
    pub fn resized(&self, crop: Crop, height: usize, width: usize) -> Self {
        assert!(crop.height > 0 && crop.width > 0 && height > 0 && width > 0, "an empty image");
        assert!(crop.top + crop.height <= self.height && crop.left + crop.width <= self.width);
        let across = match self.channels {
            1 => self.along_rows::<1>(crop, width),
            _ => self.along_rows::<3>(crop, width),
        };
        let values = if crop.height == height {
            across
        } else {
            along_columns(&across, width * self.channels, crop.height, height)
        };
        Self { width, height, channels: self.channels, values }
    }

    /// The crop's rows, each with `width` pixels.
    fn along_rows<const C: usize>(&self, crop: Crop, width: usize) -> Vec<u8> {
        let rows = (crop.top..crop.top + crop.height).map(|row| {
            let start = (row * self.width + crop.left) * C;
            &self.values[start..start + crop.width * C]
        });
        if crop.width == width {
            return rows.flatten().copied().collect();
        }
        let weights = weights(crop.width, width);
        let mut values = Vec::with_capacity(crop.height * width * C);
        for row in rows {
            for (first, weights) in &weights {
                let mut sums = [HALF; C];
                for (pixel, &weight) in row[first * C..].chunks_exact(C).zip(weights) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum = add(*sum, value, weight);
                    }
                }
                values.extend(sums.map(to_u8));
            }
        }
        values
    }
}

/// Rows of `stride` values, `from` of them, to `to` rows.
fn along_columns(rows: &[u8], stride: usize, from: usize, to: usize) -> Vec<u8> {
    let mut values = Vec::with_capacity(to * stride);
    let mut sums = vec![HALF; stride];
    for (first, weights) in weights(from, to) {
        sums.fill(HALF);
        for (row, weight) in rows[first * stride..].chunks_exact(stride).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum = add(*sum, value, weight);
            }
        }
        values.extend(sums.iter().map(|&sum| to_u8(sum)));
    }
    values
}
