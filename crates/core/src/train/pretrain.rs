//! One optimizer step, and all that has to be kept to take the next.

use std::path::Path;

use data2vec_torch_ext::{moments, scope};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::batch::upload;
use crate::checkpoint::{Snapshot, assign, read_tensors};
use crate::loss::mean_std_of_moments;
use crate::{
    AdamW, AdamWConfig, Batch, Data2Vec, Error, FeatureEncoder, Gradients, Objective, World,
    Result, Schedule,
};

const MODEL: &str = "model.safetensors";
const TEACHER: &str = "teacher.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// How long and how far the optimizer goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepConfig {
    /// Optimizer steps of the whole run; the schedule's horizon.
    pub steps: u64,
    /// Largest norm of the gradient; `None`: no clipping.
    pub clip_norm: Option<f64>,
    /// Of all randomness.
    pub seed: u64,
}

/// A model, its optimizer and the number of completed steps. Nothing else is needed to resume:
/// randomness is a function of seed and step.
#[derive(Debug)]
pub struct TrainState<F: FeatureEncoder> {
    /// What is trained.
    pub model: Data2Vec<F>,
    /// Its moments.
    pub optimizer: AdamW,
    /// Completed optimizer steps.
    pub step: u64,
    /// What the schedule's learning rates are multiplied by; 1 unless training had to be slowed down.
    pub lr_scale: f64,
    schedule: Schedule,
    config: StepConfig,
    ranks: World,
}

/// Figures of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Completed steps, this one included.
    pub step: u64,
    /// Mean over hidden tokens.
    pub loss: f64,
    /// How many there are.
    pub hidden: f64,
    /// Mean over channels of the targets' standard deviation over hidden tokens; 0: collapse.
    pub target_std: f64,
    /// The same of predictions.
    pub pred_std: f64,
    /// Norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Share of the old teacher that was kept.
    pub ema_decay: f64,
    /// Share of tokens that were hidden.
    pub masked_share: f64,
    /// Loss or gradient was not finite: weights, moments and teacher are as before the step.
    pub skipped: bool,
}

impl<F: FeatureEncoder> TrainState<F> {
    /// Before the first step.
    ///
    /// # Errors
    /// [`Error::Config`] naming an impossible setting.
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
        let ranks = World::default();
        Ok(Self { model, optimizer, step: 0, lr_scale: 1.0, schedule, config, ranks })
    }

    /// From now on this is one of several processes that train the model together. With `shard` each keeps
    /// the moments of a part of the parameters alone, and in bf16 a part of the teacher.
    ///
    /// # Errors
    /// If the others train another model, or are gone.
    pub fn join(&mut self, ranks: &World, shard: bool) -> Result<()> {
        self.model.join(ranks, shard)?;
        let overlap = !self.model.config().model.activation_checkpointing;
        let variables = || self.model.vars().trainable_variables();
        self.optimizer.join(ranks, shard, overlap.then(variables))?;
        self.ranks = ranks.clone();
        Ok(())
    }

    /// One optimizer step on one or more micro-batches. Their gradients add up to that of one batch
    /// as large: sums over hidden tokens, divided once.
    ///
    /// # Errors
    /// If a batch does not suit the model, or LibTorch refuses.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepReport> {
        self.step_at(&(0..).zip(batches).collect::<Vec<_>>())
    }

    /// The same on this rank's micro-batches of a step, each with its place among those of all ranks, on
    /// which its masks and its dropout depend. Loss, gradients and figures are of all ranks.
    ///
    /// # Errors
    /// As [`step`](Self::step), and if another rank is gone.
    pub fn step_at(&mut self, batches: &[(u64, &Batch)]) -> Result<StepReport> {
        let lr = self.lr_scale * self.schedule.at(self.step, self.config.steps);
        let mut sums = Sums::default();
        let (model, place) = (&self.model, (self.config.seed, self.step));
        let gradients = self.optimizer.gradients(place, batches, |batch, rng, take| {
            let batch = batch.to_device(model.device());
            let last = model.forward_in_parts(&batch, rng, model.tokens_at_once(), |part| {
                take(&sums.add(part)?)
            })?;
            sums.add(last)
        })?;
        let figures = sums.means(&self.ranks, &gradients, model.config().transformer.dim)?;
        let Figures { loss, hidden, masked_share, target_std, pred_std, norm } = figures;
        let skipped = !loss.is_finite() || !norm.is_finite();
        if !skipped {
            let divisor = Gradients::divisor(norm, hidden, self.config.clip_norm);
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
            hidden,
            target_std,
            pred_std,
            grad_norm: if skipped { f64::NAN } else { norm / hidden },
            lr,
            ema_decay,
            masked_share,
            skipped,
        })
    }

    /// Copies weights, teacher and moments.
    ///
    /// # Errors
    /// [`Error::Torch`] if there is no memory for the copies. Of several processes rank 0 alone copies, but
    /// all have to call it: [`Error::Dist`] if one is gone.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (moments, teacher) = (self.optimizer.gather()?, self.model.teacher().gather()?);
        let mut snapshot = Snapshot::default();
        if self.ranks.is_rank0() {
            snapshot.add_tensors(MODEL, &self.model.vars().variables())?;
            snapshot.add_tensors(TEACHER, &teacher)?;
            snapshot.add_tensors(OPTIMIZER, &moments)?;
        }
        Ok(snapshot)
    }

    /// Takes over what a [`snapshot`](Self::snapshot) has written to the folder `dir` after `step` steps.
    /// The teacher does not move.
    ///
    /// # Errors
    /// If a file is missing, broken, or belongs to a model of other sizes.
    pub fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        let [model, teacher, optimizer] = [MODEL, TEACHER, OPTIMIZER].map(|name| dir.join(name));
        // Rank 0 reads for all: the others may not see its folder.
        if self.ranks.is_rank0() {
            assign(&model, &self.model.vars().variables(), &read_tensors(&model)?)?;
        }
        self.ranks.broadcast_params(self.model.vars().variables())?;
        self.model.teacher().load(&teacher)?;
        self.optimizer.load_state(&optimizer)?;
        self.step = step;
        Ok(())
    }
}

