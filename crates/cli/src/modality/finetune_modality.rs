//! What fine-tuning needs to know of a modality.

use std::fmt::Debug;
use std::path::Path;

use anyhow::Result;
use data2vec_core::tune::TuneMasks;
use data2vec_core::{Dataset, EncoderConfig, FeatureEncoder, HeadTask, LabelledBatch};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::modality::Modality;

/// A modality whose encoders can be fine-tuned.
pub trait Tunable: Modality {
    /// Labelled examples.
    type Labelled: Dataset<Batch = LabelledBatch>;
    /// The recipe's data section.
    type LabelledData: Clone + Debug + PartialEq + Serialize + DeserializeOwned;
    /// The recipe's mask section.
    type TuneMask: Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned;

    /// Whether the data section is possible, for heads of this task.
    fn check_tuning(data: &Self::LabelledData, task: HeadTask) -> Result<()>;

    /// The data section for models that came without a recipe.
    fn usual_data(
        config: &EncoderConfig<<Self::Encoder as FeatureEncoder>::Config>,
        task: HeadTask,
    ) -> Result<Self::LabelledData>;

    /// What is hidden while an encoder is fine-tuned.
    fn tune_masks(mask: &Self::TuneMask) -> Result<TuneMasks>;

    /// Lists labelled examples.
    fn open_labelled(source: &Source<Self>) -> Result<LabelledExamples<Self::Labelled>>;

    /// The same examples as they are, if training sees them otherwise.
    fn unvaried(dataset: Self::Labelled) -> Self::Labelled {
        dataset
    }

    /// What can be done with the model in the folder `model`.
    fn commands(model: &str, task: HeadTask) -> Vec<String> {
        let verb = if task == HeadTask::Ctc { "transcribe" } else { "classify" };
        vec![format!("data2vec {verb} --model {model} FILES…")]
    }

    /// Writes to a fine-tuned model's folder what its users need besides.
    fn export_labelled(_dataset: &Self::Labelled, _dir: &Path) -> Result<()> {
        Ok(())
    }
}

/// The mask section of those that hide nothing: there is no key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoMask {}

/// Where labelled examples come from, and for what.
pub struct Source<'a, M: Tunable> {
    /// What the user named.
    pub path: &'a Path,
    /// The recipe's data section.
    pub data: &'a M::LabelledData,
    /// Folder of the encoder.
    pub encoder: &'a Path,
    /// Its settings.
    pub config: &'a EncoderConfig<<M::Encoder as FeatureEncoder>::Config>,
    /// What is asked of the examples.
    pub task: HeadTask,
    /// Names of the outputs, where a model has them already.
    pub labels: Option<&'a [String]>,
    /// How the examples are divided.
    pub split: Split,
    /// What is remembered of the files for the next start.
    pub cache: Option<&'a Path>,
}

/// How labelled examples are divided.
#[derive(Clone, Copy)]
pub struct Split {
    /// Share that is kept for the end.
    pub test: f64,
    /// Share of the rest that is kept for evaluations; data that bring their own keep that.
    pub held_out: f64,
    /// Share of the rest that is trained on.
    pub labels: f64,
    /// Of which examples go where.
    pub seed: u64,
    /// Of which examples' labels are used.
    pub label_seed: u64,
}

impl Split {
    /// All examples in one.
    pub const NONE: Self = Self { test: 0.0, held_out: 0.0, labels: 1.0, seed: 0, label_seed: 0 };
}

/// Labelled examples, divided.
pub struct LabelledExamples<D> {
    /// To train on.
    pub train: D,
    /// For evaluations in the run.
    pub held_out: Option<D>,
    /// For the end.
    pub test: Option<D>,
    /// Names of the outputs.
    pub labels: Vec<String>,
    /// What was found, in one line.
    pub summary: String,
    /// Unusable ones, each with its reason.
    pub skipped: Vec<String>,
}

/// Examples that can be divided, as those of all modalities can.
pub trait Divide: Clone {
    /// The rest, and a share for validation.
    fn split(&self, share: f64, seed: u64) -> data2vec_core::Result<(Self, Self)>;
    /// A share of each class.
    fn few(&self, share: f64, seed: u64) -> data2vec_core::Result<Self>;
}

/// What is trained on, what evaluations see, and what is kept for the end: the data's own validation
/// examples, if there are any. Those serve for evaluations too where nothing is held out.
pub fn divide<D: Divide>(
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
        train = train.few(split.labels, split.label_seed)?;
    }
    Ok((train, held_out, test))
}
