//! Which patches a student does not see.

use data2vec_core::{Error, Mask, MaskStrategy, Result};
use ndarray::Array2;
use rand::{RngExt, rngs::StdRng, seq::index::sample};
use serde::{Deserialize, Serialize};

/// Draws before a block mask gives up finding room for one more block.
const ATTEMPTS: usize = 10;
/// Longest side of a block: no image has more patches in a row.
const MOST_PATCHES: usize = 1 << 16;

/// How patches are hidden; in a recipe, `kind` tells which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VisionMaskConfig {
    /// data2vec 1.0.
    Blocks(BlockMask),
    /// data2vec 2.0.
    InverseBlocks(InverseBlockMask),
}

/// Rectangles of random size and shape until enough is hidden: BEiT's (Bao et al. 2022, algorithm 1).
///
/// It stops when no room is found for another rectangle, so a few patches fewer than asked for may
/// be hidden, and not the same number in each image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockMask {
    /// Patches that are hidden at most; below the number of all.
    pub patches: usize,
    /// Area of a rectangle at least, as drawn; where fewer are left to hide, it is at most this.
    pub min_block: usize,
    /// Area of a rectangle at most.
    pub max_block: usize,
    /// Height over width is between this and its inverse, even in the logarithm.
    pub min_aspect: f64,
}

/// Squares around random centres stay visible, and all the rest is hidden; single patches make the
/// number exact: data2vec 2.0, section 3.3, as fairseq's `compute_block_mask_2d` draws them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InverseBlockMask {
    /// Share of the patches that is hidden; what is visible is rounded down.
    pub probability: f64,
    /// Height and width of a square.
    pub length: usize,
    /// Added to the visible share when squares are counted, because they overlap.
    pub adjust: f64,
}

impl VisionMaskConfig {
    /// Checks what can be checked without a grid.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
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
                if !(1..=MOST_PATCHES).contains(&inverse.length) {
                    return bad(
                        "length",
                        "must be at least 1 patch, and no more than an image has",
                    );
                }
                if !(0.0..1.0).contains(&inverse.adjust) {
                    return bad("adjust", "must be at least 0 and below 1");
                }
            }
        }
        Ok(())
    }

    /// Masks of a grid of patches, rows × columns.
    ///
    /// # Errors
    /// [`Error::Config`] that names the impossible key.
    pub fn on_grid(&self, grid: [i64; 2]) -> Result<PatchMask> {
        self.validate()?;
        let [rows, columns] = grid.map(|side| usize::try_from(side).unwrap_or(0));
        let all = rows.saturating_mul(columns);
        if all < 2 {
            let reason = format!("{grid:?} patches leave nothing to see or to hide");
            return Err(Error::config("features.patch_size", reason));
        }
        match self {
            Self::Blocks(blocks) if blocks.patches >= all => {
                let reason = format!("must be below {all}, the patches of an image");
                Err(Error::config("mask.patches", reason))
            }
            Self::InverseBlocks(inverse) if inverse.length > rows.max(columns) => {
                let reason = format!("must be at most {}, the larger side", rows.max(columns));
                Err(Error::config("mask.length", reason))
            }
            _ => Ok(PatchMask { config: self.clone(), rows, columns }),
        }
    }
}

/// A [`VisionMaskConfig`] that knows how patches lie.
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
                "masks are for {} × {} patches, not for {num_tokens}",
                self.rows, self.columns
            )));
        }
        let mut hidden = Array2::from_elem((lengths.len(), all), false); // (B, T)
        for mut row in hidden.rows_mut() {
            let grid = match &self.config {
                VisionMaskConfig::Blocks(blocks) => blocks.draw(self.rows, self.columns, rng),
                VisionMaskConfig::InverseBlocks(inverse) => {
                    inverse.draw(self.rows, self.columns, rng)
                }
            };
            row.iter_mut().zip(&grid).for_each(|(to, &from)| *to = from);
        }
        Mask::new(hidden)
    }
}

impl BlockMask {
    /// `(rows, columns)`, true = hidden; one patch at least.
    fn draw(&self, rows: usize, columns: usize, rng: &mut StdRng) -> Array2<bool> {
        let mut hidden = Array2::from_elem((rows, columns), false);
        let mut count = 0;
        while count < self.patches {
            let left = (self.patches - count).min(self.max_block);
            let added = (0..ATTEMPTS).find_map(|_| self.place(&mut hidden, left, rng));
            let Some(added) = added else { break };
            count += added;
        }
        if count == 0 {
            // No rectangle of that size fits this grid; something must be hidden.
            hidden[[rng.random_range(0..rows), rng.random_range(0..columns)]] = true;
        }
        hidden
    }

    /// Hides one more rectangle with 1 to `most` new patches; `None` if the draw does not fit.
    fn place(&self, hidden: &mut Array2<bool>, most: usize, rng: &mut StdRng) -> Option<usize> {
        let between = |a: f64, b: f64, rng: &mut StdRng| a + (b - a) * rng.random::<f64>();
        let area = between(self.min_block as f64, most as f64, rng);
        let log = self.min_aspect.ln();
        let aspect = between(log, -log, rng).exp();
        let (rows, columns) = hidden.dim();
        let height = (area * aspect).sqrt().round_ties_even() as usize;
        let width = (area / aspect).sqrt().round_ties_even() as usize;
        // A rectangle never reaches from side to side.
        if height >= rows || width >= columns {
            return None;
        }
        let top = rng.random_range(0..=rows - height);
        let left = rng.random_range(0..=columns - width);
        let mut block = hidden.slice_mut(ndarray::s![top..top + height, left..left + width]);
        let new = block.iter().filter(|&&hidden| !hidden).count();
        if !(1..=most).contains(&new) {
            return None;
        }
        block.fill(true);
        Some(new)
    }
}

impl InverseBlockMask {
    /// `(rows, columns)`, true = hidden; at least one patch is visible, and one hidden.
    fn draw(&self, rows: usize, columns: usize, rng: &mut StdRng) -> Array2<bool> {
        let all = rows * columns;
        let share = 1.0 - self.probability;
        let area = (self.length * self.length) as f64;
        let squares = (all as f64 * ((share + self.adjust) / area)) as usize;
        let mut visible = Array2::from_elem((rows, columns), false);
        for _ in 0..squares {
            // With replacement; at the edges a square is squeezed, not shifted.
            let centre = rng.random_range(0..all);
            let span = |at: usize, size: usize| {
                let first = at as isize - (self.length / 2) as isize;
                let clamp = |at: isize| at.clamp(0, size as isize - 1) as usize;
                clamp(first)..clamp(first + self.length as isize - 1) + 1
            };
            let (down, across) = (span(centre / columns, rows), span(centre % columns, columns));
            visible.slice_mut(ndarray::s![down, across]).fill(true);
        }

        let exact = ((all as f64 * share) as usize).clamp(1, all - 1);
        let places = |wanted: bool| -> Vec<[usize; 2]> {
            let chosen = visible.indexed_iter().filter(|&(_, &is)| is == wanted);
            chosen.map(|((row, column), _)| [row, column]).collect()
        };
        let (shown, rest) = (places(true), places(false));
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
