//! Fine-tuning, in the loop that it shares with pretraining.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use data2vec_core::encoder::read_config;
use data2vec_core::loader::Plan;
use data2vec_core::{HeadConfig, LabelledBatch, Ranks, Snapshot, StepConfig, TuneState};
use tch::{Device, Tensor};
use toml::Table;

use crate::judge::Judge;
use crate::log::Log;
use crate::metrics::{Line, TrainLine, ValidationLine};
use crate::modality::{LabelledExamples, Source, Split, Task, Tunable, with_recipe};
use crate::page::{Exhibits, Judged};
use crate::report::{note, tell};
use crate::run::RunFolder;
use crate::signals::Stop;
use crate::training::{Conduct, Opening, Results, Run, Trainee, feed};
use crate::tune_recipe::TuneRecipe;
use crate::{device, ranks};

/// What `finetune` is told.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe: a TOML file that tells the whole run
    recipe: PathBuf,
    /// Folder with encoder.safetensors and encoder.toml
    #[arg(long)]
    encoder: PathBuf,
    /// Labelled examples: a folder, a file, or shards
    #[arg(long)]
    data: PathBuf,
    /// Folder of the run: checkpoints, metrics, curve, model
    #[arg(long)]
    out: PathBuf,
    /// Start with an encoder of the same settings that has learned nothing; no part of it is frozen
    #[arg(long)]
    from_scratch: bool,
    /// cpu, cuda or cuda:N; without it: a GPU if there is one
    #[arg(long)]
    device: Option<String>,
    /// Optimizer steps, in place of the recipe's
    #[arg(long)]
    steps: Option<u64>,
    /// Only go on with a run that is already in --out
    #[arg(long)]
    resume: bool,
    /// The same numbers from the same command on the same GPU, every time; slower, and not for CTC there. On a
    /// CPU they are so anyway
    #[arg(long)]
    deterministic: bool,
    #[command(flatten)]
    conduct: Conduct,
    /// Another value for a key of the recipe, as in --set tune.layer_decay=0.8
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The recipe, in a fine-tuned model's folder.
pub const MODEL_RECIPE: &str = "finetune.toml";

/// Trains as the recipe says, from the start or from the newest checkpoint in `--out`.
pub fn run(args: &Args) -> Result<ExitCode> {
    with_recipe(&args.recipe, args.steps, &args.set, args)
}

impl Task for &Args {
    fn run<M: Tunable>(self, path: &Path, table: Table) -> Result<ExitCode> {
        tune(self, TuneRecipe::<M>::from_table(path, table)?)
    }
}

fn tune<M: Tunable>(args: &Args, recipe: TuneRecipe<M>) -> Result<ExitCode> {
    if args.deterministic {
        data2vec_torch_ext::set_deterministic(true)?;
    }
    let device = args.device.as_deref();
    args.conduct.begin(device, |stop, ranks, device| train(args, recipe, stop, ranks, device))
}

fn train<M: Tunable>(
    args: &Args,
    recipe: TuneRecipe<M>,
    stop: &Stop,
    ranks: &Ranks,
    device: Device,
) -> Result<ExitCode> {
    let config = read_config::<M::Encoder>(&args.encoder)?;
    let train = recipe.train.clone();
    feed::check_ranks(&train, ranks.count())?;
    let mut table = Table::try_from(&recipe)?;
    // Going on with another start would be another run.
    table.insert("from_scratch".into(), args.from_scratch.into());
    let run = Opening {
        out: &args.out,
        data: &args.data,
        recipe: &table,
        seed: recipe.seed,
        resume: args.resume,
        only_looks: false,
    };
    let (folder, mut outlets) = args.conduct.open(ranks, device, &run)?;

    let cache = folder.join("cache");
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let source = Source {
        path: &args.data,
        data: &recipe.data,
        encoder: &args.encoder,
        config: &config,
        task: recipe.head.task,
        labels: None,
        split: recipe.split(),
        cache: Some(&cache),
    };
    let examples = ranks.first_then_all(|| M::open_labelled(&source))?;
    let LabelledExamples { train: dataset, held_out, labels, summary, skipped, .. } = examples;
    tell!("data: {summary}");
    feed::tell_skipped(&train, &skipped)?;
    for side in [Some(&dataset), held_out.as_ref()].into_iter().flatten() {
        feed::check_sizes(&train, side, M::UNITS)?;
    }
    if held_out.is_none() {
        note("nothing is held out: no evaluation, and the last model counts as the best");
    }
    if ranks.is_first() {
        folder.check_meaning("labels.txt", "other labels", &labels.join("\n"))?;
    }
    ranks.agree("the labels", &labels.join("\n"))?;
    ranks::same_data(ranks, &dataset)?;

    let head = HeadConfig { labels, ..recipe.head.clone() };
    let steps = StepConfig { steps: train.steps, clip_norm: train.clip_norm, seed: recipe.seed };
    let mut state = TuneState::new(
        &args.encoder,
        args.from_scratch,
        head,
        M::tune_masks(&recipe.mask)?,
        recipe.tune.clone(),
        (&recipe.optimizer, recipe.schedule.clone(), steps),
        device,
    )?;
    tell!(
        "model: {:.1} M parameters, {}, on {}",
        state.parameters() as f64 / 1e6,
        if args.from_scratch { "from scratch" } else { "pretrained" },
        device::name(device)
    );

    state.join(ranks, train.shard_optimizer)?;
    ranks::tell_division(ranks, &train, M::UNITS);

    if let Some(outlets) = &mut outlets {
        outlets.record.examples(&dataset, held_out.as_ref())?;
    }
    let (mut bad, seed) = (skipped, recipe.seed);
    let parts = (&train, seed, M::UNITS);
    // Rank 0 evaluates.
    let held_out = held_out.as_ref().filter(|_| ranks.is_first());
    let held_out = feed::held_out_batches(held_out, parts, &mut bad)?;
    let dataset = Arc::new(dataset);
    let model = folder.join("model");
    let tunee = Tunee {
        recipe,
        state,
        held_out,
        dataset: dataset.clone(),
        best: None,
        model,
        judged: None,
    };
    let run = Run::resume(tunee, dataset, folder, parts, &bad, ranks.clone(), outlets)?;
    run.reporting(args.conduct.reports(ranks)).train(stop)
}

