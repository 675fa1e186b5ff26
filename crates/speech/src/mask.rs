//! Which frames a student does not see.

use data2vec_core::{Error, Mask, MaskStrategy, Result};
use ndarray::Array2;
use rand::{RngExt, rngs::StdRng, seq::index::sample};
use serde::{Deserialize, Serialize};

/// How frames are hidden; in a recipe, `kind` tells which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SpeechMaskConfig {
    /// data2vec 1.0.
    Spans(SpanMask),
    /// data2vec 2.0.
    Blocks(BlockMask),
}

/// Spans of equal length that begin anywhere and may overlap: wav2vec 2.0, section 3.2, as fairseq's
/// `compute_mask_indices` draws them (static lengths, overlap allowed).
///
/// The last frame of a row is never hidden.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpanMask {
    /// Share of the frames that spans would cover if none overlapped: 0.65 hides about 49%.
    pub probability: f64,
    /// Frames in a span.
    pub length: usize,
    /// Spans in a row at least.
    pub min_spans: usize,
    /// Cut all rows of a batch to the smallest count, by showing single frames of the others.
    pub same_count: bool,
}

/// Blocks around random centres, then single frames until the count is exact: data2vec 2.0,
/// section 3.3, as fairseq's `compute_block_mask_1d` draws them (`inverse_mask` off, as for speech).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockMask {
    /// Share of the frames that is hidden, exactly but for rounding down.
    pub probability: f64,
    /// Frames in a block.
    pub length: usize,
    /// Added to the probability when blocks are counted, because they overlap.
    pub adjust: f64,
}

impl SpeechMaskConfig {
    /// Checks what can be checked without a batch.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
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
        let lengths = checked(lengths, num_tokens)?;
        let mut rows: Vec<Vec<usize>> = lengths.iter().map(|&len| self.row(len, rng)).collect();
        if self.same_count {
            let fewest = rows.iter().map(Vec::len).min().unwrap_or(0);
            for row in &mut rows {
                if row.len() > fewest {
                    *row = sample(rng, row.len(), fewest).into_iter().map(|at| row[at]).collect();
                }
            }
        }
        mask(&rows, num_tokens)
    }
}

impl SpanMask {
    /// Hidden frames of a row of `len`, at least 2; at least one, never the last.
    fn row(&self, len: usize, rng: &mut StdRng) -> Vec<usize> {
        // Rounded up or down at random, so that the expected number is exact.
        let expected = self.probability * len as f64 / self.length as f64;
        let spans = ((expected + rng.random::<f64>()) as usize).max(self.min_spans);
        // Distinct starts among those whose span ends before the last frame. In a row that is too
        // short for so many (where the reference may hide everything, and fails) spans are cut off.
        let starts = match len.saturating_sub(self.length) {
            room if room > spans => room,
            _ => (spans + 1).min(len - 1),
        };
        let mut hidden = vec![false; len - 1];
        for start in sample(rng, starts, spans.min(starts)) {
            let end = (start + self.length).min(hidden.len());
            hidden[start..end].fill(true);
        }
        places(&hidden, true)
    }
}

impl MaskStrategy for BlockMask {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        let lengths = checked(lengths, num_tokens)?;
        let rows: Vec<Vec<usize>> = lengths.iter().map(|&len| self.row(len, rng)).collect();
        mask(&rows, num_tokens)
    }
}

impl BlockMask {
    /// Hidden frames of a row of `len`, at least 2: `⌊len · probability⌋`, or 1 where that is 0.
    fn row(&self, len: usize, rng: &mut StdRng) -> Vec<usize> {
        let centres =
            (len as f64 * ((self.probability + self.adjust) / self.length as f64)) as usize;
        let mut hidden = vec![false; len];
        for _ in 0..centres {
            // With replacement; at the ends a block is squeezed, not shifted.
            let first = rng.random_range(0..len) as isize - (self.length / 2) as isize;
            let clamp = |at: isize| at.clamp(0, len as isize - 1) as usize;
            hidden[clamp(first)..=clamp(first + self.length as isize - 1)].fill(true);
        }

        let exact = ((len as f64 * self.probability) as usize).clamp(1, len - 1);
        let blocks = places(&hidden, true);
        if blocks.len() >= exact {
            return sample(rng, blocks.len(), exact).into_iter().map(|at| blocks[at]).collect();
        }
        let visible = places(&hidden, false);
        let more = sample(rng, visible.len(), exact - blocks.len());
        blocks.iter().copied().chain(more.into_iter().map(|at| visible[at])).collect()
    }
}

fn places(hidden: &[bool], wanted: bool) -> Vec<usize> {
    hidden.iter().enumerate().filter(|&(_, &is)| is == wanted).map(|(at, _)| at).collect()
}

/// The lengths, if each row has room for a hidden and a visible frame.
fn checked(lengths: &[i64], num_tokens: i64) -> Result<Vec<usize>> {
    let check = |(row, &len): (usize, &i64)| match usize::try_from(len) {
        Ok(real) if real >= 2 && len <= num_tokens => Ok(real),
        _ => Err(Error::Input(format!(
            "row {row} has {len} of {num_tokens} frames; masks need 2 at least: raise data.min_seconds"
        ))),
    };
    lengths.iter().enumerate().map(check).collect()
}

fn mask(rows: &[Vec<usize>], num_tokens: i64) -> Result<Mask> {
    let mut hidden = Array2::from_elem((rows.len(), num_tokens as usize), false); // (B, T)
    for (mut row, places) in hidden.rows_mut().into_iter().zip(rows) {
        for &place in places {
            row[place] = true;
        }
    }
    Mask::new(hidden)
}
