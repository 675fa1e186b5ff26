//! Masks of frames: spans (data2vec 1.0) and blocks (2.0).

use data2vec_core::{Error, Mask, MaskStrategy, Result};
use ndarray::Array2;
use rand::{RngExt, rngs::StdRng, seq::index::sample};
use serde::{Deserialize, Serialize};

/// Mask settings; `kind` selects the variant in a recipe. The default is data2vec 2.0 Base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SpeechMaskConfig {
    /// Spans, data2vec 1.0.
    Spans(SpanMask),
    /// Blocks, data2vec 2.0.
    Blocks(BlockMask),
}

/// Spans of equal length at random positions that may overlap: wav2vec 2.0, section 3.2, as drawn
/// by fairseq's `compute_mask_indices` (static lengths, overlap allowed).
///
/// The last frame of a row is never masked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpanMask {
    /// Share of frames that spans would cover if none overlapped: 0.65 masks about 49 %.
    pub probability: f64,
    /// Length of a span in frames.
    pub length: usize,
    /// Minimum number of spans per row.
    pub min_spans: usize,
    /// Gives all rows of a batch the smallest count of masked frames, by unmasking random frames.
    pub same_count: bool,
}

/// Blocks around random centres, then single frames until the count is exact: data2vec 2.0,
/// section 3.3, as drawn by fairseq's `compute_block_mask_1d` (`inverse_mask` off, as for speech).
/// The default is data2vec 2.0 Base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockMask {
    /// Share of masked frames; exact up to rounding down.
    pub probability: f64,
    /// Length of a block in frames.
    pub length: usize,
    /// Added to `probability` for the number of blocks, because blocks overlap.
    pub adjust: f64,
}

impl Default for BlockMask {
    fn default() -> Self {
        Self { probability: 0.5, length: 5, adjust: 0.05 }
    }
}

impl Default for SpeechMaskConfig {
    fn default() -> Self {
        Self::Blocks(BlockMask::default())
    }
}

impl SpeechMaskConfig {
    /// Checks all settings that do not depend on the batch.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        let (probability, length) = match self {
            Self::Spans(SpanMask { probability, length, .. })
            | Self::Blocks(BlockMask { probability, length, .. }) => (*probability, *length),
        };
        if !(probability > 0.0 && probability < 1.0) {
            return Err(Error::config("mask.probability", "must be above 0 and below 1"));
        }
        if length == 0 {
            return Err(Error::config("mask.length", "must be at least 1 frame"));
        }
        match self {
            Self::Spans(spans) if spans.min_spans == 0 => {
                Err(Error::config("mask.min_spans", "must be at least 1"))
            }
            Self::Blocks(blocks) if !(0.0..1.0).contains(&blocks.adjust) => {
                Err(Error::config("mask.adjust", "must be at least 0 and below 1"))
            }
            _ => Ok(()),
        }
    }
}

impl MaskStrategy for SpeechMaskConfig {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        match self {
            Self::Spans(spans) => spans.sample(lengths, num_tokens, rng),
            Self::Blocks(blocks) => blocks.sample(lengths, num_tokens, rng),
        }
    }
}

impl MaskStrategy for SpanMask {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        let lengths = check_lengths(lengths, num_tokens)?;
        let mut rows: Vec<Vec<usize>> = lengths.iter().map(|&len| self.row(len, rng)).collect();
        if self.same_count {
            let fewest = rows.iter().map(Vec::len).min().unwrap_or(0);
            for row in &mut rows {
                if row.len() > fewest {
                    *row = sample(rng, row.len(), fewest).into_iter().map(|at| row[at]).collect();
                }
            }
        }
        to_mask(&rows, num_tokens)
    }
}

impl SpanMask {
    /// Samples the masked frames of a row of `len` (at least 2) frames: at least one, never the last.
    fn row(&self, len: usize, rng: &mut StdRng) -> Vec<usize> {
        // Random rounding makes the expected number exact.
        let expected = self.probability * len as f64 / self.length as f64;
        let spans = ((expected + rng.random::<f64>()) as usize).max(self.min_spans);
        // Starts are distinct, and spans end before the last frame. In rows too short for that, where
        // the reference may mask everything and fails, spans are truncated.
        let starts = match len.saturating_sub(self.length) {
            room if room > spans => room,
            _ => (spans + 1).min(len - 1),
        };
        let mut masked = vec![false; len - 1];
        for start in sample(rng, starts, spans.min(starts)) {
            let end = (start + self.length).min(masked.len());
            masked[start..end].fill(true);
        }
        indices(&masked, true)
    }
}

impl MaskStrategy for BlockMask {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        let lengths = check_lengths(lengths, num_tokens)?;
        let rows: Vec<Vec<usize>> = lengths.iter().map(|&len| self.row(len, rng)).collect();
        to_mask(&rows, num_tokens)
    }
}

impl BlockMask {
    /// Samples the masked frames of a row of `len` (at least 2) frames: `⌊len · probability⌋`, at
    /// least 1.
    fn row(&self, len: usize, rng: &mut StdRng) -> Vec<usize> {
        let centres =
            (len as f64 * ((self.probability + self.adjust) / self.length as f64)) as usize;
        let mut masked = vec![false; len];
        for _ in 0..centres {
            // With replacement; blocks are truncated at the ends, not shifted.
            let first = rng.random_range(0..len) as isize - (self.length / 2) as isize;
            let clamp = |at: isize| at.clamp(0, len as isize - 1) as usize;
            masked[clamp(first)..=clamp(first + self.length as isize - 1)].fill(true);
        }

        let exact = ((len as f64 * self.probability) as usize).clamp(1, len - 1);
        let blocks = indices(&masked, true);
        if blocks.len() >= exact {
            return sample(rng, blocks.len(), exact).into_iter().map(|at| blocks[at]).collect();
        }
        let visible = indices(&masked, false);
        let more = sample(rng, visible.len(), exact - blocks.len());
        blocks.iter().copied().chain(more.into_iter().map(|at| visible[at])).collect()
    }
}

/// Returns the indices of the elements that equal `value`.
fn indices(masked: &[bool], value: bool) -> Vec<usize> {
    masked.iter().enumerate().filter(|&(_, &is)| is == value).map(|(at, _)| at).collect()
}

/// Returns the lengths; an error if a row has no room for a masked and a visible frame.
fn check_lengths(lengths: &[i64], num_tokens: i64) -> Result<Vec<usize>> {
    let check = |(row, &len): (usize, &i64)| match usize::try_from(len) {
        Ok(real) if real >= 2 && len <= num_tokens => Ok(real),
        _ => Err(Error::Input(format!(
            "row {row} has {len} of {num_tokens} frames, but masks need at least 2; raise \
             data.min_seconds"
        ))),
    };
    lengths.iter().enumerate().map(check).collect()
}

fn to_mask(rows: &[Vec<usize>], num_tokens: i64) -> Result<Mask> {
    let mut masked = Array2::from_elem((rows.len(), num_tokens as usize), false); // (B, T)
    for (mut row, indices) in masked.rows_mut().into_iter().zip(rows) {
        for &at in indices {
            row[at] = true;
        }
    }
    Mask::new(masked)
}
