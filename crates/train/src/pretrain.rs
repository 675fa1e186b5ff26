//! Pretrains by a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use data2vec_core::data::loader::Plan;
use data2vec_core::method::loss::mean_std;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{
    Batch, Error, ExplainedVariance, FinetuneModality, MixtureDataset, Modality, Snapshot, Splits,
    TrainState, World,
};
use tch::{Device, Tensor};
use toml::Table;
use tracing::{info, warn};

use crate::doctor;
use crate::log::{Observer, Sinks};
use crate::metrics::{HeldOutLine, Line, Pretraining, TrainLine};
use crate::probe::Probe;
use crate::probe::online::OnlineProbe;
use crate::recipe::Recipe;
use crate::record::Record;
use crate::report::{PreviewBuilder, PreviewExamples};
use crate::run_dir::RunDir;
use crate::training::{Exported, Outcome, Run, RunOptions, TrainTask, feed};
use crate::{device, plan, process_group, sources};

/// Options of [`pretrain`].
pub struct PretrainOptions {
    /// Options of every run.
    pub run: RunOptions,
    /// Path of the data: a directory, a file, shards, or a `.toml` that lists several of these.
    pub data: PathBuf,
    /// Only measures how much memory the largest batch needs; nothing is trained.
    pub plan: bool,
}

/// Pretrains as `recipe` says, from the start or from the newest checkpoint in the run directory.
///
/// # Errors
/// If the data or the recipe are unusable, another recipe was started in the run directory, or
/// training fails.
pub fn pretrain<M: Modality>(recipe: Recipe<M>, options: PretrainOptions) -> Result<Outcome> {
    pretrain_with_probe(recipe, options, None)
}

/// Pretrains, and probes the features with the labelled data at `labelled` at every evaluation.
///
/// # Errors
/// As [`pretrain`], or if the labelled data are unusable.
pub fn pretrain_and_probe<M: FinetuneModality>(
    recipe: Recipe<M>,
    options: PretrainOptions,
    labelled: &Path,
) -> Result<Outcome> {
    let open = |parts: ProbeParts<M>| {
        let probe = OnlineProbe::<M>::open(labelled, parts.state, parts.cache, parts.seed)?;
        Ok(Box::new(probe) as Box<dyn Probe<M>>)
    };
    pretrain_with_probe(recipe, options, Some(&open))
}

/// Arguments for opening a probe.
struct ProbeParts<'a, M: Modality> {
    state: &'a TrainState<M::Encoder>,
    /// Directory with the files that users of the encoder need.
    cache: &'a Path,
    seed: u64,
}

type OpenProbe<'a, M> = &'a dyn Fn(ProbeParts<M>) -> Result<Box<dyn Probe<M>>>;

fn pretrain_with_probe<M: Modality>(
    recipe: Recipe<M>,
    options: PretrainOptions,
    probe: Option<OpenProbe<M>>,
) -> Result<Outcome> {
    let RunOptions { device, dist_timeout, .. } = &options.run;
    let (world, device) = process_group::init_process_group(device.as_deref(), *dist_timeout)?;
    process_group::run_with_abort(&world, || train(recipe, options, probe, &world, device))
}

