//! Batches of raw signal, and the tokens that a feature encoder computes from them.

use std::ops::Range;

use ndarray::Array2;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// A collated batch of raw signal.
///
/// Padding is on the right: row `b` holds `lengths[b]` real values along dimension 1. Lengths stay
/// on the CPU, so that a step never waits for the device to read them.
#[derive(Debug)]
pub struct Batch {
    /// Speech `(B, S)` f32, vision `(B, C, H, W)` f32, text `(B, T)` i64.
    pub inputs: Tensor,
    lengths: Option<Vec<i64>>,
}

impl Batch {
    /// Creates a batch without padding.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if `inputs` has fewer than two dimensions or is empty.
    pub fn new(inputs: Tensor) -> Result<Self> {
        let size = inputs.size();
        if size.len() < 2 || size.contains(&0) {
            return Err(Error::Input(format!(
                "a batch needs at least two dimensions, all above 0, not {size:?}"
            )));
        }
        Ok(Self { inputs, lengths: None })
    }

    /// Creates a batch whose row `b` is padding from `lengths[b]` on.
    ///
    /// # Errors
    /// Returns [`Error::Input`] as [`Batch::new`] does, or if `lengths` does not match `inputs`.
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

    /// Returns the number of real values of each row along dimension 1; `None` if nothing is
    /// padded.
    pub fn lengths(&self) -> Option<&[i64]> {
        self.lengths.as_deref()
    }

    /// Returns the number of sequences (B).
    pub fn rows(&self) -> i64 {
        self.inputs.size()[0]
    }

    /// Returns the tensors by name: `inputs`, and `lengths` if anything is padded.
    pub fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let lengths = self.lengths().map(|lengths| ("lengths", Tensor::from_slice(lengths)));
        [("inputs", self.inputs.shallow_clone())].into_iter().chain(lengths).collect()
    }

    /// Copies the batch to `device`.
    pub fn to_device(&self, device: Device) -> Self {
        Self { inputs: upload(&self.inputs, device), lengths: self.lengths.clone() }
    }

    /// Samples at most `count` sequences and trims the padding to the longest of them.
    pub fn sample_rows(&self, count: usize, rng: &mut StdRng) -> Self {
        let rows = self.rows() as usize;
        let mut chosen = sample(rng, rows, count.min(rows)).into_vec();
        chosen.sort_unstable();
        let indices: Vec<i64> = chosen.iter().map(|&row| row as i64).collect();
        let indices = Tensor::from_slice(&indices).to_device(self.inputs.device());
        let inputs = self.inputs.index_select(0, &indices);
        let Some(lengths) = &self.lengths else { return Self { inputs, lengths: None } };
        let lengths: Vec<i64> = chosen.iter().map(|&row| lengths[row]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padded = lengths.iter().any(|&n| n < longest);
        Self { inputs: inputs.narrow(1, 0, longest), lengths: padded.then_some(lengths) }
    }
}

/// A batch with the targets of a head.
#[derive(Debug)]
pub struct LabelledBatch {
    /// Input of the encoder.
    pub batch: Batch,
    /// Targets of the rows.
    pub targets: Targets,
}

/// Targets of the rows of a batch.
#[derive(Debug)]
pub enum Targets {
    /// `(B)` i64: the class of each row.
    Classes(Tensor),
    /// `(B, C)` f32: probabilities of the classes, for mixed images and smoothed labels.
    SoftLabels(Tensor),
    /// `(B)` f32: the target value of each row.
    Values(Tensor),
    /// A sequence of labels per row.
    Sequences {
        /// i64: labels of all rows, concatenated.
        ids: Tensor,
        /// Number of labels of each row.
        lengths: Vec<i64>,
    },
}

impl LabelledBatch {
    /// Returns the tensors by name: those of the batch, `targets`, and `target_lengths` for
    /// sequences.
    pub fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let mut tensors = self.batch.tensors();
        match &self.targets {
            Targets::Classes(x) | Targets::SoftLabels(x) | Targets::Values(x) => {
                tensors.push(("targets", x.shallow_clone()));
            }
            Targets::Sequences { ids, lengths } => tensors.extend([
                ("targets", ids.shallow_clone()),
                ("target_lengths", Tensor::from_slice(lengths)),
            ]),
        }
        tensors
    }

    /// Copies the batch and its targets to `device`.
    pub fn to_device(&self, device: Device) -> Self {
        let targets = match &self.targets {
            Targets::Classes(x) => Targets::Classes(upload(x, device)),
            Targets::SoftLabels(x) => Targets::SoftLabels(upload(x, device)),
            Targets::Values(x) => Targets::Values(upload(x, device)),
            Targets::Sequences { ids, lengths } => {
                Targets::Sequences { ids: upload(ids, device), lengths: lengths.clone() }
            }
        };
        Self { batch: self.batch.to_device(device), targets }
    }
}

