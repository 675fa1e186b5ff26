//! Masks over the tokens of a text.

use data2vec_core::{Error, Mask, MaskStrategy, Result, Substitute};
use ndarray::Array2;
use rand::{RngExt, rngs::StdRng, seq::index::sample};
use serde::{Deserialize, Serialize};

/// Number of special tokens with the lowest ids, as in fairseq: `<s>`, `<pad>`, `</s>`, `<unk>`.
const NUM_SPECIAL: i64 = 4;

/// Mask strategy of tokens; a recipe selects it with `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TextMaskConfig {
    /// Spans of tokens are masked (data2vec 1.0).
    Spans(SpanMask),
    /// Single tokens are masked (data2vec 2.0).
    Tokens(TokenMask),
}

/// Masks spans of equal length that start anywhere and may overlap, as fairseq's
/// `MaskTokensDataset` does (`mask_multiple_length`); a span that reaches past the end of the row
/// is cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpanMask {
    /// Share of the tokens that spans would cover without overlaps; 0.35 masks about 31 %.
    pub probability: f64,
    /// Number of tokens of a span.
    pub length: usize,
    /// Share of the chosen tokens that is shown as other tokens; absent: all are masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<OtherTokens>,
}

/// BERT's 80/10/10: shows some of the chosen tokens as random tokens and some unchanged, and masks
/// the rest. Only masked tokens are predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherTokens {
    /// Share of the chosen tokens that is shown as a random token.
    pub random: f64,
    /// Share of the chosen tokens that is shown unchanged.
    pub unchanged: f64,
    /// Random tokens have ids from 4 to below this; equals `features.vocabulary`.
    pub vocabulary: i64,
}

/// Masks a fixed share of single tokens, as fairseq's `random_masking` does (data2vec 2.0).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenMask {
    /// Share of masked tokens; the number of visible ones is rounded down.
    pub probability: f64,
}

impl Default for TokenMask {
    fn default() -> Self {
        Self { probability: 0.48 }
    }
}

impl Default for TextMaskConfig {
    fn default() -> Self {
        Self::Tokens(TokenMask::default())
    }
}

impl TextMaskConfig {
    /// Checks all settings.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        let probability = match self {
            Self::Spans(SpanMask { probability, .. }) | Self::Tokens(TokenMask { probability }) => {
                *probability
            }
        };
        if !(probability > 0.0 && probability < 1.0) {
            return Err(Error::config("mask.probability", "must be above 0 and below 1"));
        }
        let Self::Spans(SpanMask { length, others, .. }) = self else { return Ok(()) };
        if *length == 0 {
            return Err(Error::config("mask.length", "must be at least 1 token"));
        }
        if let Some(OtherTokens { random, unchanged, vocabulary }) = others {
            for (key, share) in [("random", *random), ("unchanged", *unchanged)] {
                if !(share >= 0.0) {
                    return Err(Error::config(format!("mask.others.{key}"), "must be at least 0"));
                }
            }
            if random + unchanged >= 1.0 {
                let reason = "random + unchanged must be below 1; some tokens must be masked";
                return Err(Error::config("mask.others.random", reason));
            }
            if *vocabulary <= NUM_SPECIAL {
                let reason = format!(
                    "must be above {NUM_SPECIAL}, the number of special tokens, not {vocabulary}"
                );
                return Err(Error::config("mask.others.vocabulary", reason));
            }
        }
        Ok(())
    }
}

impl MaskStrategy for TextMaskConfig {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        match self {
            Self::Spans(spans) => spans.sample(lengths, num_tokens, rng),
            Self::Tokens(tokens) => tokens.sample(lengths, num_tokens, rng),
        }
    }
}

impl MaskStrategy for SpanMask {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        let lengths = check_lengths(lengths, num_tokens)?;
        let mut masked = Array2::from_elem((lengths.len(), num_tokens as usize), false); // (B, T)
        let mut substitutes = Vec::new();
        for (row, &len) in lengths.iter().enumerate() {
            let mut chosen = self.sample_row(len, rng);
            if let Some(others) = &self.others {
                others.substitute(row, &mut chosen, rng, &mut substitutes);
            }
            masked
                .row_mut(row)
                .iter_mut()
                .zip(chosen)
                .for_each(|(masked, chosen)| *masked = chosen);
        }
        Mask::new(masked)?.with_substitutes(substitutes)
    }
}

impl SpanMask {
    /// Chooses tokens of a row of `len` tokens, at least 2: at least one and not all.
    fn sample_row(&self, len: usize, rng: &mut StdRng) -> Vec<bool> {
        // Random rounding keeps the expected number exact.
        let expected = self.probability * len as f64 / self.length as f64;
        let spans = ((expected + rng.random::<f64>()) as usize).clamp(1, len);
        let mut chosen = vec![false; len];
        for start in sample(rng, len, spans) {
            chosen[start..(start + self.length).min(len)].fill(true);
        }
        if !chosen.contains(&false) {
            chosen[rng.random_range(0..len)] = false; // a row shorter than a span
        }
        chosen
    }
}

impl OtherTokens {
    /// Removes tokens to be shown from `chosen`, leaving at least one, and adds random tokens to
    /// `substitutes`.
    fn substitute(
        &self,
        row: usize,
        chosen: &mut [bool],
        rng: &mut StdRng,
        substitutes: &mut Vec<Substitute>,
    ) {
        let mut left = chosen.iter().filter(|&&c| c).count();
        for (token, chosen) in chosen.iter_mut().enumerate().filter(|(_, chosen)| **chosen) {
            let draw = rng.random::<f64>();
            if draw >= self.random + self.unchanged || left == 1 {
                continue;
            }
            (*chosen, left) = (false, left - 1);
            if draw < self.random {
                let id = rng.random_range(NUM_SPECIAL..self.vocabulary);
                substitutes.push(Substitute { row, token, id });
            }
        }
    }
}

impl MaskStrategy for TokenMask {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        let lengths = check_lengths(lengths, num_tokens)?;
        let mut masked = Array2::from_elem((lengths.len(), num_tokens as usize), false); // (B, T)
        for (row, &len) in lengths.iter().enumerate() {
            let keep = ((len as f64 * (1.0 - self.probability)) as usize).clamp(1, len - 1);
            for token in sample(rng, len, len - keep) {
                masked[(row, token)] = true;
            }
        }
        Mask::new(masked)
    }
}

/// Checks that each row has room for a masked and a visible token; returns the lengths.
fn check_lengths(lengths: &[i64], num_tokens: i64) -> Result<Vec<usize>> {
    let check = |(row, &len): (usize, &i64)| match usize::try_from(len) {
        Ok(real) if real >= 2 && len <= num_tokens => Ok(real),
        _ => Err(Error::Input(format!(
            "row {row} has {len} of {num_tokens} tokens; a mask needs at least 2"
        ))),
    };
    lengths.iter().enumerate().map(check).collect()
}