fn train<M: Modality>(
    recipe: Recipe<M>,
    PretrainOptions { run: options, data, plan }: PretrainOptions,
    probe: Option<OpenProbe<M>>,
    world: &World,
    device: Device,
) -> Result<Outcome> {
    let (train, seed) = (recipe.train.clone(), recipe.seed);
    feed::check_world_size(&train, world.size())?;
    let table = Table::try_from(&recipe)?;
    let RunOptions { out, resume, other_data, report, stop, mut observers, .. } = options;
    let (dir, mut record) = RunDir::open_run(world, &out, |dir| {
        if plan {
            return Ok(None);
        }
        dir.check_recipe(&table, resume)?;
        Ok(Some(Record::begin(dir, &data, device, (seed, M::UNITS.name))))
    })?;
    world.assert_same("the recipe", &toml::to_string(&table)?)?;

    let splits = world.rank0_first(|| open::<M>(&data, &recipe, &dir, &mut observers))?;
    let fingerprint = M::fingerprint(splits.train.first());
    if let Some(fingerprint) = fingerprint.filter(|_| world.is_rank0()) {
        dir.check_fingerprint("tokenizer.sha256", "another tokenizer", fingerprint)?;
    }
    world.assert_same("the tokenizer", &format!("{fingerprint:?}"))?;
    process_group::assert_same_data(world, &splits.train)?;
    let mut state = recipe.state(device)?;
    let (all, encoder) = state.model.parameters();
    info!(
        "model: {:.1} M parameters, {:.1} M of them in the encoder, on {}",
        all as f64 / 1e6,
        encoder as f64 / 1e6,
        device::name(device)
    );
    if plan {
        let config = feed::loader_config(&train, seed, M::UNITS);
        let plan = feed::plan(&splits.train, &config)?;
        return plan::describe(&recipe, &mut state, &splits.train, &plan).map(Outcome::Planned);
    }
    state.join(world, train.shard_optimizer)?;
    process_group::log_batch_split(world, &train, M::UNITS);

    if let Some(record) = &mut record {
        record.set_examples(&splits.train, splits.held_out.as_ref(), other_data)?;
    }
    let mut bad = splits.skipped;
    let parts = (&train, seed, M::UNITS);
    // Rank 0 evaluates.
    let held_out = splits.held_out.as_ref().filter(|_| world.is_rank0());
    let held_out = feed::held_out_batches(held_out, parts, &mut bad)?;
    let probe = match probe.filter(|_| world.is_rank0()) {
        Some(open) => {
            let cache = dir.join("cache");
            M::export(splits.train.first(), &cache)?;
            Some(open(ProbeParts { state: &state, cache: &cache, seed })?)
        }
        None => None,
    };
    let builder = PreviewBuilder::new(&recipe, &data, splits.held_out.is_some());
    let dataset = Arc::new(splits.train);
    let task = PretrainTask {
        recipe,
        state,
        held_out,
        dataset: dataset.clone(),
        builder,
        probe,
        preview_examples: splits.held_out,
    };
    let sinks = record.map(|record| Sinks { record, observers });
    let run =
        Run::resume(task, dataset, dir, (&train, seed, M::UNITS), &bad, world.clone(), sinks)?;
    run.reporting(report).train(&stop)
}

/// Lists the examples and logs what was found.
fn open<M: Modality>(
    data: &Path,
    recipe: &Recipe<M>,
    dir: &RunDir,
    observers: &mut [Box<dyn Observer>],
) -> Result<Splits<MixtureDataset<M::Dataset>>> {
    let (train, cache) = (&recipe.train, dir.join("cache"));
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let splits = sources::open(data, recipe, &cache, &mut |progress| {
        observers.iter_mut().for_each(|observer| observer.progress(progress));
    })?;
    info!("data: {}", splits.summary);
    feed::warn_skipped(train, &splits.skipped)?;
    for side in [Some(&splits.train), splits.held_out.as_ref()].into_iter().flatten() {
        feed::check_sizes(train, side, M::UNITS)?;
    }
    if splits.held_out.is_none() {
        warn!("nothing is held out: no evaluation, and no `explained_variance`");
    }
    Ok(splits)
}

/// A pretraining run, as the training loop sees it.
struct PretrainTask<M: Modality> {
    recipe: Recipe<M>,
    state: TrainState<M::Encoder>,
    dataset: Arc<MixtureDataset<M::Dataset>>,
    held_out: Vec<Batch>,
    builder: PreviewBuilder<M>,
    probe: Option<Box<dyn Probe<M>>>,
    /// Held-out examples, of which the report shows some.
    preview_examples: Option<MixtureDataset<M::Dataset>>,
}

