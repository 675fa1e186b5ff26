//! Which tokens a student does not see.

use std::fmt::Debug;
use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};
use rand::rngs::StdRng;
use tch::{Device, Kind, Tensor};

use crate::batch::upload;
use crate::{Error, Result};

/// Decides which tokens to hide.
pub trait MaskStrategy: Debug + Send {
    /// A mask for rows with `lengths[b]` real tokens of `num_tokens`.
    ///
    /// # For implementors
    /// Never hide padding or a whole row. Draw from `rng` alone.
    ///
    /// # Errors
    /// [`Error::Input`] if a row is too short to hide anything and leave something.
    fn sample(&self, lengths: &[i64], num_tokens: i64, rng: &mut StdRng) -> Result<Mask>;
}

/// Hidden tokens of a batch. It lives on the CPU: counts and indices need no round trip to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    hidden: Array2<bool>,
    num_hidden: i64,
    substitutes: Vec<Substitute>,
}

/// A token that is not hidden, but shown as another one; nothing is predicted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Substitute {
    /// Row of the mask.
    pub row: usize,
    /// Which token.
    pub token: usize,
    /// Entry of the features' vocabulary that is shown in its place.
    pub entry: i64,
}

/// The tokens that are left when the hidden ones are dropped.
#[derive(Debug)]
pub struct Visible {
    /// `(B, K)` i64: which tokens, in increasing order; rows with fewer than K end in fillers.
    pub ids_keep: Tensor,
    /// `(B, K)` bool, true at fillers; `None` when all rows have K visible tokens.
    pub padding: Option<Tensor>,
    /// `(B·T)` i64: for every token its place in the flattened `(B·K)` visible ones, or `B·K` (the
    /// place of noise) for hidden tokens and padding.
    restore: Tensor,
    /// `(B, T, 1)` bool, true at hidden tokens.
    hidden: Tensor,
}

impl Mask {
    /// `hidden` `(B, T)`, true = hidden.
    ///
    /// # Errors
    /// [`Error::Input`] if nothing is hidden in the whole batch, or a row is hidden whole.
    pub fn new(hidden: Array2<bool>) -> Result<Self> {
        let num_hidden = hidden.iter().filter(|&&h| h).count() as i64;
        if num_hidden == 0 {
            return Err(Error::Input("the mask hides nothing".into()));
        }
        if let Some(row) = hidden.rows().into_iter().position(|row| row.iter().all(|&h| h)) {
            return Err(Error::Input(format!("the mask hides all of row {row}")));
        }
        Ok(Self { hidden, num_hidden, substitutes: Vec::new() })
    }

    /// The same, with other tokens shown in some visible places.
    ///
    /// # Errors
    /// [`Error::Input`] if a place is hidden or outside the mask.
    pub fn with_substitutes(mut self, substitutes: Vec<Substitute>) -> Result<Self> {
        if let Some(bad) =
            substitutes.iter().find(|s| self.hidden.get((s.row, s.token)) != Some(&false))
        {
            return Err(Error::Input(format!("{bad:?} is not in a visible place")));
        }
        self.substitutes = substitutes;
        Ok(self)
    }

    /// Visible tokens that are shown as others.
    pub fn substitutes(&self) -> &[Substitute] {
        &self.substitutes
    }

    /// Real tokens of rows with `lengths` of them, hidden where they were visible: for looking at the
    /// hidden ones alone.
    pub(crate) fn inverted(&self, lengths: &[i64]) -> Self {
        let mut hidden = self.hidden.clone();
        for (mut row, &real) in hidden.rows_mut().into_iter().zip(lengths) {
            row.iter_mut().take(real as usize).for_each(|h| *h = !*h);
        }
        let num_hidden = lengths.iter().sum::<i64>() - self.num_hidden;
        Self { hidden, num_hidden, substitutes: Vec::new() }
    }

