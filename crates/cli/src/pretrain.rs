//! The loop: data in, steps, evaluations, checkpoints; and a clean end whenever it comes.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use data2vec_core::loader::{Plan, TOLERANCE};
use data2vec_core::loss::spread_of;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{
    Batch, Checkpoints, Dataset, Explained, Loader, LoaderConfig, Position, TrainState,
};

use crate::metrics::{HeldOutLine, Line, Metrics, Pending};
use crate::modality::{Examples, Modality, Task};
use crate::progress::{Progress, clock};
use crate::recipe::Recipe;
use crate::report::{note, out, tell};
use crate::run::RunFolder;
use crate::signals::Stop;
use crate::{PretrainArgs, curve, device, plan};

/// Steps in a row whose loss or gradient is not finite before the run gives up.
const MAX_SKIPPED: u32 = 10;

/// How often memory that lies fallow is given back.
const RELEASE_EVERY: Duration = Duration::from_secs(30);

impl Task for &PretrainArgs {
    fn run<M: Modality>(self, recipe: Recipe<M>) -> Result<ExitCode> {
        run(self, recipe)
    }
}

/// Trains as `recipe` says, from the start or from the newest checkpoint in `--out`.
fn run<M: Modality>(args: &PretrainArgs, recipe: Recipe<M>) -> Result<ExitCode> {
    let stop = Stop::listen()?;
    let device = device::choose(args.device.as_deref())?;
    let folder = RunFolder::open(&args.out)?;
    let train = &recipe.train;
    if !args.plan {
        folder.check_recipe(&toml::Table::try_from(&recipe)?, args.resume)?;
        folder.record(&args.data, &device::name(device))?;
    }

    let examples = open::<M>(args, &recipe, &folder)?;
    if let Some(fingerprint) = M::meaning(&examples.train) {
        folder.check_tokenizer(fingerprint)?;
    }
    let mut state = recipe.state(device)?;
    let (all, encoder) = state.model.parameters();
    tell!(
        "model: {:.1} M parameters, {:.1} M of them in the encoder, on {}",
        all as f64 / 1e6,
        encoder as f64 / 1e6,
        device::name(device)
    );
    if args.plan {
        let config = loader_config(&recipe);
        let plan = Plan::new(&examples.train, config.budget, usize::MAX, config.tolerance)?;
        let lines = plan::tell(&recipe, &mut state, &examples.train, &plan)?;
        lines.iter().for_each(|line| out!("{line}"));
        return Ok(ExitCode::SUCCESS);
    }

    let checkpoints = Checkpoints::new(folder.join("checkpoints"), train.keep)?;
    let mut bad = examples.skipped;
    let held_out = held_out_batches::<M>(examples.held_out.as_ref(), &recipe, &mut bad)?;
    let mut run = Run {
        state,
        next_batch: 0,
        saved: None,
        checkpoints,
        metrics: None,
        held_out,
        last: None,
        bad_before: bad.len(),
        pending: Pending::default(),
        dataset: Arc::new(examples.train),
        folder,
        recipe,
    };
    run.resume()?;
    run.train(&stop)
}

/// Lists the examples and says what was found.
fn open<M: Modality>(
    args: &PretrainArgs,
    recipe: &Recipe<M>,
    folder: &RunFolder,
) -> Result<Examples<M::Dataset>> {
    let (train, cache) = (&recipe.train, folder.join("cache"));
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let examples =
        M::open(&args.data, &recipe.data, &recipe.features, train.held_out, recipe.seed, &cache)?;
    tell!("data: {}", examples.summary);
    for reason in examples.skipped.iter().take(10) {
        note(format!("skipped {reason}"));
    }
    if examples.skipped.len() > 10 {
        note(format!("and {} more", examples.skipped.len() - 10));
    }
    if let Some(last) = examples.skipped.last() {
        check_bad(recipe, examples.skipped.len(), last)?;
    }
    for side in [Some(&examples.train), examples.held_out.as_ref()].into_iter().flatten() {
        check_sizes(recipe, side)?;
    }
    if examples.held_out.is_none() {
        note("nothing is held out: no evaluation, and no `explained`");
    }
    Ok(examples)
}

fn loader_config<M: Modality>(recipe: &Recipe<M>) -> LoaderConfig {
    LoaderConfig {
        budget: (recipe.train.batch * M::SIZE_OF_UNIT).round() as u64,
        max_examples: None,
        workers: recipe.train.workers,
        queue: 4,
        seed: recipe.seed,
        max_bad: recipe.train.max_bad_examples,
        tolerance: TOLERANCE,
    }
}

/// Whether so many unusable examples are allowed.
fn check_bad<M: Modality>(recipe: &Recipe<M>, count: usize, last: &str) -> Result<()> {
    let limit = recipe.train.max_bad_examples;
    if count > limit {
        bail!(
            "{count} unusable examples, train.max_bad_examples = {limit} are allowed; the last one: {last}"
        );
    }
    Ok(())
}

