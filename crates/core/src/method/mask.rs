//! Masks: which tokens the student does not see.

use std::fmt::Debug;
use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};
use rand::rngs::StdRng;
use tch::{Device, Kind, Tensor};

use crate::data::batch::{padding_mask, upload};
use crate::error::{Error, Result};

/// Chooses the tokens to mask.
pub trait MaskStrategy: Debug + Send {
    /// Draws a mask for rows of `num_tokens` tokens, of which the first `lengths[b]` are real.
    ///
    /// # For implementors
    /// Never mask padding or a whole row. Draw from `rng` only.
    ///
    /// # Errors
    /// [`Error::Input`] if a row is too short to have a masked and a visible token.
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask>;
}

/// The masked tokens of a batch. Kept on the CPU, so that counts and indices need no round trip to
/// the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    masked: Array2<bool>,
    num_masked: i64,
    substitutes: Vec<Substitute>,
}

/// A visible token that is shown as another one (BERT's random words); nothing is predicted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Substitute {
    /// Row of the mask.
    pub row: usize,
    /// Index of the token in its row.
    pub token: usize,
    /// Vocabulary id of the token shown in its place.
    pub id: i64,
}

/// The tokens that remain when the masked ones are dropped.
#[derive(Debug)]
pub struct Visible {
    /// `(B, K)` i64: indices of visible tokens, increasing; rows with fewer than K end in fillers.
    pub ids_keep: Tensor,
    /// `(B, K)` bool, true at fillers; `None` when all rows have K visible tokens.
    pub padding: Option<Tensor>,
    /// `(B·T)` i64: index of each token among the flattened `(B·K)` visible ones; `B·K` for masked
    /// tokens and padding.
    restore: Tensor,
    /// `(B, T, 1)` bool, true at masked tokens.
    masked: Tensor,
}

impl Mask {
    /// Creates a mask from `masked` `(B, T)`, true = masked.
    ///
    /// # Errors
    /// [`Error::Input`] if nothing in the batch is masked, or all of a row.
    pub fn new(masked: Array2<bool>) -> Result<Self> {
        let num_masked = masked.iter().filter(|&&h| h).count() as i64;
        if num_masked == 0 {
            return Err(Error::Input("the mask is empty".into()));
        }
        if let Some(row) = masked.rows().into_iter().position(|row| row.iter().all(|&h| h)) {
            return Err(Error::Input(format!("the mask covers all of row {row}")));
        }
        Ok(Self { masked, num_masked, substitutes: Vec::new() })
    }

    /// Shows other tokens in some visible places.
    ///
    /// # Errors
    /// [`Error::Input`] if a place is masked or outside the mask.
    pub fn with_substitutes(mut self, substitutes: Vec<Substitute>) -> Result<Self> {
        if let Some(bad) =
            substitutes.iter().find(|s| self.masked.get((s.row, s.token)) != Some(&false))
        {
            return Err(Error::Input(format!("{bad:?} is not at a visible token")));
        }
        self.substitutes = substitutes;
        Ok(self)
    }

    /// Visible tokens that are shown as other ones.
    pub fn substitutes(&self) -> &[Substitute] {
        &self.substitutes
    }

    /// Swaps masked and visible among the first `lengths[b]` tokens of each row.
    pub(crate) fn inverted(&self, lengths: &[i64]) -> Self {
        let mut masked = self.masked.clone();
        for (mut row, &real) in masked.rows_mut().into_iter().zip(lengths) {
            row.iter_mut().take(real as usize).for_each(|h| *h = !*h);
        }
        let num_masked = lengths.iter().sum::<i64>() - self.num_masked;
        Self { masked, num_masked, substitutes: Vec::new() }
    }

