//! Fine-tunes an encoder by a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use data2vec_core::data::loader::Plan;
use data2vec_core::io::checkpoint::sha256;
use data2vec_core::model::encoder::{ENCODER_WEIGHTS, read_config};
use data2vec_core::{
    FinetuneModality, FinetuneState, HeadConfig, HeadTask, LabelledBatch, LabelledSource,
    LabelledSplits, Snapshot, StepConfig, World,
};
use tch::{Device, Tensor};
use toml::Table;
use tracing::{info, warn};

use crate::evaluator::Evaluator;
use crate::log::Sinks;
use crate::metrics::{Line, TrainLine, ValidationLine};
use crate::recipe::FinetuneRecipe;
use crate::record::Record;
use crate::report::{Evaluated, PreviewExamples};
use crate::run_dir::{self, RunDir};
use crate::selection::Selection;
use crate::training::{Exported, Outcome, Run, RunOptions, TrainTask, feed};
use crate::{device, process_group};

/// The recipe in the directory of a fine-tuned model.
pub const MODEL_RECIPE: &str = "finetune.toml";

/// Options of [`finetune`].
pub struct FinetuneOptions {
    /// Options of every run.
    pub run: RunOptions,
    /// Directory of an exported encoder.
    pub encoder: PathBuf,
    /// Path of the labelled data.
    pub data: PathBuf,
    /// Starts from random weights instead; freezes nothing.
    pub from_scratch: bool,
}

/// Fine-tunes as `recipe` says, from the start or from the newest checkpoint in the run directory.
///
/// # Errors
/// If the encoder, the data or the recipe are unusable, another recipe was started in the run
/// directory, or training fails.
pub fn finetune<M: FinetuneModality>(
    recipe: FinetuneRecipe<M>,
    options: FinetuneOptions,
) -> Result<Outcome> {
    let RunOptions { device, dist_timeout, .. } = &options.run;
    let (world, device) = process_group::init_process_group(device.as_deref(), *dist_timeout)?;
    process_group::run_with_abort(&world, || train(recipe, options, &world, device))
}

fn train<M: FinetuneModality>(
    recipe: FinetuneRecipe<M>,
    FinetuneOptions { run: options, encoder, data, from_scratch }: FinetuneOptions,
    world: &World,
    device: Device,
) -> Result<Outcome> {
    let config = read_config::<M::Encoder>(&encoder)?;
    let (train, seed) = (recipe.train.clone(), recipe.seed);
    feed::check_world_size(&train, world.size())?;
    let mut table = Table::try_from(&recipe)?;
    // A run with another start is another run.
    table.insert("from_scratch".into(), from_scratch.into());
    if !from_scratch {
        let weights = sha256(&encoder.join(ENCODER_WEIGHTS))?;
        table.insert("encoder_sha256".into(), weights.into());
    }
    let RunOptions { out, resume, other_data, report, stop, observers, .. } = options;
    let (dir, mut record) = RunDir::open_run(world, &out, |dir| {
        dir.check_recipe(&table, resume)?;
        Ok(Some(Record::begin(dir, &data, device, (seed, M::UNITS.name))))
    })?;
    world.assert_same("the recipe", &toml::to_string(&table)?)?;

    let cache = dir.join("cache");
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let source = LabelledSource {
        path: &data,
        data: &recipe.data,
        encoder: &encoder,
        config: &config,
        task: recipe.head.task,
        labels: None,
        split: recipe.split(),
        cache: Some(&cache),
    };
    let splits = world.rank0_first(|| M::open_labelled(&source))?;
    let LabelledSplits { train: dataset, held_out, labels, summary, skipped, .. } = splits;
    info!("data: {summary}");
    feed::warn_skipped(&train, &skipped)?;
    for side in [Some(&dataset), held_out.as_ref()].into_iter().flatten() {
        feed::check_sizes(&train, side, M::UNITS)?;
    }
    if held_out.is_none() {
        warn!("nothing is held out: no evaluation, and the last model counts as the best");
    }
    if world.is_rank0() {
        dir.check_fingerprint("labels.txt", "other labels", &labels.join("\n"))?;
    }
    world.assert_same("the labels", &labels.join("\n"))?;
    process_group::assert_same_data(world, &dataset)?;

    let head = HeadConfig { labels, ..recipe.head.clone() };
    let steps = StepConfig { steps: train.steps, clip_norm: train.clip_norm, seed };
    let mut state = FinetuneState::new(
        &encoder,
        from_scratch,
        head,
        M::finetune_masks(&recipe.mask)?,
        recipe.tune.clone(),
        (&recipe.optimizer, recipe.schedule.clone(), steps),
        device,
    )?;
    info!(
        "model: {:.1} M parameters, {}, on {}",
        state.parameters() as f64 / 1e6,
        if from_scratch { "from scratch" } else { "pretrained" },
        device::name(device)
    );

    state.join(world, train.shard_optimizer)?;
    process_group::log_batch_split(world, &train, M::UNITS);

    if let Some(record) = &mut record {
        record.set_examples(&dataset, held_out.as_ref(), other_data)?;
    }
    let mut bad = skipped;
    let parts = (&train, seed, M::UNITS);
    // Rank 0 evaluates.
    let held_out = held_out.as_ref().filter(|_| world.is_rank0());
    let held_out = feed::held_out_batches(held_out, parts, &mut bad)?;
    let dataset = Arc::new(dataset);
    let model = dir.join("model");
    let task = FinetuneTask {
        recipe,
        state,
        held_out,
        dataset: dataset.clone(),
        best: None,
        model,
        evaluated: None,
    };
    let sinks = record.map(|record| Sinks { record, observers });
    let run = Run::resume(task, dataset, dir, parts, &bad, world.clone(), sinks)?;
    run.reporting(report).train(&stop)
}