/// What a step's micro-batches add up to.
#[derive(Default)]
struct Sums {
    hidden: f64,
    masked_share: f64,
    /// Of how many objectives.
    count: f64,
    /// [`moments`]; `None`: of none.
    targets: Option<Tensor>,
    predictions: Option<Tensor>,
}

/// See [`StepReport`].
struct Figures {
    loss: f64,
    hidden: f64,
    masked_share: f64,
    target_std: f64,
    pred_std: f64,
    /// Of the sum of gradients.
    norm: f64,
}

impl Sums {
    /// Takes note of a micro-batch or a part of one. Returns its loss.
    fn add(&mut self, objective: Objective) -> Result<Tensor> {
        self.hidden += objective.num_hidden as f64;
        self.masked_share += objective.masked_share;
        self.count += 1.0;
        let Objective { loss, prediction, target, .. } = objective;
        for (sum, rows) in [(&mut self.targets, target), (&mut self.predictions, prediction)] {
            let these = moments(&rows)?;
            *sum = Some(match sum.take() {
                Some(sum) => sum + these,
                None => these,
            });
        }
        Ok(loss)
    }

    /// Over the micro-batches of all ranks. The device is waited for once.
    fn means(&self, ranks: &World, gradients: &Gradients, dim: i64) -> Result<Figures> {
        let Gradients { loss, norm, .. } = gradients;
        let device = norm.device();
        let [loss, norm] = [loss, norm].map(|x| x.to_kind(Kind::Double).unsqueeze(0));
        let counts = [self.hidden, self.masked_share, self.count];
        let counts = upload(&Tensor::from_slice(&counts), device);
        let none = Tensor::zeros([1 + 2 * dim], (Kind::Double, device));
        let [targets, predictions] =
            [&self.targets, &self.predictions].map(|sum| sum.as_ref().unwrap_or(&none));
        let sums = Tensor::cat(&[&loss, &counts, targets, predictions], 0);
        ranks.sum(&[sums.shallow_clone()])?;
        // All ranks have the same norm.
        let all = Vec::<f64>::try_from(&Tensor::cat(&[norm, sums], 0))?;
        let [norm, loss, hidden, masked_share, count] = [all[0], all[1], all[2], all[3], all[4]];
        let (targets, predictions) = all[5..].split_at(1 + 2 * dim as usize);
        Ok(Figures {
            loss: loss / hidden,
            hidden,
            masked_share: masked_share / count,
            target_std: mean_std_of_moments(targets),
            pred_std: mean_std_of_moments(predictions),
            norm,
        })
    }
}