    /// Selects some of the rows. They may have no masked token.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> Self {
        let masked = self.masked.slice(s![rows.clone(), ..]).to_owned();
        let num_masked = masked.iter().filter(|&&h| h).count() as i64;
        Self { masked, num_masked, substitutes: Vec::new() }
    }

    /// Number of masked tokens of each row.
    pub fn counts(&self) -> Vec<i64> {
        self.masked.rows().into_iter().map(|r| r.iter().filter(|&&h| h).count() as i64).collect()
    }

    /// `(B, T)`, true = masked.
    pub fn masked(&self) -> ArrayView2<'_, bool> {
        self.masked.view()
    }

    /// Number of masked tokens in the batch (N).
    pub fn num_masked(&self) -> i64 {
        self.num_masked
    }

    /// Share of masked tokens among all `lengths` real ones.
    pub fn share(&self, lengths: &[i64]) -> f64 {
        self.num_masked as f64 / lengths.iter().sum::<i64>() as f64
    }

    /// Copies the mask to `device`: `(B, T)` bool.
    pub fn to_tensor(&self, device: Device) -> Tensor {
        let flat: Vec<bool> = self.masked.iter().copied().collect();
        let (rows, len) = self.masked.dim();
        upload(&Tensor::from_slice(&flat), device).reshape([rows as i64, len as i64])
    }

    /// Gathers `x` `(B / copies, T, D)` at masked tokens: `(N, D)`, in row-major order of the mask.
    /// Each row of `x` belongs to `copies` adjacent rows of the mask.
    pub fn gather(&self, x: &Tensor, copies: i64) -> Tensor {
        let index = upload(&Tensor::from_slice(&self.places(copies, 0)), x.device());
        x.flatten(0, 1).index_select(0, &index) // (N, D)
    }

    /// Returns the indices of masked tokens among flattened ones `(B / copies, prefix + T)`, in the
    /// order of [`gather`](Self::gather).
    pub(crate) fn places(&self, copies: i64, prefix: i64) -> Vec<i64> {
        let len = prefix + self.masked.ncols() as i64;
        let masked = self.masked.indexed_iter().filter(|&(_, &masked)| masked);
        masked
            .map(|((row, token), _)| (row as i64 / copies) * len + prefix + token as i64)
            .collect()
    }

    /// Returns the visible tokens of rows with `lengths` real ones.
    pub fn visible(&self, lengths: &[i64], device: Device) -> Visible {
        let (rows, len) = self.masked.dim();
        let kept: Vec<Vec<i64>> = self
            .masked
            .rows()
            .into_iter()
            .zip(lengths)
            .map(|(row, &real)| (0..real).filter(|&t| !row[t as usize]).collect())
            .collect();
        let most = kept.iter().map(Vec::len).max().unwrap_or(0);
        let counts: Vec<i64> = kept.iter().map(|ids| ids.len() as i64).collect();

        let mut ids_keep = vec![0_i64; rows * most]; // fillers repeat token 0 and are never attended to
        let mut restore = vec![(rows * most) as i64; rows * len];
        for (row, ids) in kept.iter().enumerate() {
            for (place, &token) in ids.iter().enumerate() {
                ids_keep[row * most + place] = token;
                restore[row * len + token as usize] = (row * most + place) as i64;
            }
        }
        Visible {
            ids_keep: upload(&Tensor::from_slice(&ids_keep), device)
                .reshape([rows as i64, most as i64]),
            padding: padding_mask(&counts, most as i64, device),
            restore: upload(&Tensor::from_slice(&restore), device),
            masked: self.to_tensor(device).unsqueeze(-1),
        }
    }
}

impl Visible {
    /// Sets `x` `(B, T, D)` to zero at masked tokens.
    pub fn zero_masked(&self, x: &Tensor) -> Tensor {
        x.masked_fill(&self.masked, 0.0)
    }

    /// Gathers the visible tokens of `x` `(B, T, D)`: `(B, K, D)`.
    pub fn gather(&self, x: &Tensor) -> Tensor {
        let (rows, len, dim) = dims3(x);
        let first = Tensor::arange(rows, (Kind::Int64, x.device())).unsqueeze(1) * len; // (B, 1)
        let index = (&self.ids_keep + first).flatten(0, 1); // (B·K)
        x.reshape([rows * len, dim]).index_select(0, &index).reshape([rows, -1, dim])
    }

    /// Restores full length `(B, T, D)`: `x` `(B, K, D)` at visible tokens, `noise` `(B, T, D)` at
    /// masked ones, zero at padding.
    pub fn restore(&self, x: &Tensor, noise: &Tensor) -> Tensor {
        let (rows, len, dim) = dims3(noise);
        let zero = Tensor::zeros([1, dim], (x.kind(), x.device()));
        let placed = Tensor::cat(&[x.reshape([-1, dim]), zero], 0).index_select(0, &self.restore);
        placed.reshape([rows, len, dim]) + noise.to_kind(x.kind()) * &self.masked // (B, T, D)
    }
}

fn dims3(x: &Tensor) -> (i64, i64, i64) {
    let size = x.size();
    (size[0], size[1], size[2])
}