impl<M: Modality> PretrainTask<M> {
    /// Predicts held-out examples, with the same masks each time and without dropout.
    fn held_out_line(&self) -> Result<HeldOutLine> {
        let mut explained = ExplainedVariance::default();
        let (mut loss, mut count) = (0.0, 0.0);
        let (mut targets, mut predictions) = (Vec::new(), Vec::new());
        for (i, batch) in self.held_out.iter().enumerate() {
            let mut rng = stream(self.recipe.seed, Purpose::HeldOut, &[i as u64, 1]);
            tch::manual_seed(i as i64); // for the decoder's noise
            let batch = batch.to_device(self.state.model.device());
            let model = &self.state.model;
            let (input, objective) = tch::no_grad(|| {
                let input = model.prepare(&batch, &mut rng, false)?;
                let objective = model.student_forward(&input, None)?;
                Ok::<_, Error>((input, objective))
            })?;
            loss += objective.loss.double_value(&[]);
            count += objective.num_masked as f64;
            explained.add(&input, &model.comparable_target(&input.target), &objective);
            targets.push(objective.target);
            predictions.push(objective.prediction);
        }
        Ok(HeldOutLine {
            step: self.state.optim.step,
            loss: loss / count,
            explained_variance: explained.value(),
            explained_by_position: explained.by_position(),
            explained_content: explained.content(),
            target_std: mean_std(&targets)?,
            pred_std: mean_std(&predictions)?,
        })
    }
}

impl<M: Modality> TrainTask for PretrainTask<M> {
    type Batch = Batch;

    fn step(&self) -> u64 {
        self.state.optim.step
    }

    fn device(&self) -> Device {
        self.state.model.device()
    }

    fn take_step(&mut self, batches: &[(u64, &Batch)]) -> Result<Option<TrainLine>> {
        let report = self.state.step_at(batches)?;
        Ok((!report.skipped).then(|| TrainLine {
            step: report.step,
            loss: report.loss,
            weight: report.num_masked,
            grad_norm: report.grad_norm,
            lr: report.lr,
            pretraining: Some(Pretraining {
                target_std: report.target_std,
                pred_std: report.pred_std,
                masked_share: report.masked_share,
                ema_decay: report.ema_decay,
            }),
            ..TrainLine::default()
        }))
    }

    fn scale_lr(&mut self, scale: f64) {
        self.state.optim.lr_scale = scale;
    }

    fn tensors(batch: &Batch) -> Vec<(&'static str, Tensor)> {
        batch.tensors()
    }

    fn dry_run(&mut self, plan: &Plan) -> Result<()> {
        let trial = plan::heaviest(&self.recipe, &mut self.state, &*self.dataset, plan)?;
        info!("{}", trial.describe::<M>());
        if let Some(warning) = plan::warning(&trial, self.state.model.device()) {
            warn!("{warning}");
        }
        Ok(())
    }

    fn health(&self, batches: &[(u64, &Batch)]) -> Result<Option<Line>> {
        let at = (self.recipe.seed, self.state.optim.step);
        batches.first().map(|(_, batch)| doctor::measure(&self.state.model, batch, at)).transpose()
    }

    fn evaluate(&mut self) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        if !self.held_out.is_empty() {
            lines.push(Line::HeldOut(self.held_out_line()?));
        }
        if let Some(probe) = &self.probe {
            lines.push(probe.evaluate(&self.state)?);
        }
        Ok(lines)
    }

    fn on_evaluation(&mut self, _line: &Line, _is_new: bool) -> Result<()> {
        Ok(())
    }

    fn snapshot(&self) -> data2vec_core::Result<Snapshot> {
        self.state.snapshot()
    }

    fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        Ok(self.state.load(dir, step)?)
    }

    fn preview(&self) -> Result<Option<PreviewExamples>> {
        let model = &self.state.model;
        let examples = self.preview_examples.as_ref().unwrap_or(&self.dataset).first();
        self.builder
            .preview(examples, model.student(), model.device(), self.state.optim.step)
            .map(Some)
    }

    fn export(&mut self, dir: &RunDir) -> Result<Exported> {
        let encoder = dir.join("encoder");
        self.state.model.export(&encoder)?;
        M::export(self.dataset.first(), &encoder)?;
        let encoder = encoder.display().to_string();
        let next =
            vec![format!("data2vec extract --encoder {encoder} FILES… --out features.safetensors")];
        Ok(Exported { name: "encoder", dir: encoder, next })
    }
}
