//! Masks over a grid of patches.

use data2vec_core::{Error, Mask, MaskStrategy, Result};
use ndarray::Array2;
use rand::{RngExt, rngs::StdRng, seq::index::sample};
use serde::{Deserialize, Serialize};

/// Number of random blocks tried before a block mask is complete.
const ATTEMPTS: usize = 10;
/// Largest side of a block in patches.
const MAX_LENGTH: usize = 1 << 16;

/// Mask strategy of patches; a recipe selects it with `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VisionMaskConfig {
    /// Random rectangles are masked (data2vec 1.0).
    Blocks(BlockMask),
    /// All but random squares is masked (data2vec 2.0).
    InverseBlocks(InverseBlockMask),
}

/// Masks rectangles of random size and shape, as BEiT does (Bao et al. 2022, algorithm 1).
///
/// Stops when ten random rectangles in a row do not fit, so images may have slightly fewer than
/// `patches` masked patches, and different numbers of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockMask {
    /// Largest number of masked patches; below the number of patches of an image.
    pub patches: usize,
    /// Smallest area of a rectangle in patches; smaller only if fewer patches are left to mask.
    pub min_block: usize,
    /// Largest area of a rectangle in patches.
    pub max_block: usize,
    /// Aspect ratio (height / width) is log-uniform between this and its inverse.
    pub min_aspect: f64,
}

/// Keeps squares around random centers visible and masks the rest (data2vec 2.0, section 3.3), as
/// fairseq's `compute_block_mask_2d` does.
///
/// Random single patches are then masked or unmasked, so that each image has the same number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InverseBlockMask {
    /// Share of masked patches; the number of visible ones is rounded down.
    pub probability: f64,
    /// Side of a square in patches.
    pub length: usize,
    /// Added to the visible share when the number of squares is computed, since squares overlap.
    pub adjust: f64,
}

impl Default for InverseBlockMask {
    fn default() -> Self {
        Self { probability: 0.8, length: 3, adjust: 0.07 }
    }
}

impl Default for VisionMaskConfig {
    fn default() -> Self {
        Self::InverseBlocks(InverseBlockMask::default())
    }
}

impl VisionMaskConfig {
    /// Checks all settings that do not depend on the grid.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, reason: &str| Err(Error::config(format!("mask.{key}"), reason));
        match self {
            Self::Blocks(blocks) => {
                if blocks.patches == 0 {
                    return bad("patches", "must be at least 1");
                }
                if blocks.min_block == 0 || blocks.min_block > blocks.max_block {
                    return bad("min_block", "must be at least 1 and at most max_block");
                }
                if !(blocks.min_aspect > 0.0 && blocks.min_aspect <= 1.0) {
                    return bad("min_aspect", "must be above 0 and at most 1");
                }
            }
            Self::InverseBlocks(inverse) => {
                if !(inverse.probability > 0.0 && inverse.probability < 1.0) {
                    return bad("probability", "must be above 0 and below 1");
                }
                if !(1..=MAX_LENGTH).contains(&inverse.length) {
                    return bad("length", "must be from 1 to the image's side in patches");
                }
                if !(0.0..1.0).contains(&inverse.adjust) {
                    return bad("adjust", "must be at least 0 and below 1");
                }
            }
        }
        Ok(())
    }

    /// Returns the strategy for a grid of `[rows, columns]` patches.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn on_grid(&self, grid: [i64; 2]) -> Result<PatchMask> {
        self.validate()?;
        let [rows, columns] = grid.map(|side| usize::try_from(side).unwrap_or(0));
        let all = rows.saturating_mul(columns);
        if all < 2 {
            let reason = format!("gives {grid:?} patches; masking needs at least 2");
            return Err(Error::config("features.patch_size", reason));
        }
        match self {
            Self::Blocks(blocks) if blocks.patches >= all => {
                let reason = format!("must be below {all}, the number of patches of an image");
                Err(Error::config("mask.patches", reason))
            }
            Self::InverseBlocks(inverse) if inverse.length > rows.max(columns) => {
                let reason =
                    format!("must be at most {}, the larger side of the grid", rows.max(columns));
                Err(Error::config("mask.length", reason))
            }
            _ => Ok(PatchMask { config: self.clone(), rows, columns }),
        }
    }
}

/// Mask strategy for one grid of patches, see [`VisionMaskConfig::on_grid`].
#[derive(Clone, Debug, PartialEq)]
pub struct PatchMask {
    config: VisionMaskConfig,
    rows: usize,
    columns: usize,
}

