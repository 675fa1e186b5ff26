//! One optimizer step of pretraining, and the state it needs.

use std::path::Path;

use data2vec_torch_ext::{moments, scope};
use tch::{Kind, Tensor};

use crate::data::batch::{Batch, upload};
use crate::error::Result;
use crate::io::checkpoint::Snapshot;
use crate::method::data2vec::{Data2Vec, Objective};
use crate::method::loss::mean_std_of_moments;
use crate::model::feature::FeatureEncoder;
use crate::train::chunks::{forward_in_chunks, tokens_per_chunk};
use crate::train::optim::{AdamW, AdamWConfig, Gradients};
use crate::train::optim_state::{OptimState, StepConfig, Update};
use crate::train::schedule::Schedule;
use crate::train::world::World;

const TEACHER: &str = "teacher.safetensors";

/// A model that is pretrained, its optimizer and completed steps.
#[derive(Debug)]
pub struct TrainState<F: FeatureEncoder> {
    /// The model that is trained.
    pub model: Data2Vec<F>,
    /// Optimizer, schedule and completed steps.
    pub optim: OptimState,
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
    /// [`Error::Config`](crate::Error::Config) naming the invalid setting.
    pub fn new(
        model: Data2Vec<F>,
        optimizer: &AdamWConfig,
        schedule: Schedule,
        config: StepConfig,
    ) -> Result<Self> {
        optimizer.validate()?;
        let optimizer = AdamW::new(model.vars().variables(), optimizer);
        Ok(Self { model, optim: OptimState::new(optimizer, schedule, config)? })
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
        self.optim.join(world, shard, overlap.then(variables))
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
        let mut sums = Sums::default();
        let (model, optim) = (&self.model, &mut self.optim);
        let gradients = optim.optimizer.gradients(optim.seed(), batches, |batch, rng, take| {
            let batch = batch.to_device(model.device());
            let backward = |chunk| take(&sums.add(chunk)?);
            let last = forward_in_chunks(model, &batch, rng, tokens_per_chunk(model), backward)?;
            sums.add(last)
        })?;
        let means = sums.means(&optim.world, &gradients, model.target_width())?;
        let Means { loss, num_masked, masked_share, target_std, pred_std, norm } = means;
        let Update { grad_norm, lr, skipped } =
            optim.update(&gradients, (loss, norm), num_masked)?;
        let step = optim.step;
        let ema_decay = match skipped {
            true => 1.0,
            false => scope(c"ema", || self.model.update_teacher(step))?,
        };
        Ok(StepReport {
            step,
            loss,
            num_masked,
            target_std,
            pred_std,
            grad_norm,
            lr,
            ema_decay,
            masked_share,
            skipped,
        })
    }

    /// Copies weights, teacher and moments. All ranks must call it; only rank 0 copies.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if there is no memory for the copies,
    /// [`Error::Dist`](crate::Error::Dist) if a rank is gone.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let teacher = self.model.teacher().gather()?;
        self.optim.snapshot(&self.model.vars().variables(), Some((TEACHER, &teacher)))
    }

    /// Loads what a [`snapshot`](Self::snapshot) wrote to the directory `dir` after `step` steps. The
    /// teacher does not move.
    ///
    /// # Errors
    /// If a file is missing or damaged, or belongs to a model of other sizes.
    pub fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        self.optim.load(dir, step, self.model.vars().variables())?;
        self.model.teacher().load(&dir.join(TEACHER))
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
    fn means(&self, world: &World, gradients: &Gradients, width: i64) -> Result<Means> {
        let Gradients { loss, norm, .. } = gradients;
        let device = norm.device();
        let [loss, norm] = [loss, norm].map(|x| x.to_kind(Kind::Double).unsqueeze(0));
        let counts = [self.num_masked, self.masked_share, self.count];
        let counts = upload(&Tensor::from_slice(&counts), device);
        let none = Tensor::zeros([1 + 2 * width], (Kind::Double, device));
        let [targets, predictions] =
            [&self.targets, &self.predictions].map(|sum| sum.as_ref().unwrap_or(&none));
        let sums = Tensor::cat(&[&loss, &counts, targets, predictions], 0);
        world.all_reduce_sum(&[sums.shallow_clone()])?;
        // The norm is already that of all ranks.
        let all = Vec::<f64>::try_from(&Tensor::cat(&[norm, sums], 0))?;
        let [norm, loss, num_masked, masked_share, count] =
            [all[0], all[1], all[2], all[3], all[4]];
        let (targets, predictions) = all[5..].split_at(1 + 2 * width as usize);
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
