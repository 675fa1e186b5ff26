//! Pretraining, in the loop that it shares with fine-tuning.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use data2vec_core::loader::Plan;
use data2vec_core::loss::spread;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Batch, Explained, Mixed, Ranks, Snapshot, TrainState};
use tch::{Device, Tensor};
use toml::Table;

use crate::log::Log;
use crate::metrics::{HeldOutLine, Line, Pretraining, TrainLine};
use crate::modality::{Examples, Modality, Task, Tunable};
use crate::page::{Curator, Exhibits};
use crate::probe::OnlineProbe;
use crate::recipe::Recipe;
use crate::report::{note, out, tell};
use crate::run::RunFolder;
use crate::signals::Stop;
use crate::training::{Opening, Results, Run, Trainee, feed};
use crate::{PretrainArgs, device, doctor, plan, ranks, sources};

impl Task for &PretrainArgs {
    fn run<M: Tunable>(self, path: &Path, table: Table) -> Result<ExitCode> {
        run(self, Recipe::<M>::from_table(path, table)?)
    }
}

/// Trains as `recipe` says, from the start or from the newest checkpoint in `--out`.
fn run<M: Tunable>(args: &PretrainArgs, recipe: Recipe<M>) -> Result<ExitCode> {
    let device = args.device.as_deref();
    args.conduct.begin(device, |stop, ranks, device| train(args, recipe, stop, ranks, device))
}

fn train<M: Tunable>(
    args: &PretrainArgs,
    recipe: Recipe<M>,
    stop: &Stop,
    ranks: &Ranks,
    device: Device,
) -> Result<ExitCode> {
    let train = recipe.train.clone();
    feed::check_ranks(&train, ranks.count())?;
    let table = Table::try_from(&recipe)?;
    let run = Opening {
        out: &args.out,
        data: &args.data,
        recipe: &table,
        seed: recipe.seed,
        resume: args.resume,
        only_looks: args.plan,
    };
    let (folder, mut outlets) = args.conduct.open(ranks, device, &run)?;

    let examples = ranks.first_then_all(|| open::<M>(args, &recipe, &folder))?;
    let meaning = M::meaning(examples.train.first());
    if let Some(fingerprint) = meaning.as_ref().filter(|_| ranks.is_first()) {
        folder.check_meaning("tokenizer.sha256", "another tokenizer", fingerprint)?;
    }
    ranks.agree("the tokenizer", &format!("{meaning:?}"))?;
    ranks::same_data(ranks, &examples.train)?;
    let mut state = recipe.state(device)?;
    let (all, encoder) = state.model.parameters();
    tell!(
        "model: {:.1} M parameters, {:.1} M of them in the encoder, on {}",
        all as f64 / 1e6,
        encoder as f64 / 1e6,
        device::name(device)
    );
    if args.plan {
        let config = feed::loader_config(&train, recipe.seed, M::UNITS);
        let plan = feed::plan(&examples.train, &config)?;
        let lines = plan::tell(&recipe, &mut state, &examples.train, &plan)?;
        lines.iter().for_each(|line| out!("{line}"));
        return Ok(ExitCode::SUCCESS);
    }
    state.join(ranks, train.shard_optimizer)?;
    ranks::tell_division(ranks, &train, M::UNITS);

    if let Some(outlets) = &mut outlets {
        outlets.record.examples(&examples.train, examples.held_out.as_ref())?;
    }
    let mut bad = examples.skipped;
    let parts = (&train, recipe.seed, M::UNITS);
    // Rank 0 evaluates.
    let held_out = examples.held_out.as_ref().filter(|_| ranks.is_first());
    let held_out = feed::held_out_batches(held_out, parts, &mut bad)?;
    let probe = match args.probe.as_deref().filter(|_| ranks.is_first()) {
        Some(path) => {
            let beside = folder.join("cache");
            M::export(examples.train.first(), &beside)?;
            Some(OnlineProbe::open(path, &state.model.encoder_config(), &beside, recipe.seed)?)
        }
        None => None,
    };
    let curator = Curator::new(&recipe, &args.data, examples.held_out.is_some());
    let dataset = Arc::new(examples.train);
    let seed = recipe.seed;
    let pretrainee = Pretrainee {
        recipe,
        state,
        held_out,
        dataset: dataset.clone(),
        curator,
        probe,
        shown: examples.held_out,
    };
    let parts = (&train, seed, M::UNITS);
    let run = Run::resume(pretrainee, dataset, folder, parts, &bad, ranks.clone(), outlets)?;
    run.reporting(args.conduct.reports(ranks)).train(stop)
}

/// Lists the examples and says what was found.
fn open<M: Modality>(
    args: &PretrainArgs,
    recipe: &Recipe<M>,
    folder: &RunFolder,
) -> Result<Examples<Mixed<M::Dataset>>> {
    let (train, cache) = (&recipe.train, folder.join("cache"));
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let examples = sources::open(&args.data, recipe, &cache)?;
    tell!("data: {}", examples.summary);
    feed::tell_skipped(train, &examples.skipped)?;
    for side in [Some(&examples.train), examples.held_out.as_ref()].into_iter().flatten() {
        feed::check_sizes(train, side, M::UNITS)?;
    }
    if examples.held_out.is_none() {
        note("nothing is held out: no evaluation, and no `explained`");
    }
    Ok(examples)
}