/// A fine-tuning run, as the training loop sees it.
struct FinetuneTask<M: FinetuneModality> {
    recipe: FinetuneRecipe<M>,
    state: FinetuneState<M::Encoder>,
    dataset: Arc<M::Labelled>,
    held_out: Vec<LabelledBatch>,
    /// The best evaluation so far.
    best: Option<Selection>,
    /// Predictions of the last evaluation.
    evaluated: Option<Evaluated>,
    /// Directory of the best model.
    model: PathBuf,
}

impl<M: FinetuneModality> FinetuneTask<M> {
    fn write_model(&self, selection: &Selection) -> Result<()> {
        self.state.export(&self.model)?;
        M::export_labelled(&self.dataset, &self.model)?;
        selection.write(&self.model)?;
        run_dir::write(&self.model.join(MODEL_RECIPE), &toml::to_string(&self.recipe)?)
    }
}

impl<M: FinetuneModality> TrainTask for FinetuneTask<M> {
    type Batch = LabelledBatch;

    fn step(&self) -> u64 {
        self.state.optim.step
    }

    fn device(&self) -> Device {
        self.state.device()
    }

    fn take_step(&mut self, batches: &[(u64, &LabelledBatch)]) -> Result<Option<TrainLine>> {
        let report = self.state.step_at(batches)?;
        Ok((!report.skipped).then(|| TrainLine {
            step: report.step,
            loss: report.loss,
            weight: report.examples,
            grad_norm: report.grad_norm,
            lr: report.lr,
            ..TrainLine::default()
        }))
    }

    fn scale_lr(&mut self, scale: f64) {
        self.state.optim.lr_scale = scale;
    }

    fn tensors(batch: &LabelledBatch) -> Vec<(&'static str, Tensor)> {
        batch.tensors()
    }

    fn dry_run(&mut self, _plan: &Plan) -> Result<()> {
        Ok(())
    }

    fn evaluate(&mut self) -> Result<Vec<Line>> {
        if self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let (task, labels) = (self.recipe.head.task, self.state.model().labels());
        let decoder = match task {
            HeadTask::Ctc => Some(M::sequence_decoder(labels)?),
            HeadTask::Classification | HeadTask::Regression => None,
        };
        let mut evaluator = Evaluator::new(task, labels, decoder);
        let mut predictions = Vec::new();
        for batch in &self.held_out {
            predictions.extend(evaluator.add(&self.state.score(batch, None)?, &batch.targets)?);
        }
        self.evaluated = Some(Evaluated::new(&evaluator, predictions, labels));
        let (step, loss, metrics) = (self.state.optim.step, evaluator.loss(), evaluator.metrics());
        Ok(vec![Line::Validation(ValidationLine { step, loss, metrics })])
    }

    fn on_evaluation(&mut self, line: &Line, is_new: bool) -> Result<()> {
        let Line::Validation(line) = line else { return Ok(()) };
        let select = self.recipe.select;
        let Some(&value) = line.metrics.get(select.name()) else { return Ok(()) };
        let is_best = match &self.best {
            // An untrained head is kept only if it is better.
            Some(Selection { step: 0, value: Some(best), .. }) => !select.is_better(*best, value),
            Some(Selection { value: Some(best), .. }) => select.is_better(value, *best),
            _ => true,
        };
        if is_best {
            let (metric, value) = (Some(select.name().to_owned()), Some(value));
            let selection = Selection { step: line.step, metric, value };
            if is_new {
                self.write_model(&selection)?;
            }
            self.best = Some(selection);
        }
        Ok(())
    }

    fn snapshot(&self) -> data2vec_core::Result<Snapshot> {
        self.state.snapshot()
    }

    fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        self.best = None; // evaluations after `step` no longer count
        Ok(self.state.load(dir, step)?)
    }

    fn preview(&self) -> Result<Option<PreviewExamples>> {
        let step = self.state.optim.step;
        let evaluated = self.evaluated.clone();
        Ok(evaluated.map(|all| PreviewExamples { step, gallery: None, evaluated: Some(all) }))
    }

    fn export(&mut self, _dir: &RunDir) -> Result<Exported> {
        let last = Selection { step: self.step(), metric: None, value: None };
        if self.best.is_none() {
            self.write_model(&last)?;
        }
        ensure!(self.model.exists(), "{} is gone", self.model.display());
        match &self.best {
            Some(best) if best.step == 0 => warn!(
                "THE HEAD IS UNTRAINED: no step was better than step 0 ({} on held-out examples); train longer, or raise schedule.lr",
                best.metric()
            ),
            Some(best) => info!(
                "the model is that of step {}, the best on held-out examples: {}",
                best.step,
                best.metric()
            ),
            None => {}
        }
        let model = self.model.display().to_string();
        let mut next = M::commands(&model, self.recipe.head.task);
        next.push(format!("data2vec evaluate --model {model} --data YOUR_DATA"));
        Ok(Exported { name: "model", dir: model, next })
    }
}