    /// Some of the rows. They may hide nothing.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> Self {
        let hidden = self.hidden.slice(s![rows.clone(), ..]).to_owned();
        let num_hidden = hidden.iter().filter(|&&h| h).count() as i64;
        Self { hidden, num_hidden, substitutes: Vec::new() }
    }

    /// Hidden tokens of each row.
    pub fn counts(&self) -> Vec<i64> {
        self.hidden.rows().into_iter().map(|r| r.iter().filter(|&&h| h).count() as i64).collect()
    }

    /// `(B, T)`, true = hidden.
    pub fn hidden(&self) -> ArrayView2<'_, bool> {
        self.hidden.view()
    }

    /// How many tokens are hidden in the whole batch (N).
    pub fn num_hidden(&self) -> i64 {
        self.num_hidden
    }

    /// Share of hidden tokens among all `lengths` real ones.
    pub fn share(&self, lengths: &[i64]) -> f64 {
        self.num_hidden as f64 / lengths.iter().sum::<i64>() as f64
    }

    /// `(B, T)` bool on `device`.
    pub fn to_tensor(&self, device: Device) -> Tensor {
        let flat: Vec<bool> = self.hidden.iter().copied().collect();
        let (rows, len) = self.hidden.dim();
        upload(&Tensor::from_slice(&flat), device).reshape([rows as i64, len as i64])
    }

    /// The rows of `x` `(B / copies, T, D)` at hidden tokens: `(N, D)`, in row-major order of the
    /// mask. With `copies` > 1 each row of `x` stands for that many adjacent rows of the mask.
    pub fn gather(&self, x: &Tensor, copies: i64) -> Tensor {
        let index = upload(&Tensor::from_slice(&self.places(copies, 0)), x.device());
        x.flatten(0, 1).index_select(0, &index) // (N, D)
    }

    /// Where the hidden ones are among flattened tokens `(B / copies, prefix + T)`, in the order of
    /// [`gather`](Self::gather).
    pub(crate) fn places(&self, copies: i64, prefix: i64) -> Vec<i64> {
        let len = prefix + self.hidden.ncols() as i64;
        let hidden = self.hidden.indexed_iter().filter(|&(_, &hidden)| hidden);
        hidden
            .map(|((row, token), _)| (row as i64 / copies) * len + prefix + token as i64)
            .collect()
    }

    /// What is visible, of rows with `lengths` real tokens.
    pub fn visible(&self, lengths: &[i64], device: Device) -> Visible {
        let (rows, len) = self.hidden.dim();
        let kept: Vec<Vec<i64>> = self
            .hidden
            .rows()
            .into_iter()
            .zip(lengths)
            .map(|(row, &real)| (0..real).filter(|&t| !row[t as usize]).collect())
            .collect();
        let most = kept.iter().map(Vec::len).max().unwrap_or(0);
        let counts: Vec<i64> = kept.iter().map(|ids| ids.len() as i64).collect();

        let mut ids_keep = vec![0_i64; rows * most]; // a filler repeats token 0 and is never attended to
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
            padding: crate::padding_mask(&counts, most as i64, device),
            restore: upload(&Tensor::from_slice(&restore), device),
            hidden: self.to_tensor(device).unsqueeze(-1),
        }
    }
}

impl Visible {
    /// `x` `(B, T, D)` with zeros at hidden tokens.
    pub fn without_hidden(&self, x: &Tensor) -> Tensor {
        x.masked_fill(&self.hidden, 0.0)
    }

    /// The visible rows of `x` `(B, T, D)`: `(B, K, D)`.
    pub fn gather(&self, x: &Tensor) -> Tensor {
        let (rows, len, dim) = dims3(x);
        let first = Tensor::arange(rows, (Kind::Int64, x.device())).unsqueeze(1) * len; // (B, 1)
        let index = (&self.ids_keep + first).flatten(0, 1); // (B·K)
        x.reshape([rows * len, dim]).index_select(0, &index).reshape([rows, -1, dim])
    }

    /// Back to full length: `x` `(B, K, D)` at visible tokens, `noise` `(B, T, D)` at hidden ones,
    /// zero at padding: `(B, T, D)`.
    pub fn restore(&self, x: &Tensor, noise: &Tensor) -> Tensor {
        let (rows, len, dim) = dims3(noise);
        let zero = Tensor::zeros([1, dim], (x.kind(), x.device()));
        let placed = Tensor::cat(&[x.reshape([-1, dim]), zero], 0).index_select(0, &self.restore);
        placed.reshape([rows, len, dim]) + noise.to_kind(x.kind()) * &self.hidden // (B, T, D)
    }
}

fn dims3(x: &Tensor) -> (i64, i64, i64) {
    let size = x.size();
    (size[0], size[1], size[2])
}
