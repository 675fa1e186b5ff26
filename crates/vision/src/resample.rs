//! Antialiased bicubic resizing, bit-exact with PIL, and center crops.

use std::ops::Range;

use multiversion::multiversion;

use crate::pixels::Pixels;

/// Fractional bits of a fixed-point weight: 32 minus 8 for a value and 2 for sign and overshoot.
const PRECISION: u32 = 22;
/// Radius of the kernel in pixels without downscaling.
const RADIUS: f64 = 2.0;

/// A rectangle of an image, in pixels.
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

impl Crop {
    /// Returns the largest center crop of aspect ratio (width / height) `ratio`.
    pub(crate) fn center(ratio: f64, height: usize, width: usize) -> Self {
        let fit = |side: f64, max: usize| (side.round_ties_even() as usize).clamp(1, max);
        let crop_height = fit((width as f64 / ratio).min(height as f64), height);
        let crop_width = fit((height as f64 * ratio).min(width as f64), width);
        Self {
            top: (height - crop_height) / 2,
            left: (width - crop_width) / 2,
            height: crop_height,
            width: crop_width,
        }
    }
}

/// Cubic convolution kernel (Keys 1981) with a = −1/2.
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

/// For each output position: the first input position and the weights from there on.
type Kernels = [(usize, Vec<i32>)];

/// Returns the kernels of the output `positions` when resizing from size `from` to size `to`.
fn kernels(from: usize, to: usize, positions: Range<usize>) -> Vec<(usize, Vec<i32>)> {
    if from == to {
        return positions.map(|at| (at, vec![1 << PRECISION])).collect();
    }
    let scale = from as f64 / to as f64;
    let shrink = scale.max(1.0);
    let radius = RADIUS * shrink;
    let fixed = |w: f64| (w * f64::from(1_u32 << PRECISION) + 0.5_f64.copysign(w)) as i32;
    positions
        .map(|at| {
            let center = (at as f64 + 0.5) * scale;
            let first = (center - radius + 0.5).max(0.0) as usize;
            let end = ((center + radius + 0.5) as usize).min(from);
            let weight = |i: usize| cubic((i as f64 - center + 0.5) / shrink);
            let total: f64 = (first..end).map(weight).sum();
            (first, (first..end).map(|i| fixed(weight(i) / total)).collect())
        })
        .collect()
}

/// Initial value of a weighted sum: 0.5 in fixed point, for rounding.
const HALF: i32 = 1 << (PRECISION - 1);

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Adds a weighted value. The sum cannot overflow, since weights sum to 1 with overshoots of a few
/// tenths; wrapping arithmetic lets the compiler vectorize the loop.
fn add(sum: i32, value: u8, weight: i32) -> i32 {
    sum.wrapping_add(i32::from(value).wrapping_mul(weight))
}

impl Pixels {
    /// Crops the image and resizes the crop to `height` × `width` with antialiased bicubic
    /// interpolation: first along rows, then along columns, rounded to 8 bits in between.
    ///
    /// # Panics
    /// Panics if the crop is empty or exceeds the image, or the size is 0.
    pub fn resized(&self, crop: Crop, height: usize, width: usize) -> Self {
        assert!(crop.height > 0 && crop.width > 0 && height > 0 && width > 0, "an empty image");
        assert!(crop.top + crop.height <= self.height && crop.left + crop.width <= self.width);
        self.window(crop, [height, width], Crop { top: 0, left: 0, height, width })
    }

    /// Returns the center of the image at size `height` × `width`, after resizing so that the output
    /// covers the share `crop` of the limiting side: torchvision's `Resize` and `CenterCrop`.
    ///
    /// # Panics
    /// Panics if the size is 0 or `crop` is not in (0, 1].
    pub fn center_crop(&self, crop: f64, height: usize, width: usize) -> Self {
        assert!(crop > 0.0 && crop <= 1.0 && height > 0 && width > 0, "an empty image");
        let [down, across] = [height, width].map(|side| (side as f64 / crop).floor() as usize);
        // The limiting side is exact, the other one is rounded down.
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

    /// Resizes `crop` to `full` (height, width) and returns `part` of it; computes only that part.
    pub(crate) fn window(&self, crop: Crop, full: [usize; 2], part: Crop) -> Self {
        let rows = kernels(crop.height, full[0], part.top..part.top + part.height);
        let columns = kernels(crop.width, full[1], part.left..part.left + part.width);
        let values = match self.channels {
            1 => self.resampled::<1>(crop, &rows, &columns),
            _ => self.resampled::<3>(crop, &rows, &columns),
        };
        Self { width: part.width, height: part.height, channels: self.channels, values }
    }

    /// Computes the output pixels of `rows` × `columns` of the crop.
    ///
    /// Transposes the image for the pass along rows, because sums of whole rows vectorize.
    fn resampled<const C: usize>(&self, crop: Crop, rows: &Kernels, columns: &Kernels) -> Vec<u8> {
        let (used_rows, used_columns) = (used(rows), used(columns));
        let start = (crop.top + used_rows.start) * self.width + crop.left + used_columns.start;
        let pixels = &self.values.as_chunks::<C>().0[start..];
        let columns_first = transposed(pixels, self.width, [used_rows.len(), used_columns.len()]);
        let across = add_rows(
            columns_first.as_flattened(),
            used_rows.len() * C,
            used_columns.start,
            columns,
        );
        let across = across.as_chunks::<C>().0;
        let back = transposed(across, used_rows.len(), [columns.len(), used_rows.len()]);
        add_rows(back.as_flattened(), columns.len() * C, used_rows.start, rows)
    }
}

/// Returns the range of input positions that the kernels use.
fn used(kernels: &Kernels) -> Range<usize> {
    let first = kernels.iter().map(|(first, _)| *first).min().unwrap_or(0);
    let end = kernels.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
    first..end
}

/// Transposes `height` rows of `width` pixels that are `stride` pixels apart.
fn transposed<const C: usize>(
    pixels: &[[u8; C]],
    stride: usize,
    [height, width]: [usize; 2],
) -> Vec<[u8; C]> {
    // Number of rows transposed at once, for locality of writes.
    const BLOCK: usize = 8;
    let mut transposed = vec![[0; C]; height * width];
    for top in (0..height).step_by(BLOCK) {
        let count = BLOCK.min(height - top);
        let rows: [_; BLOCK] =
            std::array::from_fn(|i| &pixels[(top + i.min(count - 1)) * stride..][..width]);
        for (column, to) in transposed.chunks_exact_mut(height).enumerate() {
            for (to, row) in to[top..top + count].iter_mut().zip(rows) {
                *to = row[column];
            }
        }
    }
    transposed
}

/// Computes one output row of `stride` values per kernel; the first of `rows` is input row `top`.
#[multiversion(targets("x86_64+avx2"))]
fn add_rows(rows: &[u8], stride: usize, top: usize, kernels: &Kernels) -> Vec<u8> {
    let mut values = Vec::with_capacity(kernels.len() * stride);
    let mut sums = vec![HALF; stride];
    for (first, weights) in kernels {
        sums.fill(HALF);
        for (row, weight) in rows[(first - top) * stride..].chunks_exact(stride).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum = add(*sum, value, *weight);
            }
        }
        values.extend(sums.iter().map(|&sum| to_u8(sum)));
    }
    values
}