/// Whether each example fits a batch.
fn check_sizes<M: Modality>(recipe: &Recipe<M>, dataset: &M::Dataset) -> Result<()> {
    let largest = (0..dataset.len()).max_by_key(|&index| dataset.size(index));
    let Some(index) = largest else { return Ok(()) };
    if dataset.size(index) > loader_config(recipe).budget {
        let size = dataset.size(index) as f64 / M::SIZE_OF_UNIT;
        let (batch, unit, name) = (recipe.train.batch, M::UNIT, dataset.name(index));
        bail!(
            "train.batch = {batch} is too small for one example: {name} is {size:.2} {unit}; raise it, or allow only smaller ones in [data]"
        );
    }
    Ok(())
}

/// The batches of all evaluations: the same examples, cut the same way. Unusable ones go to `bad`.
fn held_out_batches<M: Modality>(
    held_out: Option<&M::Dataset>,
    recipe: &Recipe<M>,
    bad: &mut Vec<String>,
) -> Result<Vec<Batch>> {
    let Some(held_out) = held_out else { return Ok(Vec::new()) };
    let config = loader_config(recipe);
    let plan = Plan::new(held_out, config.budget, usize::MAX, config.tolerance)?;
    let epoch = plan.epoch(recipe.seed, 0);
    let mut batches = Vec::new();
    for place in 0..plan.batches().min(recipe.train.eval_batches as u64) {
        let mut rng = stream(recipe.seed, Purpose::HeldOut, &[place]);
        let mut examples = Vec::new();
        for &index in epoch.batch(place) {
            match held_out.load(index as usize, &mut rng) {
                Ok(example) => examples.push(example),
                Err(error) => {
                    note(format!("skipped {error}"));
                    bad.push(error.to_string());
                    check_bad(recipe, bad.len(), &error.to_string())?;
                }
            }
        }
        if !examples.is_empty() {
            batches.push(held_out.collate(examples, &mut rng)?);
        }
    }
    Ok(batches)
}

struct Run<M: Modality> {
    recipe: Recipe<M>,
    folder: RunFolder,
    state: TrainState<M::Encoder>,
    /// Number of the next batch of data.
    next_batch: u64,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    checkpoints: Checkpoints,
    metrics: Option<Metrics>,
    dataset: Arc<M::Dataset>,
    held_out: Vec<Batch>,
    /// The last evaluation.
    last: Option<HeldOutLine>,
    /// Unusable examples that were met before training.
    bad_before: usize,
    pending: Pending,
}

impl<M: Modality> Run<M> {
    /// Takes over the newest undamaged checkpoint, if there is any.
    fn resume(&mut self) -> Result<()> {
        let newest = self.checkpoints.newest()?;
        for (path, reason) in &newest.damaged {
            note(format!("{} is damaged ({reason}); trying the one before it", path.display()));
        }
        match newest.good {
            Some((position, path)) => {
                self.state.load(&path, position.step)?;
                self.next_batch = position.next_batch;
                self.pending = Pending::load(&path)?;
                self.saved = Some(position.step);
                tell!("going on from step {} ({})", position.step, path.display());
            }
            None if newest.damaged.is_empty() => {}
            None => note("no checkpoint is whole: starting from step 0"),
        }
        let path = self.folder.join("metrics.jsonl");
        self.metrics = Some(Metrics::open(&path, self.state.step)?);
        Ok(())
    }

