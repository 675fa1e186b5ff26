//! Which tokens a student does not see.

use data2vec_core::{Error, Mask, MaskStrategy, Result, Substitute};
use ndarray::Array2;
use rand::{RngExt, rngs::StdRng, seq::index::sample};
use serde::{Deserialize, Serialize};

/// Ids below this are special tokens, as fairseq numbers them: `<s>`, `<pad>`, `</s>`, `<unk>`.
const SPECIAL: i64 = 4;

/// How tokens are hidden; in a recipe, `kind` tells which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TextMaskConfig {
    /// data2vec 1.0.
    Spans(SpanMask),
    /// data2vec 2.0.
    Tokens(TokenMask),
}

/// Spans of equal length that begin anywhere and may overlap; one that reaches past the end is cut.
/// As fairseq's `MaskTokensDataset` draws them (`mask_multiple_length`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpanMask {
    /// Share of the tokens that spans would cover if none overlapped: 0.35 hides about 31%.
    pub probability: f64,
    /// Tokens in a span.
    pub length: usize,
    /// What becomes of some of the chosen tokens instead of being hidden; absent: all are hidden.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<OtherTokens>,
}

/// BERT's 80/10/10: of the chosen tokens a share is shown as another token, a share as it is.
/// Targets are predicted where tokens are hidden, and nowhere else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherTokens {
    /// Share of the chosen tokens that is shown as a random token.
    pub random: f64,
    /// Share of the chosen tokens that is shown as it is.
    pub unchanged: f64,
    /// Random tokens are drawn from the ids 4 to this, exclusively: `features.vocabulary`.
    pub vocabulary: i64,
}

/// Single tokens, a fixed share of them: data2vec 2.0, as fairseq's `random_masking` draws them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenMask {
    /// Share of the tokens that is hidden, exactly but for rounding up.
    pub probability: f64,
}

impl TextMaskConfig {
    /// Checks what can be checked without a batch.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
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
                    return Err(Error::config(format!("mask.others.{key}"), "must not be below 0"));
                }
            }
            if random + unchanged >= 1.0 {
                let reason = "must leave tokens to hide: random + unchanged below 1";
                return Err(Error::config("mask.others.random", reason));
            }
            if *vocabulary <= SPECIAL {
                let reason =
                    format!("{vocabulary} leaves no token: ids below {SPECIAL} are special");
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
        let lengths = checked(lengths, num_tokens)?;
        let mut hidden = Array2::from_elem((lengths.len(), num_tokens as usize), false); // (B, T)
        let mut substitutes = Vec::new();
        for (row, &len) in lengths.iter().enumerate() {
            let mut chosen = self.row(len, rng);
            if let Some(others) = &self.others {
                others.spare(row, &mut chosen, rng, &mut substitutes);
            }
            hidden
                .row_mut(row)
                .iter_mut()
                .zip(chosen)
                .for_each(|(hidden, chosen)| *hidden = chosen);
        }
        Mask::new(hidden)?.with_substitutes(substitutes)
    }
}

impl SpanMask {
    /// A row of `len` tokens, at least 2: at least one is chosen and one is not.
    fn row(&self, len: usize, rng: &mut StdRng) -> Vec<bool> {
        // Rounded up or down at random, so that the expected number is exact.
        let expected = self.probability * len as f64 / self.length as f64;
        let spans = ((expected + rng.random::<f64>()) as usize).clamp(1, len);
        let mut chosen = vec![false; len];
        for start in sample(rng, len, spans) {
            chosen[start..(start + self.length).min(len)].fill(true);
        }
        if !chosen.contains(&false) {
            chosen[rng.random_range(0..len)] = false; // a row that is shorter than a span
        }
        chosen
    }
}

impl OtherTokens {
    /// Takes some of the chosen tokens out of `chosen`; at least one stays hidden.
    fn spare(
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
                let entry = rng.random_range(SPECIAL..self.vocabulary);
                substitutes.push(Substitute { row, token, entry });
            }
        }
    }
}

impl MaskStrategy for TokenMask {
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask> {
        let lengths = checked(lengths, num_tokens)?;
        let mut hidden = Array2::from_elem((lengths.len(), num_tokens as usize), false); // (B, T)
        for (row, &len) in lengths.iter().enumerate() {
            let keep = ((len as f64 * (1.0 - self.probability)) as usize).clamp(1, len - 1);
            for token in sample(rng, len, len - keep) {
                hidden[(row, token)] = true;
            }
        }
        Mask::new(hidden)
    }
}

/// The lengths, if each row has room for a hidden and a visible token.
fn checked(lengths: &[i64], num_tokens: i64) -> Result<Vec<usize>> {
    let check = |(row, &len): (usize, &i64)| match usize::try_from(len) {
        Ok(real) if real >= 2 && len <= num_tokens => Ok(real),
        _ => Err(Error::Input(format!(
            "row {row} has {len} of {num_tokens} tokens; masks need 2 at least"
        ))),
    };
    lengths.iter().enumerate().map(check).collect()
}
