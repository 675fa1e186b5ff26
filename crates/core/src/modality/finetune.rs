//! What fine-tuning and probing need of a modality: labelled examples.

use std::fmt::Debug;
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tch::Device;

use crate::data::batch::LabelledBatch;
use crate::data::dataset::Dataset;
use crate::data::split::Amount;
use crate::error::{Error, Result};
use crate::eval::score::SequenceDecoder;
use crate::modality::baseline::{Examples, RawFeatures};
use crate::modality::{Features, Modality};
use crate::model::encoder::EncoderConfig;
use crate::model::head::HeadTask;
use crate::train::finetune::FinetuneMasks;
use crate::train::precision::Precision;

/// A modality whose encoders can be fine-tuned and probed.
pub trait FinetuneModality: Modality {
    /// Labelled examples.
    type Labelled: Dataset<Batch = LabelledBatch>;

    /// The `data` section of a fine-tuning recipe.
    type LabelledData: Clone + Debug + PartialEq + Serialize + DeserializeOwned;

    /// The `mask` section of a fine-tuning recipe; [`NoMask`] if nothing is masked.
    type FinetuneMask: Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned;

    /// Checks the `data` section for heads of this task.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid key.
    fn validate_finetuning(data: &Self::LabelledData, task: HeadTask) -> Result<()>;

    /// Returns the `data` section for a model that came without a recipe.
    ///
    /// # Errors
    /// [`Error::Config`] if the modality cannot do the task.
    fn default_data(
        config: &EncoderConfig<Features<Self>>,
        task: HeadTask,
    ) -> Result<Self::LabelledData>;

    /// Builds the masks of the `mask` section. The default masks nothing.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid key.
    fn finetune_masks(_mask: &Self::FinetuneMask) -> Result<FinetuneMasks> {
        Ok(FinetuneMasks::default())
    }

    /// Lists labelled examples.
    ///
    /// # Errors
    /// If nothing usable is there, or labels are missing.
    fn open_labelled(source: &LabelledSource<Self>) -> Result<LabelledSplits<Self::Labelled>>;

    /// Turns augmentation off. The default has none.
    fn without_augmentation(dataset: Self::Labelled) -> Self::Labelled {
        dataset
    }

    /// Returns features of the raw input of some training and test examples, without augmentation: the
    /// baseline that an encoder must beat. The default has none.
    ///
    /// # Errors
    /// If an example cannot be read.
    fn raw_features(
        _train: Examples<Self::Labelled>,
        _test: Examples<Self::Labelled>,
    ) -> Result<Option<RawFeatures>> {
        Ok(None)
    }

    /// Reads a fine-tuned classifier from the directory `model`. The default returns an error: not
    /// supported.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the head is not a classifier.
    fn classifier(model: &Path, _device: Device, _precision: Precision) -> Result<Box<Classifier>> {
        Err(Error::file(model, format!("`{}` models cannot classify files", Self::NAME)))
    }

    /// Returns the decoder of a CTC head with these labels. The default returns an error: not
    /// supported.
    ///
    /// # Errors
    /// [`Error::Config`] if the labels cannot be decoded.
    fn sequence_decoder(_labels: &[String]) -> Result<Box<dyn SequenceDecoder>> {
        Err(Error::config("head.task", format!("`{}` has no \"ctc\" heads", Self::NAME)))
    }

    /// Returns commands that use the model in the directory `model`, for the end of a run.
    fn commands(model: &str, task: HeadTask) -> Vec<String> {
        let verb = if task == HeadTask::Ctc { "transcribe" } else { "classify" };
        vec![format!("data2vec {verb} --model {model} FILES…")]
    }

    /// Writes files that users of a fine-tuned model need to its directory. The default writes
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written.
    fn export_labelled(_dataset: &Self::Labelled, _dir: &Path) -> Result<()> {
        Ok(())
    }
}

/// Classifies a file: labels with their probabilities, most probable first.
pub type Classifier = dyn Fn(&Path) -> Result<Vec<(String, f64)>>;

/// The `mask` section of modalities that mask nothing while fine-tuning: it has no key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoMask {}

/// Where labelled examples come from, and for which model.
#[derive(Debug)]
pub struct LabelledSource<'a, M: FinetuneModality> {
    /// The path that the user gave.
    pub path: &'a Path,
    /// The recipe's `data` section.
    pub data: &'a M::LabelledData,
    /// Directory of the encoder.
    pub encoder: &'a Path,
    /// Settings of the encoder.
    pub config: &'a EncoderConfig<Features<M>>,
    /// Task of the head.
    pub task: HeadTask,
    /// Names of the outputs, if a model has them already.
    pub labels: Option<&'a [String]>,
    /// How the examples are split.
    pub split: Split,
    /// Directory for indexes that make the next start faster.
    pub cache: Option<&'a Path>,
}

/// How labelled examples are split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// Share of all examples for the test split.
    pub test: f64,
    /// Share of the rest for evaluations during the run; data with a split of their own keep it.
    pub held_out: f64,
    /// Share of the remaining labels that is trained on.
    pub labels: f64,
    /// Seed of the splits.
    pub seed: u64,
    /// Seed of the choice of labels.
    pub label_seed: u64,
}

impl Split {
    /// All examples in the training split.
    pub const NONE: Self = Self { test: 0.0, held_out: 0.0, labels: 1.0, seed: 0, label_seed: 0 };
}

/// Labelled examples, split.
#[derive(Debug)]
pub struct LabelledSplits<D> {
    /// Training examples.
    pub train: D,
    /// Examples for evaluations during the run.
    pub held_out: Option<D>,
    /// Examples that nothing in the run depends on.
    pub test: Option<D>,
    /// Names of the outputs.
    pub labels: Vec<String>,
    /// One line that says what was found.
    pub summary: String,
    /// Unreadable examples, `path: reason` each.
    pub skipped: Vec<String>,
}

/// Labelled examples that can be split at random.
pub trait Splittable: Clone {
    /// Splits off about `share` of each class: returns (the rest, the share).
    ///
    /// # Errors
    /// [`Error::Config`] if a side would be empty.
    fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)>;

    /// Returns a subset of each class, e.g. 1 % of the labels. Larger amounts with the same `seed`
    /// contain smaller ones.
    ///
    /// # Errors
    /// [`Error::Config`] if the subset would be empty.
    fn subsample(&self, amount: Amount, seed: u64) -> Result<Self>;
}

/// Splits examples into training, held-out and test split. `own` are the validation examples that the
/// data bring, if any: they become the test split. Where nothing is held out, the test split serves
/// for evaluations too.
///
/// # Errors
/// What [`Splittable`] returns.
pub fn split<D: Splittable>(
    all: D,
    own: Option<D>,
    split: Split,
) -> Result<(D, Option<D>, Option<D>)> {
    let (mut train, mut test) = (all, own);
    if test.is_none() && split.test > 0.0 {
        let (rest, kept) = train.split(split.test, split.seed)?;
        (train, test) = (rest, Some(kept));
    }
    let mut held_out = test.clone();
    if split.held_out > 0.0 {
        // Another seed: the first shares of two sizes would be the same examples.
        let (rest, held) = train.split(split.held_out, split.seed + 1)?;
        (train, held_out) = (rest, Some(held));
    }
    if split.labels < 1.0 {
        train = train.subsample(Amount::Share(split.labels), split.label_seed)?;
    }
    Ok((train, held_out, test))
}
