//! Evaluates a fine-tuned model on labelled examples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use data2vec_core::eval::score::{Confusion, SequenceDecoder};
use data2vec_core::{
    Dataset, FinetuneModality, FinetunedModel, HeadTask, LabelledSource, LabelledSplits,
    OnProgress, Precision, Split,
};
use ndarray::Axis;
use tch::Device;
use tracing::{info, warn};

use crate::evaluator::{Evaluator, Prediction};
use crate::finetune::MODEL_RECIPE;
use crate::labelled_batches::{BatchOptions, for_each_batch};
use crate::recipe::{FinetuneRecipe, explain, read, set};

/// Options of [`evaluate`].
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// Directory of a fine-tuned model.
    pub model: PathBuf,
    /// Labelled examples.
    pub data: PathBuf,
    /// Split to evaluate on; `None`: the test split, or all examples if there is none.
    pub split: Option<EvaluateSplit>,
    /// Maximum size of a batch, in the modality's unit.
    pub batch: Option<f64>,
    /// Other values for keys of the model's `data` section, `KEY=VALUE`.
    pub set: Vec<String>,
    /// Device of the model.
    pub device: Device,
    /// Precision of the model.
    pub precision: Precision,
}

/// Part of the labelled examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvaluateSplit {
    /// Examples that nothing in fine-tuning depended on.
    Test,
    /// Examples that selected the best model.
    HeldOut,
    /// Training examples.
    Train,
    /// All of them.
    All,
}

impl EvaluateSplit {
    /// Returns the name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::HeldOut => "held-out",
            Self::Train => "training",
            Self::All => "all",
        }
    }
}

/// Result of [`evaluate`].
#[derive(Debug)]
pub struct Evaluation {
    /// The examples that were evaluated.
    pub split: EvaluateSplit,
    /// Accuracy of always predicting the most frequent class of these examples; classifiers only.
    pub most_frequent: Option<f64>,
    /// Task of the head.
    pub task: HeadTask,
    /// Names of the outputs.
    pub labels: Vec<String>,
    /// Mean loss over examples.
    pub loss: f64,
    /// Metrics by name.
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// Confusion matrix of a classifier.
    pub confusion: Confusion,
    /// Names and predictions of all examples, largest error first.
    pub predictions: Vec<(String, Prediction)>,
    /// Unreadable examples, with the reason.
    pub skipped: Vec<String>,
}

/// Evaluates the model in the directory `model` on the test examples of the data that it was
/// fine-tuned on; `None` if there are none.
///
/// # Errors
/// If the model or the data are unusable.
pub fn test<M: FinetuneModality>(
    model: &Path,
    data: &Path,
    device: Device,
    progress: OnProgress,
) -> Result<Option<Evaluation>> {
    let options = EvaluateOptions {
        model: model.to_owned(),
        data: data.to_owned(),
        split: Some(EvaluateSplit::Test),
        batch: None,
        set: Vec::new(),
        device,
        precision: Precision::F32,
    };
    let decoder = |task, labels: &[String]| match task {
        HeadTask::Ctc => M::sequence_decoder(labels).map(Some).map_err(Into::into),
        HeadTask::Classification | HeadTask::Regression => Ok(None),
    };
    evaluate_split::<M>(&options, decoder, progress)
}

/// Evaluates a model. `decoder` makes the decoder of a CTC head from its task and labels; `None`
/// for other tasks.
///
/// # Errors
/// If the model or the data are unusable.
pub fn evaluate<M: FinetuneModality>(
    options: &EvaluateOptions,
    decoder: impl FnOnce(HeadTask, &[String]) -> Result<Option<Box<dyn SequenceDecoder>>>,
    progress: OnProgress,
) -> Result<Evaluation> {
    let name = options.split.map_or("test", EvaluateSplit::name);
    evaluate_split::<M>(options, decoder, progress)?
        .with_context(|| format!("--split {name}: fine-tuning made no such split"))
}