impl<M: Tunable> TuneRecipe<M> {
    /// How its data are divided.
    pub fn split(&self) -> Split {
        Split {
            test: self.test_share,
            held_out: self.train.held_out,
            labels: self.label_share,
            seed: self.split_seed,
            label_seed: self.seed,
        }
    }
}

/// An encoder with a head, in the loop.
struct Tunee<M: Tunable> {
    recipe: TuneRecipe<M>,
    state: TuneState<M::Encoder>,
    dataset: Arc<M::Labelled>,
    held_out: Vec<LabelledBatch>,
    /// The best figure so far.
    best: Option<f64>,
    /// What came of the last evaluation.
    judged: Option<Judged>,
    /// Folder of the best model.
    model: PathBuf,
}

impl<M: Tunable> Tunee<M> {
    fn write_model(&self) -> Result<()> {
        self.state.export(&self.model)?;
        M::export_labelled(&self.dataset, &self.model)?;
        crate::run::write(&self.model.join(MODEL_RECIPE), &toml::to_string(&self.recipe)?)
    }
}

impl<M: Tunable> Trainee for Tunee<M> {
    type Batch = LabelledBatch;

    fn step(&self) -> u64 {
        self.state.step
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
        self.state.lr_scale = scale;
    }

    fn tensors(batch: &LabelledBatch) -> Vec<(&'static str, Tensor)> {
        batch.tensors()
    }

    fn rehearse(&mut self, _plan: &Plan, _log: &Log) -> Result<()> {
        Ok(())
    }

    fn evaluate(&mut self) -> Result<Vec<Line>> {
        if self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let mut judge = Judge::new(self.recipe.head.task, self.state.model().labels(), None)?;
        let mut answers = Vec::new();
        for batch in &self.held_out {
            answers.extend(judge.add(&self.state.score(batch, None)?, &batch.targets)?);
        }
        self.judged = Some(Judged::new(&judge, answers, self.state.model().labels()));
        let (step, loss, figures) = (self.state.step, judge.loss(), judge.figures());
        Ok(vec![Line::Validation(ValidationLine { step, loss, figures })])
    }

    fn heed(&mut self, line: &Line, now: bool) -> Result<()> {
        let Line::Validation(line) = line else { return Ok(()) };
        let select = self.recipe.select;
        let Some(&figure) = line.figures.get(select.name()) else { return Ok(()) };
        if self.best.is_none_or(|best| select.is_better(figure, best)) {
            self.best = Some(figure);
            if now {
                self.write_model()?;
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> data2vec_core::Result<Snapshot> {
        self.state.snapshot()
    }

    fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        self.best = None; // of steps that may not have been taken any more
        Ok(self.state.load(dir, step)?)
    }

    fn exhibit(&self) -> Result<Option<Exhibits>> {
        let judged = self.judged.clone();
        Ok(judged.map(|judged| Exhibits {
            step: self.state.step,
            gallery: None,
            judged: Some(judged),
        }))
    }

    fn export(&mut self, _folder: &RunFolder) -> Result<Results> {
        if self.best.is_none() {
            self.write_model()?;
        }
        ensure!(self.model.exists(), "{} is gone", self.model.display());
        let model = self.model.display().to_string();
        if let Some(best) = self.best {
            tell!(
                "the model is the one with the best {} on held-out examples, {best:.4}",
                self.recipe.select.name()
            );
        }
        let mut next = M::commands(&model, self.recipe.head.task);
        next.push(format!("data2vec evaluate --model {model} --data YOUR_DATA"));
        Ok(Results { what: ["model".into(), model], next })
    }
}
