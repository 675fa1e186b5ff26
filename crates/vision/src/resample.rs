//! Images of another size: bicubic interpolation that averages where it shrinks, as PIL does it.

use std::ops::Range;

use multiversion::multiversion;

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

/// For each value of a new size: the first old one it is made of, and the weights from there on.
type Places = [(usize, Vec<i32>)];

/// Those of `places` of the new size `to`.
fn weights(from: usize, to: usize, places: Range<usize>) -> Vec<(usize, Vec<i32>)> {
    if from == to {
        return places.map(|at| (at, vec![1 << PRECISION])).collect();
    }
    let scale = from as f64 / to as f64;
    let shrink = scale.max(1.0);
    let reach = REACH * shrink;
    let fixed = |w: f64| (w * f64::from(1_u32 << PRECISION) + 0.5_f64.copysign(w)) as i32;
    places
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
        self.window(crop, [height, width], Crop { top: 0, left: 0, height, width })
    }

    /// `part` of what `crop` would be at the size `full`, height and width; no more of it is computed.
    pub(crate) fn window(&self, crop: Crop, full: [usize; 2], part: Crop) -> Self {
        let rows = weights(crop.height, full[0], part.top..part.top + part.height);
        let columns = weights(crop.width, full[1], part.left..part.left + part.width);
        let values = match self.channels {
            1 => self.resampled::<1>(crop, &rows, &columns),
            _ => self.resampled::<3>(crop, &rows, &columns),
        };
        Self { width: part.width, height: part.height, channels: self.channels, values }
    }

    /// A pixel for each of `rows` and `columns` of the crop. Columns are turned into rows to be added up, for
    /// whole rows are what a processor adds fast.
    fn resampled<const C: usize>(&self, crop: Crop, rows: &Places, columns: &Places) -> Vec<u8> {
        // Only these matter.
        let (used_rows, used_columns) = (used(rows), used(columns));
        let start = (crop.top + used_rows.start) * self.width + crop.left + used_columns.start;
        let pixels = &self.values.as_chunks::<C>().0[start..];
        let columns_first = turned(pixels, self.width, [used_rows.len(), used_columns.len()]);
        let across = add_rows(
            columns_first.as_flattened(),
            used_rows.len() * C,
            used_columns.start,
            columns,
        );
        let across = across.as_chunks::<C>().0;
        let back = turned(across, used_rows.len(), [columns.len(), used_rows.len()]);
        add_rows(back.as_flattened(), columns.len() * C, used_rows.start, rows)
    }
}

/// From the first old value to the last that any of `places` is made of.
fn used(places: &Places) -> Range<usize> {
    let first = places.iter().map(|(first, _)| *first).min().unwrap_or(0);
    let end = places.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
    first..end
}

/// Rows of `height` pixels, `width` of them, from `height` rows that are `stride` apart.
fn turned<const C: usize>(
    pixels: &[[u8; C]],
    stride: usize,
    [height, width]: [usize; 2],
) -> Vec<[u8; C]> {
    // Rows at once: what is written side by side is on few lines of the cache.
    const BLOCK: usize = 8;
    let mut turned = vec![[0; C]; height * width];
    for top in (0..height).step_by(BLOCK) {
        let count = BLOCK.min(height - top);
        let rows: [_; BLOCK] =
            std::array::from_fn(|i| &pixels[(top + i.min(count - 1)) * stride..][..width]);
        for (column, to) in turned.chunks_exact_mut(height).enumerate() {
            for (to, row) in to[top..top + count].iter_mut().zip(rows) {
                *to = row[column];
            }
        }
    }
    turned
}

/// A row of `stride` values for each of `places`, from `rows` of which the first has the number `top`.
#[multiversion(targets("x86_64+avx2"))]
fn add_rows(rows: &[u8], stride: usize, top: usize, places: &Places) -> Vec<u8> {
    let mut values = Vec::with_capacity(places.len() * stride);
    let mut sums = vec![HALF; stride];
    for (first, weights) in places {
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
