//! One optimizer step, and all that has to be kept to take the next.

use std::path::Path;

use data2vec_torch_ext::scope;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::checkpoint::{Snapshot, assign, read_tensors};
use crate::loss::spread_of;
use crate::random::{Purpose, seed_for, stream};
use crate::{AdamW, AdamWConfig, Batch, Data2Vec, Error, FeatureEncoder, Result, Schedule};

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
    schedule: Schedule,
    config: StepConfig,
}

/// Figures of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Completed steps, this one included.
    pub step: u64,
    /// Mean over hidden tokens.
    pub loss: f64,
    /// Mean over channels of the targets' standard deviation over hidden tokens; 0: collapse.
    pub target_var: f64,
    /// The same of predictions.
    pub pred_var: f64,
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
        Ok(Self { model, optimizer, step: 0, schedule, config })
    }

    /// One optimizer step on one or more micro-batches. Their gradients add up to that of one batch
    /// as large: sums over hidden tokens, divided once.
    ///
    /// # Errors
    /// If a batch does not suit the model, or LibTorch refuses.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepReport> {
        let lr = self.schedule.at(self.step, self.config.steps);
        self.optimizer.zero_grad();
        let (mut num_hidden, mut losses, mut masked_share) = (0, Vec::new(), 0.0);
        let (mut targets, mut predictions) = (Vec::new(), Vec::new());
        for (i, batch) in batches.iter().enumerate() {
            let at = [self.step, i as u64];
            // Dropout and noise draw from LibTorch's generator, all else from ours.
            tch::manual_seed(seed_for(self.config.seed, Purpose::Step, &at) as i64);
            let mut rng = stream(self.config.seed, Purpose::Step, &at);
            let batch = batch.to_device(self.model.device());
            let objective = self.model.forward(&batch, &mut rng, true)?;
            scope(c"backward", || objective.loss.f_backward())?;
            num_hidden += objective.num_hidden;
            masked_share += objective.masked_share / batches.len() as f64;
            losses.push(objective.loss.detach());
            targets.push(objective.target);
            predictions.push(objective.prediction.detach());
        }
        let count = num_hidden as f64;
        let loss = Tensor::stack(&losses, 0).sum(Kind::Float).double_value(&[]) / count;
        let clip = self.config.clip_norm;
        let grad_norm = if loss.is_finite() {
            scope(c"optimizer", || self.optimizer.step(self.step + 1, lr, count, clip))?
        } else {
            f64::NAN
        };
        let skipped = !grad_norm.is_finite();
        self.step += 1;
        let ema_decay = match skipped {
            true => 1.0,
            false => scope(c"ema", || self.model.update_teacher(self.step))?,
        };
        Ok(StepReport {
            step: self.step,
            loss,
            target_var: spread_of(&targets).double_value(&[]),
            pred_var: spread_of(&predictions).double_value(&[]),
            grad_norm,
            lr,
            ema_decay,
            masked_share,
            skipped,
        })
    }

    /// Copies weights, teacher and moments.
    ///
    /// # Errors
    /// [`Error::Torch`] if there is no memory for the copies.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        snapshot.add_tensors(MODEL, &self.model.vars().variables())?;
        snapshot.add_tensors(TEACHER, &self.model.teacher().variables())?;
        snapshot.add_tensors(OPTIMIZER, &self.optimizer.state())?;
        Ok(snapshot)
    }

    /// Takes over what a [`snapshot`](Self::snapshot) has written to the folder `dir` after `step` steps. The teacher does not move.
    ///
    /// # Errors
    /// If a file is missing, broken, or belongs to a model of other sizes.
    pub fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        let [model, teacher, optimizer] = [MODEL, TEACHER, OPTIMIZER].map(|name| dir.join(name));
        assign(&model, &self.model.vars().variables(), &read_tensors(&model)?)?;
        assign(&teacher, &self.model.teacher().variables(), &read_tensors(&teacher)?)?;
        self.optimizer.load_state(&optimizer, &read_tensors(&optimizer)?)?;
        self.step = step;
        Ok(())
    }
}