impl MaskStrategy for PatchMask {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        let all = self.rows * self.columns;
        if num_tokens != all as i64 || lengths.iter().any(|&len| len != num_tokens) {
            return Err(Error::Input(format!(
                "masks are for {} × {} patches, the batch has {num_tokens} tokens",
                self.rows, self.columns
            )));
        }
        let mut masked = Array2::from_elem((lengths.len(), all), false); // (B, T)
        for mut row in masked.rows_mut() {
            let grid = match &self.config {
                VisionMaskConfig::Blocks(blocks) => blocks.sample(self.rows, self.columns, rng),
                VisionMaskConfig::InverseBlocks(inverse) => {
                    inverse.sample(self.rows, self.columns, rng)
                }
            };
            row.iter_mut().zip(&grid).for_each(|(to, &from)| *to = from);
        }
        Mask::new(masked)
    }
}

impl BlockMask {
    /// Samples the mask of one image, `(rows, columns)`, true = masked; masks at least one patch.
    fn sample(&self, rows: usize, columns: usize, rng: &mut StdRng) -> Array2<bool> {
        let mut masked = Array2::from_elem((rows, columns), false);
        let mut count = 0;
        while count < self.patches {
            let left = (self.patches - count).min(self.max_block);
            let added = (0..ATTEMPTS).find_map(|_| self.add_block(&mut masked, left, rng));
            let Some(added) = added else { break };
            count += added;
        }
        if count == 0 {
            // No rectangle fits this grid, but the loss needs a masked patch.
            masked[[rng.random_range(0..rows), rng.random_range(0..columns)]] = true;
        }
        masked
    }

    /// Masks one more random rectangle and returns its number of newly masked patches, from 1 to
    /// `max`; `None` if the rectangle does not fit.
    fn add_block(&self, masked: &mut Array2<bool>, max: usize, rng: &mut StdRng) -> Option<usize> {
        let between = |a: f64, b: f64, rng: &mut StdRng| a + (b - a) * rng.random::<f64>();
        let area = between(self.min_block as f64, max as f64, rng);
        let log = self.min_aspect.ln();
        let aspect = between(log, -log, rng).exp();
        let (rows, columns) = masked.dim();
        let height = (area * aspect).sqrt().round_ties_even() as usize;
        let width = (area / aspect).sqrt().round_ties_even() as usize;
        // As in the reference, a rectangle never spans the whole grid.
        if height >= rows || width >= columns {
            return None;
        }
        let top = rng.random_range(0..=rows - height);
        let left = rng.random_range(0..=columns - width);
        let mut block = masked.slice_mut(ndarray::s![top..top + height, left..left + width]);
        let new = block.iter().filter(|&&masked| !masked).count();
        if !(1..=max).contains(&new) {
            return None;
        }
        block.fill(true);
        Some(new)
    }
}

impl InverseBlockMask {
    /// Samples the mask of one image, `(rows, columns)`, true = masked; leaves at least one patch
    /// visible and one masked.
    fn sample(&self, rows: usize, columns: usize, rng: &mut StdRng) -> Array2<bool> {
        let all = rows * columns;
        let share = 1.0 - self.probability;
        let area = (self.length * self.length) as f64;
        let squares = (all as f64 * ((share + self.adjust) / area)) as usize;
        let mut visible = Array2::from_elem((rows, columns), false);
        for _ in 0..squares {
            // Centers are drawn with replacement; squares at the edge are clamped, not shifted.
            let center = rng.random_range(0..all);
            let span = |at: usize, size: usize| {
                let first = at as isize - (self.length / 2) as isize;
                let clamp = |at: isize| at.clamp(0, size as isize - 1) as usize;
                clamp(first)..clamp(first + self.length as isize - 1) + 1
            };
            let (down, across) = (span(center / columns, rows), span(center % columns, columns));
            visible.slice_mut(ndarray::s![down, across]).fill(true);
        }

        let exact = ((all as f64 * share) as usize).clamp(1, all - 1);
        let patches = |wanted: bool| -> Vec<[usize; 2]> {
            let chosen = visible.indexed_iter().filter(|&(_, &is)| is == wanted);
            chosen.map(|((row, column), _)| [row, column]).collect()
        };
        let (shown, rest) = (patches(true), patches(false));
        let (from, change, to) = match shown.len().checked_sub(exact) {
            Some(surplus) => (shown, surplus, false),
            None => (rest, exact - shown.len(), true),
        };
        for at in sample(rng, from.len(), change) {
            visible[from[at]] = to;
        }
        visible.mapv(|visible| !visible)
    }
}
