//! Batches of raw signal, and the tokens that a feature encoder makes of them.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::seq::index::sample;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// One collated batch, still at the rate of the raw signal.
///
/// Padding, where there is any, is on the right: row `b` holds `lengths[b]` real values along
/// dimension 1. The lengths stay on the CPU, so that nothing in a step waits for the device.
#[derive(Debug)]
pub struct Batch {
    /// Speech `(B, S)` f32, vision `(B, C, H, W)` f32, text `(B, T)` i64.
    pub inputs: Tensor,
    lengths: Option<Vec<i64>>,
}

impl Batch {
    /// A batch without padding.
    ///
    /// # Errors
    /// [`Error::Input`] if `inputs` has fewer than two dimensions or is empty.
    pub fn new(inputs: Tensor) -> Result<Self> {
        let size = inputs.size();
        if size.len() < 2 || size.contains(&0) {
            return Err(Error::Input(format!(
                "a batch needs at least two dimensions, none of them 0, not {size:?}"
            )));
        }
        Ok(Self { inputs, lengths: None })
    }

    /// A batch whose row `b` is real up to `lengths[b]` and padding from there on.
    ///
    /// # Errors
    /// [`Error::Input`] as [`Batch::new`], or if `lengths` does not fit `inputs`.
    pub fn padded(inputs: Tensor, lengths: Vec<i64>) -> Result<Self> {
        let mut batch = Self::new(inputs)?;
        let (rows, longest) = (batch.inputs.size()[0], batch.inputs.size()[1]);
        if lengths.len() as i64 != rows {
            return Err(Error::Input(format!("{} lengths for {rows} rows", lengths.len())));
        }
        if let Some(bad) = lengths.iter().find(|&&n| n < 1 || n > longest) {
            return Err(Error::Input(format!("length {bad} is outside 1..={longest}")));
        }
        if lengths.iter().any(|&n| n < longest) {
            batch.lengths = Some(lengths);
        }
        Ok(batch)
    }

    /// Real values of each row along dimension 1; `None` when nothing is padded.
    pub fn lengths(&self) -> Option<&[i64]> {
        self.lengths.as_deref()
    }

    /// How many sequences (B).
    pub fn rows(&self) -> i64 {
        self.inputs.size()[0]
    }

    /// What it holds, by name: `inputs`, and `lengths` if anything is padded.
    pub fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let lengths = self.lengths().map(|lengths| ("lengths", Tensor::from_slice(lengths)));
        [("inputs", self.inputs.shallow_clone())].into_iter().chain(lengths).collect()
    }

    /// The same batch on `device`.
    pub fn to_device(&self, device: Device) -> Self {
        Self { inputs: upload(&self.inputs, device), lengths: self.lengths.clone() }
    }

    /// At most `count` of the sequences, of which `rng` says which, as long as the longest of them.
    pub fn some(&self, count: usize, rng: &mut StdRng) -> Self {
        let rows = self.rows() as usize;
        let mut chosen = sample(rng, rows, count.min(rows)).into_vec();
        chosen.sort_unstable();
        let places: Vec<i64> = chosen.iter().map(|&row| row as i64).collect();
        let inputs = self
            .inputs
            .index_select(0, &Tensor::from_slice(&places).to_device(self.inputs.device()));
        let Some(lengths) = &self.lengths else { return Self { inputs, lengths: None } };
        let lengths: Vec<i64> = chosen.iter().map(|&row| lengths[row]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padded = lengths.iter().any(|&n| n < longest);
        Self { inputs: inputs.narrow(1, 0, longest), lengths: padded.then_some(lengths) }
    }
}

/// A batch, and what a head should say of its rows.
#[derive(Debug)]
pub struct LabelledBatch {
    /// What the encoder sees.
    pub batch: Batch,
    /// What is right.
    pub targets: Targets,
}

/// What is right for the rows of a batch.
#[derive(Debug)]
pub enum Targets {
    /// `(B)` i64: each row's class.
    Classes(Tensor),
    /// `(B, C)` f32: the share of each class in each row, for mixed images and smoothed labels.
    Shares(Tensor),
    /// `(B)` f32: each row's number.
    Values(Tensor),
    /// Each row's sequence of labels.
    Sequences {
        /// i64, all rows' labels, one row after the other.
        ids: Tensor,
        /// How many labels each row has.
        lengths: Vec<i64>,
    },
}

