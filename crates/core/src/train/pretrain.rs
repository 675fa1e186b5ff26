//! One optimizer step of pretraining, and the state it needs.

use std::path::Path;

use data2vec_torch_ext::{moments, scope};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::data::batch::{Batch, upload};
use crate::error::{Error, Result};
use crate::io::checkpoint::{Snapshot, assign, read_tensors};
use crate::method::data2vec::{Data2Vec, Objective};
use crate::method::loss::mean_std_of_moments;
use crate::model::feature::FeatureEncoder;
use crate::train::chunks::{forward_in_chunks, tokens_per_chunk};
use crate::train::optim::{AdamW, AdamWConfig, Gradients};
use crate::train::schedule::Schedule;
use crate::train::world::World;

const MODEL: &str = "model.safetensors";
const TEACHER: &str = "teacher.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Number of steps, gradient clipping and seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepConfig {
    /// Optimizer steps of the whole run; the horizon of the schedule.
    pub steps: u64,
    /// Maximum norm of the gradient; `None`: no clipping.
    pub clip_norm: Option<f64>,
    /// Seed of all randomness.
    pub seed: u64,
}

/// A model, its optimizer and the number of completed steps. Nothing else is needed to resume:
/// randomness is a function of seed and step.
#[derive(Debug)]
pub struct TrainState<F: FeatureEncoder> {
    /// The model that is trained.
    pub model: Data2Vec<F>,
    /// Its optimizer.
    pub optimizer: AdamW,
    /// Completed optimizer steps.
    pub step: u64,
    /// Factor of the schedule's learning rates; below 1 after recovery from a failure.
    pub lr_scale: f64,
    schedule: Schedule,
    config: StepConfig,
    world: World,
}

/// Metrics of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Completed steps, including this one.
    pub step: u64,
    /// Mean over masked tokens.
    pub loss: f64,
    /// Number of masked tokens.
    pub num_masked: f64,
    /// Standard deviation of the targets over masked tokens, averaged over channels; 0: collapse.
    pub target_std: f64,
    /// Standard deviation of the predictions, likewise.
    pub pred_std: f64,
    /// Norm of the mean gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// EMA decay of this step.
    pub ema_decay: f64,
    /// Share of masked tokens.
    pub masked_share: f64,
    /// Whether the step was skipped because loss or gradient was not finite; weights, moments and
    /// teacher are unchanged then.
    pub skipped: bool,
}

impl<F: FeatureEncoder> TrainState<F> {
    /// Creates the state before the first step.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid setting.
    pub fn new(
        model: Data2Vec<F>,
        optimizer: &AdamWConfig,
        schedule: Schedule,
        config: StepConfig,
    ) -> Result<Self> {
        optimizer.validate()?;
        schedule.validate(config.steps)?;
        if let Some(clip) = config.clip_norm.filter(|c| !(*c > 0.0)) {
            return Err(Error::config("train.clip_norm", format!("{clip} is not above 0")));
        }
        let optimizer = AdamW::new(model.vars().variables(), optimizer);
        let world = World::default();
        Ok(Self { model, optimizer, step: 0, lr_scale: 1.0, schedule, config, world })
    }

    /// Joins a process group that trains the model together. With `shard` each rank keeps the moments
    /// of a part of the parameters only, and in bf16 a part of the teacher.
    ///
    /// # Errors
    /// If the other ranks train another model, or are gone.
    pub fn join(&mut self, world: &World, shard: bool) -> Result<()> {
        self.model.join(world, shard)?;
        let overlap = !self.model.config().model.activation_checkpointing;
        let variables = || self.model.vars().trainable_variables();
        self.optimizer.join(world, shard, overlap.then(variables))?;
        self.world = world.clone();
        Ok(())
    }