    fn train(&mut self, stop: &Stop) -> Result<ExitCode> {
        let train = self.recipe.train.clone();
        if self.state.step >= train.steps {
            tell!("this run is finished: {} steps", self.state.step);
            return self.finish(Duration::ZERO);
        }
        let mut loader = {
            let (dataset, mut config) = (self.dataset.clone(), loader_config(&self.recipe));
            config.max_bad -= self.bad_before.min(config.max_bad);
            Loader::new(dataset, config, self.next_batch)?
        };
        let progress = Progress::new(self.state.step, train.steps, M::UNIT);
        if self.state.step == 0 {
            let plan = loader.plan();
            let trial = plan::heaviest(&self.recipe, &mut self.state, &self.dataset, plan)?;
            progress.say(&trial.describe::<M>());
            if let Some(warning) = plan::warn(&trial, self.state.model.device()) {
                progress.say(&format!("note: {warning}"));
            }
            self.evaluate(&progress)?;
        }
        let (started, first) = (Instant::now(), self.state.step);
        let (mut since, mut units, mut waited) = (Instant::now(), 0.0, Duration::ZERO);
        let (mut skipped, mut released) = (0, Instant::now());
        while self.state.step < train.steps && stop.exit_code().is_none() {
            let mut batches = Vec::with_capacity(train.accumulate);
            let mut epoch = 0.0;
            while batches.len() < train.accumulate {
                let loaded = loader.next();
                self.meet_bad(&loader, &progress)?;
                let loaded = loaded?;
                self.next_batch = loaded.number + 1;
                units += loaded.size as f64 / M::SIZE_OF_UNIT;
                epoch = self.next_batch as f64 / loader.batches_per_epoch() as f64;
                batches.push(loaded.batch);
            }
            let report = self.state.step(&batches)?;
            skipped = if report.skipped { skipped + 1 } else { 0 };
            if report.skipped {
                let step = report.step;
                progress.say(&format!("note: step {step} is not finite, nothing was changed"));
                if skipped >= MAX_SKIPPED {
                    bail!("{MAX_SKIPPED} steps in a row were not finite; try a lower schedule.lr");
                }
            } else {
                self.pending.mean.add(&report);
            }
            let step = self.state.step;
            progress.step(step);
            if released.elapsed() > RELEASE_EVERY {
                data2vec_torch_ext::release_freed_memory();
                released = Instant::now();
            }
            let last_step = step == train.steps;
            if (step.is_multiple_of(train.log_every) || last_step) && !report.skipped {
                let took = since.elapsed();
                let mut line = self.pending.mean.take();
                line.epoch = epoch;
                line.units_per_second = units / took.as_secs_f64();
                line.waiting = (loader.waited() - waited).as_secs_f64() / took.as_secs_f64();
                line.bad_examples = self.bad_before + self.pending.bad.len();
                (since, units, waited) = (Instant::now(), 0.0, loader.waited());
                let per_step = started.elapsed().div_f64((step - first) as f64);
                let left = per_step.mul_f64((train.steps - step) as f64);
                progress.line(&line, self.last.as_ref(), left);
                self.write(&Line::Train(line))?;
            }
            if step.is_multiple_of(train.eval_every) || last_step {
                let before = Instant::now();
                self.evaluate(&progress)?;
                since += before.elapsed(); // an evaluation is no training time
            }
            if step.is_multiple_of(train.save_every) || last_step {
                self.save()?;
            }
        }
        progress.finish();
        if let Some(code) = stop.exit_code() {
            self.save()?;
            curve::draw(&self.folder.join("metrics.jsonl"), &self.folder.join("curve.svg"))?;
            tell!("stopped and saved at step {}; the same command goes on", self.state.step);
            return Ok(ExitCode::from(code));
        }
        let waiting = loader.waited().as_secs_f64() / started.elapsed().as_secs_f64();
        tell!("waited for data {:.1} % of the time", 100.0 * waiting);
        self.finish(started.elapsed())
    }

    /// Tells of unusable examples that are new, and ends the run if they are too many.
    fn meet_bad(&mut self, loader: &Loader, progress: &Progress) -> Result<()> {
        for (name, reason) in loader.bad() {
            if self.pending.bad.insert(name) {
                progress.say(&format!("note: skipped {reason}"));
                check_bad(&self.recipe, self.bad_before + self.pending.bad.len(), &reason)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(line))
    }

    /// Predicts held-out examples: the same masks each time, no dropout.
    fn evaluate(&mut self, progress: &Progress) -> Result<()> {
        if self.held_out.is_empty() {
            return Ok(());
        }
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
        let line = HeldOutLine {
            step: self.state.step,
            loss: loss / count,
            explained: explained.share(),
            target_var: spread_of(&targets).double_value(&[]),
            pred_var: spread_of(&predictions).double_value(&[]),
        };
        progress.say(&format!(
            "step {}: held out: loss {:.3}, explained {}, var {:.2}/{:.2}",
            line.step,
            line.loss,
            line.explained.map_or("–".into(), |e| format!("{e:.3}")),
            line.target_var,
            line.pred_var
        ));
        self.write(&Line::HeldOut(line.clone()))?;
        self.last = Some(line);
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        let position = Position { step: self.state.step, next_batch: self.next_batch };
        let write = |dir: &Path| {
            self.state.save(dir)?;
            self.pending.save(dir)
        };
        self.checkpoints.save(position, write).with_context(|| {
            format!(
                "the checkpoint of step {} could not be written; older ones are whole",
                position.step
            )
        })?;
        self.saved = Some(position.step);
        Ok(())
    }

    /// Curve, encoder, and where everything is.
    fn finish(&mut self, took: Duration) -> Result<ExitCode> {
        let (curve, encoder) = (self.folder.join("curve.svg"), self.folder.join("encoder"));
        curve::draw(&self.folder.join("metrics.jsonl"), &curve)?;
        self.state.model.export(&encoder)?;
        M::export(&self.dataset, &encoder)?;
        out!();
        if !took.is_zero() {
            out!("Trained in {}.", clock(took));
        }
        out!("  run      {}", self.folder.path().display());
        out!("  curve    {}", curve.display());
        out!("  encoder  {}", encoder.display());
        out!();
        out!("Next:");
        out!("  data2vec extract --encoder {} FILES… --out features.npy", encoder.display());
        out!("  cargo xtask train {} --data YOUR_FOLDER", self.recipe.modality);
        Ok(ExitCode::SUCCESS)
    }
}