impl LabelledBatch {
    /// What it holds, by name: that of the batch, and `targets`, of sequences with `target_lengths`.
    pub fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let mut tensors = self.batch.tensors();
        match &self.targets {
            Targets::Classes(x) | Targets::Shares(x) | Targets::Values(x) => {
                tensors.push(("targets", x.shallow_clone()));
            }
            Targets::Sequences { ids, lengths } => tensors.extend([
                ("targets", ids.shallow_clone()),
                ("target_lengths", Tensor::from_slice(lengths)),
            ]),
        }
        tensors
    }

    /// The same on `device`.
    pub fn to_device(&self, device: Device) -> Self {
        let targets = match &self.targets {
            Targets::Classes(x) => Targets::Classes(upload(x, device)),
            Targets::Shares(x) => Targets::Shares(upload(x, device)),
            Targets::Values(x) => Targets::Values(upload(x, device)),
            Targets::Sequences { ids, lengths } => {
                Targets::Sequences { ids: upload(ids, device), lengths: lengths.clone() }
            }
        };
        Self { batch: self.batch.to_device(device), targets }
    }
}

/// One vector for each token, with the true length of each row.
#[derive(Debug)]
pub struct Tokens {
    /// `(B, T, D)`.
    pub x: Tensor,
    lengths: Vec<i64>,
    /// `(B, T)` bool, true where `x` is padding; `None` when nothing is padded.
    pub padding: Option<Tensor>,
    grid: Option<[i64; 2]>,
}

impl Tokens {
    /// Tokens `(B, T, D)` of which row `b` has `lengths[b]` real ones; `None`: all are real.
    pub fn new(x: Tensor, lengths: Option<Vec<i64>>) -> Self {
        let (rows, len) = (x.size()[0], x.size()[1]);
        let lengths = lengths.unwrap_or_else(|| vec![len; rows as usize]);
        debug_assert_eq!(lengths.len() as i64, rows);
        let padding = padding_mask(&lengths, len, x.device());
        Self { x, lengths, padding, grid: None }
    }

    /// The same tokens as the rows, one after the other, of a grid of `height` × `width`.
    pub fn in_grid(mut self, height: i64, width: i64) -> Self {
        debug_assert_eq!(height * width, self.num_tokens());
        self.grid = Some([height, width]);
        self
    }

    /// Height and width of the tokens' arrangement; a sequence has one row.
    pub fn grid(&self) -> [i64; 2] {
        self.grid.unwrap_or([1, self.num_tokens()])
    }

    /// Real tokens of each row.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Tokens a row, padding included (T).
    pub fn num_tokens(&self) -> i64 {
        self.x.size()[1]
    }

    /// The same rows with other vectors of the same number.
    pub fn with(&self, x: Tensor) -> Self {
        Self {
            x,
            lengths: self.lengths.clone(),
            padding: self.padding.as_ref().map(Tensor::shallow_clone),
            grid: self.grid,
        }
    }

    /// Each row `copies` times, copies side by side: `(B·M, T, D)`.
    pub fn repeat(&self, copies: i64) -> Self {
        if copies == 1 {
            return self.with(self.x.shallow_clone());
        }
        let lengths =
            self.lengths.iter().flat_map(|&n| std::iter::repeat_n(n, copies as usize)).collect();
        let x = self.x.repeat_interleave_self_int(copies, 0, None); // (B·M, T, D)
        Self { grid: self.grid, ..Self::new(x, Some(lengths)) }
    }

    /// Some of the rows, as long as all of them are.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> Self {
        let x = self.x.narrow(0, rows.start as i64, rows.len() as i64);
        Self { grid: self.grid, ..Self::new(x, Some(self.lengths[rows.clone()].to_vec())) }
    }

    /// `x` with zeros at padded tokens.
    pub fn zero_padding(&self, x: &Tensor) -> Tensor {
        match &self.padding {
            Some(padding) => x.masked_fill(&padding.unsqueeze(-1), 0.0),
            None => x.shallow_clone(),
        }
    }
}

/// `x` on `device`, which need not have done what it was told before: a copy that waits for that would leave a GPU idle
/// while the next operations are called.
pub(crate) fn upload(x: &Tensor, device: Device) -> Tensor {
    x.to_device_(device, x.kind(), true, false)
}

/// `(B, len)` bool, true from each row's length on; `None` when no row is shorter than `len`.
pub fn padding_mask(lengths: &[i64], len: i64, device: Device) -> Option<Tensor> {
    if lengths.iter().all(|&n| n >= len) {
        return None;
    }
    let lengths = upload(&Tensor::from_slice(lengths), device).unsqueeze(1); // (B, 1)
    Some(Tensor::arange(len, (Kind::Int64, device)).unsqueeze(0).ge_tensor(&lengths)) // (B, T)
}
