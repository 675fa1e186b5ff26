//! Evaluates a fine-tuned model on labelled examples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use data2vec_core::data::loader::{Plan, TOLERANCE};
use data2vec_core::eval::score::{Confusion, SequenceDecoder};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{
    Dataset, FinetuneModality, FinetunedModel, HeadTask, LabelledBatch, LabelledSource,
    LabelledSplits, OnProgress, Precision, Progress, Split,
};
use tch::Device;
use tracing::{info, warn};

use crate::evaluator::{Evaluator, Prediction};
use crate::finetune::MODEL_RECIPE;
use crate::recipe::{FinetuneRecipe, explain, read, set};

/// Options of [`evaluate`].
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// Directory of a fine-tuned model.
    pub model: PathBuf,
    /// Labelled examples.
    pub data: PathBuf,
    /// Split to evaluate on.
    pub split: EvaluateSplit,
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

/// Result of [`evaluate`].
#[derive(Debug)]
pub struct Evaluation {
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
    let EvaluateOptions { device, precision, .. } = *options;
    let model = FinetunedModel::<M::Encoder>::load(&options.model, device)?;
    let model = model.with_precision(precision);
    let task = model.head_config().task;
    let (data, split) = settings::<M>(options, &model)?;
    let LabelledSplits { train, held_out, test, summary, mut skipped, .. } =
        M::open_labelled(&LabelledSource {
            path: &options.data,
            data: &data,
            encoder: &options.model,
            config: model.config(),
            task,
            labels: Some(model.labels()),
            split,
            cache: None,
        })?;
    info!("{summary}");
    let dataset = match options.split {
        EvaluateSplit::Test => test,
        EvaluateSplit::HeldOut => held_out,
        EvaluateSplit::Train | EvaluateSplit::All => Some(M::without_augmentation(train)),
    };
    let dataset = dataset
        .with_context(|| format!("--split {:?}: fine-tuning made no such split", options.split))?;

    let mut evaluator = Evaluator::new(task, model.labels(), decoder(task, model.labels())?);
    let mut predictions: Vec<(String, Prediction)> = Vec::new();
    let largest = (0..dataset.len()).map(|i| dataset.size(i)).max().unwrap_or(1);
    let budget = options.batch.map_or(8 * largest, |batch| (batch * M::UNITS.size) as u64);
    let plan = Plan::new(&dataset, budget.max(largest), usize::MAX, TOLERANCE)?;
    let epoch = plan.epoch(0, 0);
    let mut done = 0;
    for index in 0..plan.batches() {
        let mut rng = stream(0, Purpose::HeldOut, &[index]);
        let (mut examples, mut names) = (Vec::new(), Vec::new());
        for &index in epoch.batch(index) {
            match dataset.load(index as usize, &mut rng) {
                Ok(example) => {
                    examples.push(example);
                    names.push(dataset.name(index as usize));
                }
                Err(error) => skipped.push(error.to_string()),
            }
            done += 1;
        }
        progress(Progress { what: "examples", done, total: dataset.len() as u64 });
        if examples.is_empty() {
            continue;
        }
        let batch: LabelledBatch = dataset.collate(examples, &mut rng)?.to_device(device);
        let new = evaluator.add(&model.score(&batch)?, &batch.targets)?;
        predictions.extend(names.into_iter().zip(new));
    }
    for reason in skipped.iter().take(10) {
        warn!("skipped {reason}");
    }
    if predictions.is_empty() {
        bail!("{}: no usable example", options.data.display());
    }
    predictions.sort_by(|a, b| b.1.error.total_cmp(&a.1.error));
    Ok(Evaluation {
        task,
        loss: evaluator.loss(),
        metrics: evaluator.metrics(),
        confusion: evaluator.confusion().clone(),
        labels: model.labels().to_vec(),
        predictions,
        skipped,
    })
}

/// Returns how the model's data were prepared and split.
fn settings<M: FinetuneModality>(
    options: &EvaluateOptions,
    model: &FinetunedModel<M::Encoder>,
) -> Result<(M::LabelledData, Split)> {
    let path = options.model.join(MODEL_RECIPE);
    if path.exists() {
        let recipe = FinetuneRecipe::<M>::from_table(&path, read(&path, None, &options.set)?)?;
        let split = match options.split {
            EvaluateSplit::All => Split::NONE,
            _ => recipe.split(),
        };
        return Ok((recipe.data, split));
    }
    if options.split != EvaluateSplit::All {
        bail!("--split: {} was not made by `data2vec finetune`", options.model.display());
    }
    let default = M::default_data(model.config(), model.head_config().task)?;
    Ok((with_overrides(&default, &options.set, Path::new("--set"))?, Split::NONE))
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