    /// Takes one optimizer step on one or more micro-batches. Their gradients add up to that of one
    /// large batch: sums over masked tokens, divided once.
    ///
    /// # Errors
    /// If a batch does not suit the model, or LibTorch fails.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepReport> {
        self.step_at(&(0..).zip(batches).collect::<Vec<_>>())
    }

    /// Takes one step on this rank's micro-batches, each with its index among those of all ranks, by
    /// which its masks and dropout are drawn. Loss, gradients and metrics are those of all ranks.
    ///
    /// # Errors
    /// As [`step`](Self::step), and if another rank is gone.
    pub fn step_at(&mut self, batches: &[(u64, &Batch)]) -> Result<StepReport> {
        let lr = self.lr_scale * self.schedule.at(self.step, self.config.steps);
        let mut sums = Sums::default();
        let (model, place) = (&self.model, (self.config.seed, self.step));
        let gradients = self.optimizer.gradients(place, batches, |batch, rng, take| {
            let batch = batch.to_device(model.device());
            let backward = |chunk| take(&sums.add(chunk)?);
            let last = forward_in_chunks(model, &batch, rng, tokens_per_chunk(model), backward)?;
            sums.add(last)
        })?;
        let means = sums.means(&self.world, &gradients, model.config().transformer.dim)?;
        let Means { loss, num_masked, masked_share, target_std, pred_std, norm } = means;
        let skipped = !loss.is_finite() || !norm.is_finite();
        if !skipped {
            let divisor = Gradients::divisor(norm, num_masked, self.config.clip_norm);
            let step = || self.optimizer.step(self.step + 1, lr, &gradients, divisor);
            scope(c"optimizer", step)?;
        }
        self.step += 1;
        let ema_decay = match skipped {
            true => 1.0,
            false => scope(c"ema", || self.model.update_teacher(self.step))?,
        };
        Ok(StepReport {
            step: self.step,
            loss,
            num_masked,
            target_std,
            pred_std,
            grad_norm: if skipped { f64::NAN } else { norm / num_masked },
            lr,
            ema_decay,
            masked_share,
            skipped,
        })
    }

    /// Copies weights, teacher and moments. All ranks must call it; only rank 0 copies.
    ///
    /// # Errors
    /// [`Error::Torch`] if there is no memory for the copies, [`Error::Dist`] if a rank is gone.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (moments, teacher) = (self.optimizer.gather()?, self.model.teacher().gather()?);
        let mut snapshot = Snapshot::default();
        if self.world.is_rank0() {
            snapshot.add_tensors(MODEL, &self.model.vars().variables())?;
            snapshot.add_tensors(TEACHER, &teacher)?;
            snapshot.add_tensors(OPTIMIZER, &moments)?;
        }
        Ok(snapshot)
    }

    /// Loads what a [`snapshot`](Self::snapshot) wrote to the directory `dir` after `step` steps. The
    /// teacher does not move.
    ///
    /// # Errors
    /// If a file is missing or damaged, or belongs to a model of other sizes.
    pub fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        let [model, teacher, optimizer] = [MODEL, TEACHER, OPTIMIZER].map(|name| dir.join(name));
        // Rank 0 reads for all: other ranks may not see its directory.
        if self.world.is_rank0() {
            assign(&model, &self.model.vars().variables(), &read_tensors(&model)?)?;
        }
        self.world.broadcast_params(self.model.vars().variables())?;
        self.model.teacher().load(&teacher)?;
        self.optimizer.load_state(&optimizer)?;
        self.step = step;
        Ok(())
    }
}

/// Sums over a step's micro-batches.
#[derive(Default)]
struct Sums {
    num_masked: f64,
    masked_share: f64,
    /// Number of objectives.
    count: f64,
    /// [`moments`] over masked tokens; `None` before the first objective.
    targets: Option<Tensor>,
    predictions: Option<Tensor>,
}

/// See [`StepReport`].
struct Means {
    loss: f64,
    num_masked: f64,
    masked_share: f64,
    target_std: f64,
    pred_std: f64,
    /// Norm of the summed gradients.
    norm: f64,
}

impl Sums {
    /// Adds a micro-batch or a chunk of one. Returns its loss.
    fn add(&mut self, objective: Objective) -> Result<Tensor> {
        self.num_masked += objective.num_masked as f64;
        self.masked_share += objective.masked_share;
        self.count += 1.0;
        let Objective { loss, prediction, target, .. } = objective;
        for (sum, rows) in [(&mut self.targets, target), (&mut self.predictions, prediction)] {
            let new = moments(&rows)?;
            *sum = Some(sum.take().map_or_else(|| new.shallow_clone(), |sum| sum + &new));
        }
        Ok(loss)
    }

    /// Returns means over the micro-batches of all ranks. Waits for the device once.
    fn means(&self, world: &World, gradients: &Gradients, dim: i64) -> Result<Means> {
        let Gradients { loss, norm, .. } = gradients;
        let device = norm.device();
        let [loss, norm] = [loss, norm].map(|x| x.to_kind(Kind::Double).unsqueeze(0));
        let counts = [self.num_masked, self.masked_share, self.count];
        let counts = upload(&Tensor::from_slice(&counts), device);
        let none = Tensor::zeros([1 + 2 * dim], (Kind::Double, device));
        let [targets, predictions] =
            [&self.targets, &self.predictions].map(|sum| sum.as_ref().unwrap_or(&none));
        let sums = Tensor::cat(&[&loss, &counts, targets, predictions], 0);
        world.all_reduce_sum(&[sums.shallow_clone()])?;
        // The norm is already that of all ranks.
        let all = Vec::<f64>::try_from(&Tensor::cat(&[norm, sums], 0))?;
        let [norm, loss, num_masked, masked_share, count] =
            [all[0], all[1], all[2], all[3], all[4]];
        let (targets, predictions) = all[5..].split_at(1 + 2 * dim as usize);
        Ok(Means {
            loss: loss / num_masked,
            num_masked,
            masked_share: masked_share / count,
            target_std: mean_std_of_moments(targets),
            pred_std: mean_std_of_moments(predictions),
            norm,
        })
    }
}