/// As [`evaluate`]; `None` if fine-tuning made no such split.
fn evaluate_split<M: FinetuneModality>(
    options: &EvaluateOptions,
    decoder: impl FnOnce(HeadTask, &[String]) -> Result<Option<Box<dyn SequenceDecoder>>>,
    progress: OnProgress,
) -> Result<Option<Evaluation>> {
    let EvaluateOptions { device, precision, .. } = *options;
    let model = FinetunedModel::<M::Encoder>::load(&options.model, device)?;
    let model = model.with_precision(precision);
    let task = model.head_config().task;
    let (data, own_split) = settings::<M>(options, &model)?;
    let open = |split: Split| {
        M::open_labelled(&LabelledSource {
            path: &options.data,
            data: &data,
            encoder: &options.model,
            config: model.config(),
            task,
            labels: Some(model.labels()),
            split,
            cache: None,
        })
    };
    let wanted = match options.split {
        Some(EvaluateSplit::All) => Split::NONE,
        _ => own_split.unwrap_or(Split::NONE),
    };
    let LabelledSplits { train, held_out, test, summary, mut skipped, .. } = open(wanted)?;
    let (split, dataset) = match options.split {
        None if test.is_some() => (EvaluateSplit::Test, test),
        None => {
            warn!(
                "the data have no test split: all examples are evaluated, which include those of training if the model was fine-tuned on these data"
            );
            let all = if wanted == Split::NONE { train } else { open(Split::NONE)?.train };
            (EvaluateSplit::All, Some(all))
        }
        Some(split) => {
            let dataset = match split {
                EvaluateSplit::Test => test,
                EvaluateSplit::HeldOut => held_out,
                EvaluateSplit::Train | EvaluateSplit::All => Some(train),
            };
            (split, dataset)
        }
    };
    let name = split.name();
    let Some(dataset) = dataset else { return Ok(None) };
    let dataset = M::without_augmentation(dataset);
    info!("{summary}; evaluating the {name} examples");

    let mut evaluator = Evaluator::new(task, model.labels(), decoder(task, model.labels())?);
    let mut predictions: Vec<(String, Prediction)> = Vec::new();
    let budget = options.batch.map(|batch| (batch * M::UNITS.size) as u64);
    let batches = BatchOptions { budget, limit: usize::MAX, seed: 0 };
    let unreadable = for_each_batch(&dataset, batches, progress, |indices, batch| {
        let batch = batch.to_device(device);
        let new = evaluator.add(&model.score(&batch)?, &batch.targets)?;
        predictions.extend(indices.iter().map(|&index| dataset.name(index)).zip(new));
        Ok(())
    });
    skipped.extend(unreadable.with_context(|| options.data.display().to_string())?);
    predictions.sort_by(|a, b| b.1.error.total_cmp(&a.1.error));
    let rows = evaluator.confusion().counts().sum_axis(Axis(1));
    let most_frequent = rows.iter().max().map(|most| *most as f64 / predictions.len() as f64);
    Ok(Some(Evaluation {
        split,
        most_frequent: most_frequent.filter(|_| task == HeadTask::Classification),
        task,
        loss: evaluator.loss(),
        metrics: evaluator.metrics(),
        confusion: evaluator.confusion().clone(),
        labels: model.labels().to_vec(),
        predictions,
        skipped,
    }))
}

/// Returns how the model's data were prepared, and how fine-tuning split them; `None` for models of
/// other programs.
fn settings<M: FinetuneModality>(
    options: &EvaluateOptions,
    model: &FinetunedModel<M::Encoder>,
) -> Result<(M::LabelledData, Option<Split>)> {
    let path = options.model.join(MODEL_RECIPE);
    if path.exists() {
        let recipe = FinetuneRecipe::<M>::from_table(&path, read(&path, None, &options.set)?)?;
        let split = recipe.split();
        return Ok((recipe.data, Some(split)));
    }
    if !matches!(options.split, None | Some(EvaluateSplit::All)) {
        bail!("--split: {} was not made by `data2vec finetune`", options.model.display());
    }
    let default = M::default_data(model.config(), model.head_config().task)?;
    Ok((with_overrides(&default, &options.set, Path::new("--set"))?, None))
}

/// Applies `KEY=VALUE` overrides to a `data` section.
fn with_overrides<D: serde::Serialize + serde::de::DeserializeOwned>(
    data: &D,
    overrides: &[String],
    at: &Path,
) -> Result<D> {
    let mut table = toml::Table::new();
    table.insert("data".into(), toml::Value::try_from(data)?);
    for text in overrides {
        set(&mut table, text).with_context(|| format!("--set {text}"))?;
    }
    let data = table.remove("data").context("--set: the section is `data`")?;
    data.try_into()
        .map_err(|e: toml::de::Error| anyhow!("{}: {}", at.display(), explain(&e.to_string())))
}
