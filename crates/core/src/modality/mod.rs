//! The traits that describe a modality to a trainer: how its recipe sections read, how its data are
//! opened, how a file becomes a batch. `data2vec-train` runs any type that implements them.

pub mod baseline;
pub mod convert;
pub mod extract;
pub mod finetune;
pub mod preview;
pub mod raw;

use std::fmt::Debug;
use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};
use tch::{Device, Tensor};

use crate::data::batch::Batch;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::method::mask::MaskStrategy;
use crate::modality::extract::Extractor;
use crate::modality::preview::Preview;
use crate::modality::raw::RawDataset;
use crate::model::feature::FeatureEncoder;
use crate::train::precision::Precision;

/// The settings of a modality's feature encoder.
pub type Features<M> = <<M as Modality>::Encoder as FeatureEncoder>::Config;

/// A modality that can be pretrained.
///
/// # For implementors
/// Only the items without a default are required; each default says what it leaves out. Nothing here
/// is called with settings that [`validate`](Self::validate) has refused.
pub trait Modality: Clone + Debug + PartialEq + 'static {
    /// Name in recipes, as in `modality = "speech"`.
    const NAME: &'static str;

    /// Unit of `train.batch` and of throughput.
    const UNITS: Units;

    /// Maps raw signal to tokens.
    type Encoder: FeatureEncoder + 'static;

    /// Unlabelled examples.
    type Dataset: Dataset<Batch = Batch>;

    /// The recipe's `data` section.
    type Data: Clone + Debug + PartialEq + Serialize + DeserializeOwned;

    /// The recipe's `mask` section.
    type Mask: Clone + Debug + PartialEq + Serialize + DeserializeOwned;

    /// Checks the `data` section, alone and against the features.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid key.
    fn validate(data: &Self::Data, features: &Features<Self>) -> Result<()>;

    /// Builds the mask strategy of the `mask` section.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid key.
    fn masking(mask: &Self::Mask, features: &Features<Self>) -> Result<Box<dyn MaskStrategy>>;

    /// Lists the examples at a path and holds a share of them out.
    ///
    /// # Errors
    /// If nothing usable is there.
    fn open(source: &Source<Self>, progress: OnProgress) -> Result<Splits<Self::Dataset>>;

    /// Loads the encoder exported to the directory `dir`, for feature extraction from files.
    ///
    /// # Errors
    /// If a file is missing or damaged, or belongs to another modality.
    fn extractor(dir: &Path, device: Device, precision: Precision) -> Result<Extractor>;

    /// Returns a batch of `rows` random examples, of `size` units each where sizes vary, for
    /// benchmarks.
    ///
    /// # Errors
    /// [`Error::Input`] if the size is invalid.
    fn random_batch(features: &Features<Self>, rows: i64, size: f64) -> Result<Batch>;

    /// Describes the files at `path` as they are stored, for `data stats`, `verify` and `pack`. The
    /// default returns an error: not supported.
    ///
    /// # Errors
    /// If nothing usable is there.
    fn raw_dataset(path: &Path, _data: Option<&Self::Data>) -> Result<RawDataset> {
        Err(Error::file(path, format!("`{}` data cannot be listed file by file", Self::NAME)))
    }

    /// Returns a fingerprint of the input encoding, such as a tokenizer's digest; a run resumes only
    /// with the same one. The default has none.
    fn fingerprint(_dataset: &Self::Dataset) -> Option<&str> {
        None
    }

    /// Renders one row of a batch's inputs, which becomes `tokens` tokens, for a report. The default
    /// renders nothing.
    ///
    /// # Errors
    /// [`Error::Torch`] if LibTorch fails.
    fn preview(
        _dataset: &Self::Dataset,
        _features: &Features<Self>,
        _example: &Tensor,
        _tokens: i64,
    ) -> Result<Option<Preview>> {
        Ok(None)
    }

    /// Returns what is known of examples: a class, or a transcript. `data` is the path that the user
    /// gave. The default knows nothing.
    ///
    /// # Errors
    /// If a table of labels is broken.
    fn labels(
        _dataset: &Self::Dataset,
        _data: &Path,
        indices: &[usize],
    ) -> Result<Vec<Option<String>>> {
        Ok(vec![None; indices.len()])
    }

    /// Writes files that users of an exported encoder need, such as a tokenizer, to its directory.
    /// The default writes nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written.
    fn export(_dataset: &Self::Dataset, _dir: &Path) -> Result<()> {
        Ok(())
    }
}

/// A unit in which examples are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Units {
    /// Plural name, as in "tokens".
    pub name: &'static str,
    /// [`Dataset::size`] of one unit.
    pub size: f64,
}

/// Where unlabelled examples come from and how they are read.
#[derive(Debug)]
pub struct Source<'a, M: Modality> {
    /// The path that the user gave.
    pub path: &'a Path,
    /// The recipe's `data` section.
    pub data: &'a M::Data,
    /// The recipe's `features` section.
    pub features: &'a Features<M>,
    /// Share of the examples that is held out.
    pub held_out: f64,
    /// Seed of the choice of held-out examples.
    pub seed: u64,
    /// Directory for indexes and caches that make the next start faster.
    pub cache: &'a Path,
}

/// Unlabelled examples, split.
#[derive(Debug)]
pub struct Splits<D> {
    /// Training examples.
    pub train: D,
    /// Held-out examples, never trained on.
    pub held_out: Option<D>,
    /// One line that says what was found.
    pub summary: String,
    /// Unreadable examples, `path: reason` each.
    pub skipped: Vec<String>,
}

/// Progress of long work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is counted, as in "tokens" or "files".
    pub what: &'static str,
    /// Amount done so far.
    pub done: u64,
    /// Total amount.
    pub total: u64,
}

/// Receives progress.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// Splits off the share `held_out` of the examples, if it is not 0.
///
/// # Errors
/// What `split` returns.
pub fn hold_out<D>(
    all: D,
    held_out: f64,
    split: impl FnOnce(&D, f64) -> Result<(D, D)>,
) -> Result<(D, Option<D>)> {
    if held_out == 0.0 {
        return Ok((all, None));
    }
    let (train, held_out) = split(&all, held_out)?;
    Ok((train, Some(held_out)))
}