/// Token vectors, with the number of real tokens of each row.
#[derive(Debug)]
pub struct Tokens {
    /// `(B, T, D)`.
    pub x: Tensor,
    lengths: Vec<i64>,
    /// `(B, T)` bool, true where `x` is padding; `None` if nothing is padded.
    pub padding: Option<Tensor>,
    grid: Option<[i64; 2]>,
}

impl Tokens {
    /// Creates tokens from `x` `(B, T, D)`; row `b` has `lengths[b]` real tokens, all without
    /// `lengths`.
    pub fn new(x: Tensor, lengths: Option<Vec<i64>>) -> Self {
        let (rows, len) = (x.size()[0], x.size()[1]);
        let lengths = lengths.unwrap_or_else(|| vec![len; rows as usize]);
        debug_assert_eq!(lengths.len() as i64, rows);
        let padding = padding_mask(&lengths, len, x.device());
        Self { x, lengths, padding, grid: None }
    }

    /// Sets the arrangement of the tokens: a row-major grid of `height` × `width`.
    pub fn with_grid(mut self, height: i64, width: i64) -> Self {
        debug_assert_eq!(height * width, self.num_tokens());
        self.grid = Some([height, width]);
        self
    }

    /// Returns height and width of the grid of tokens; the height of a sequence is 1.
    pub fn grid(&self) -> [i64; 2] {
        self.grid.unwrap_or([1, self.num_tokens()])
    }

    /// Returns the number of real tokens of each row.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Returns the number of tokens per row, including padding (T).
    pub fn num_tokens(&self) -> i64 {
        self.x.size()[1]
    }

    /// Replaces the vectors and keeps lengths, padding and grid.
    pub fn with_x(&self, x: Tensor) -> Self {
        Self {
            x,
            lengths: self.lengths.clone(),
            padding: self.padding.as_ref().map(Tensor::shallow_clone),
            grid: self.grid,
        }
    }

    /// Repeats each row `copies` times, copies adjacent: `(B·M, T, D)`.
    pub fn repeat(&self, copies: i64) -> Self {
        if copies == 1 {
            return self.with_x(self.x.shallow_clone());
        }
        let lengths =
            self.lengths.iter().flat_map(|&n| std::iter::repeat_n(n, copies as usize)).collect();
        let x = self.x.repeat_interleave_self_int(copies, 0, None); // (B·M, T, D)
        Self { grid: self.grid, ..Self::new(x, Some(lengths)) }
    }

    /// Returns a range of rows with the same number of tokens T.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> Self {
        let x = self.x.narrow(0, rows.start as i64, rows.len() as i64);
        Self { grid: self.grid, ..Self::new(x, Some(self.lengths[rows.clone()].to_vec())) }
    }

    /// Sets padded tokens of `x` to zero.
    pub fn zero_padding(&self, x: &Tensor) -> Tensor {
        match &self.padding {
            Some(padding) => x.masked_fill(&padding.unsqueeze(-1), 0.0),
            None => x.shallow_clone(),
        }
    }
}

/// Copies `x` to `device` without waiting for the device; waiting would leave a GPU idle while the
/// next operations are launched.
pub fn upload(x: &Tensor, device: Device) -> Tensor {
    x.to_device_(device, x.kind(), true, false)
}

/// Copies a matrix to the CPU, as an f32 array.
///
/// # Errors
/// Returns [`Error::Torch`] if `x` does not have two dimensions.
pub fn to_array(x: &Tensor) -> Result<Array2<f32>> {
    let (rows, columns) = x.size2()?;
    let values = Vec::<f32>::try_from(x.to_device(Device::Cpu).to_kind(Kind::Float).flatten(0, 1))?;
    Array2::from_shape_vec((rows as usize, columns as usize), values)
        .map_err(|e| Error::Input(e.to_string()))
}

/// Returns the padding mask `(B, len)` bool, true at padding; `None` if no row is shorter than
/// `len`.
pub fn padding_mask(lengths: &[i64], len: i64, device: Device) -> Option<Tensor> {
    if lengths.iter().all(|&n| n >= len) {
        return None;
    }
    let lengths = upload(&Tensor::from_slice(lengths), device).unsqueeze(1); // (B, 1)
    Some(Tensor::arange(len, (Kind::Int64, device)).unsqueeze(0).ge_tensor(&lengths)) // (B, T)
}