/// Student and teacher, in the loop.
struct Pretrainee<M: Tunable> {
    recipe: Recipe<M>,
    state: TrainState<M::Encoder>,
    dataset: Arc<Mixed<M::Dataset>>,
    held_out: Vec<Batch>,
    curator: Curator<M>,
    probe: Option<OnlineProbe<M>>,
    /// What examples of the report are chosen from, if anything is held out.
    shown: Option<Mixed<M::Dataset>>,
}

impl<M: Tunable> Pretrainee<M> {
    /// Predicts held-out examples: the same masks each time, no dropout.
    fn explain(&self) -> Result<HeldOutLine> {
        let mut explained = Explained::default();
        let (mut loss, mut count) = (0.0, 0.0);
        let (mut targets, mut predictions) = (Vec::new(), Vec::new());
        for (i, batch) in self.held_out.iter().enumerate() {
            let mut rng = stream(self.recipe.seed, Purpose::HeldOut, &[i as u64, 1]);
            tch::manual_seed(i as i64); // of the decoder's noise
            let batch = batch.to_device(self.state.model.device());
            let objective = tch::no_grad(|| self.state.model.forward(&batch, &mut rng, false))?;
            loss += objective.loss.double_value(&[]);
            count += objective.num_hidden as f64;
            explained.add(&objective.prediction, &objective.target);
            targets.push(objective.target);
            predictions.push(objective.prediction);
        }
        Ok(HeldOutLine {
            step: self.state.step,
            loss: loss / count,
            explained: explained.share(),
            target_var: spread(&targets)?,
            pred_var: spread(&predictions)?,
        })
    }
}

impl<M: Tunable> Trainee for Pretrainee<M> {
    type Batch = Batch;

    fn step(&self) -> u64 {
        self.state.step
    }

    fn device(&self) -> Device {
        self.state.model.device()
    }

    fn take_step(&mut self, batches: &[(u64, &Batch)]) -> Result<Option<TrainLine>> {
        let report = self.state.step_at(batches)?;
        Ok((!report.skipped).then(|| TrainLine {
            step: report.step,
            loss: report.loss,
            weight: report.hidden,
            grad_norm: report.grad_norm,
            lr: report.lr,
            pretraining: Some(Pretraining {
                target_var: report.target_var,
                pred_var: report.pred_var,
                masked_share: report.masked_share,
                ema_decay: report.ema_decay,
            }),
            ..TrainLine::default()
        }))
    }

    fn scale_lr(&mut self, scale: f64) {
        self.state.lr_scale = scale;
    }

    fn tensors(batch: &Batch) -> Vec<(&'static str, Tensor)> {
        batch.tensors()
    }

    fn rehearse(&mut self, plan: &Plan, log: &Log) -> Result<()> {
        let trial = plan::heaviest(&self.recipe, &mut self.state, &*self.dataset, plan)?;
        log.say(&trial.describe::<M>());
        if let Some(warning) = plan::warn(&trial, self.state.model.device()) {
            log.say(&format!("note: {warning}"));
        }
        Ok(())
    }

    fn examine(&self, batches: &[(u64, &Batch)]) -> Result<Option<Line>> {
        let at = (self.recipe.seed, self.state.step);
        batches.first().map(|(_, batch)| doctor::examine(&self.state.model, batch, at)).transpose()
    }

    fn evaluate(&mut self) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        if !self.held_out.is_empty() {
            lines.push(Line::HeldOut(self.explain()?));
        }
        if let Some(probe) = &self.probe {
            let model = &self.state.model;
            lines.push(Line::Probe(probe.ask(model.student(), model.device(), self.step())?));
        }
        Ok(lines)
    }

    fn heed(&mut self, _line: &Line, _now: bool) -> Result<()> {
        Ok(())
    }

    fn snapshot(&self) -> data2vec_core::Result<Snapshot> {
        self.state.snapshot()
    }

    fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        Ok(self.state.load(dir, step)?)
    }

    fn exhibit(&self) -> Result<Option<Exhibits>> {
        let model = &self.state.model;
        let examples = self.shown.as_ref().unwrap_or(&self.dataset).first();
        self.curator.exhibit(examples, model.student(), model.device(), self.state.step).map(Some)
    }

    fn export(&mut self, folder: &RunFolder) -> Result<Results> {
        let encoder = folder.join("encoder");
        self.state.model.export(&encoder)?;
        M::export(self.dataset.first(), &encoder)?;
        let (encoder, modality) = (encoder.display().to_string(), &self.recipe.modality);
        let next = vec![
            format!("data2vec extract --encoder {encoder} FILES… --out features.npy"),
            format!("cargo xtask finetune {modality} --encoder {encoder}"),
            format!("cargo xtask train {modality} --data YOUR_FOLDER"),
        ];
        Ok(Results { what: ["encoder".into(), encoder], next })
    }
}
