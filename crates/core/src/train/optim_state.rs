//! What a step of pretraining and one of fine-tuning have in common.

use std::collections::HashMap;
use std::path::Path;

use data2vec_torch_ext::scope;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::{Error, Result};
use crate::io::checkpoint::{Snapshot, assign, read_tensors};
use crate::train::optim::{AdamW, Gradients};
use crate::train::schedule::Schedule;
use crate::train::world::World;

const MODEL: &str = "model.safetensors";
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

/// An optimizer with its schedule, the ranks that share it, and the number of completed steps.
///
/// With the weights it is all that a resumed run needs: randomness is a function of seed and step.
#[derive(Debug)]
pub struct OptimState {
    /// Completed optimizer steps.
    pub step: u64,
    /// Factor of the schedule's learning rates; below 1 after recovery from a failure.
    pub lr_scale: f64,
    /// The optimizer.
    pub optimizer: AdamW,
    pub(crate) world: World,
    schedule: Schedule,
    config: StepConfig,
}

/// What [`OptimState::update`] did.
pub(crate) struct Update {
    /// Norm of the mean gradient before clipping; NaN if the update was skipped.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Whether the update was skipped because loss or gradient was not finite.
    pub skipped: bool,
}

impl OptimState {
    /// Creates the state before the first step.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid setting.
    pub(crate) fn new(optimizer: AdamW, schedule: Schedule, config: StepConfig) -> Result<Self> {
        schedule.validate(config.steps)?;
        if let Some(clip) = config.clip_norm.filter(|c| !(*c > 0.0)) {
            return Err(Error::config("train.clip_norm", format!("{clip} is not above 0")));
        }
        let world = World::default();
        Ok(Self { step: 0, lr_scale: 1.0, optimizer, world, schedule, config })
    }

    /// Joins a process group; `overlap` as in [`AdamW::join`].
    pub(crate) fn join(
        &mut self,
        world: &World,
        shard: bool,
        overlap: Option<Vec<Tensor>>,
    ) -> Result<()> {
        self.optimizer.join(world, shard, overlap)?;
        self.world = world.clone();
        Ok(())
    }

    /// Returns seed and step, of which the randomness of the next step is a function.
    pub(crate) fn seed(&self) -> (u64, u64) {
        (self.config.seed, self.step)
    }

    /// Completes a step: updates the parameters with `gradients / count`, clipped, unless `loss` or
    /// `norm`, the norm of the summed gradients, is not finite.
    pub(crate) fn update(
        &mut self,
        gradients: &Gradients,
        (loss, norm): (f64, f64),
        count: f64,
    ) -> Result<Update> {
        let lr = self.lr_scale * self.schedule.at(self.step, self.config.steps);
        let skipped = !loss.is_finite() || !norm.is_finite();
        if !skipped {
            let divisor = Gradients::divisor(norm, count, self.config.clip_norm);
            let step = || self.optimizer.step(self.step + 1, lr, gradients, divisor);
            scope(c"optimizer", step)?;
        }
        self.step += 1;
        Ok(Update { grad_norm: if skipped { f64::NAN } else { norm / count }, lr, skipped })
    }

    /// Copies moments, `variables` and the `extra` tensors of a named file. All ranks must call it;
    /// only rank 0 copies.
    pub(crate) fn snapshot(
        &self,
        variables: &HashMap<String, Tensor>,
        extra: Option<(&'static str, &HashMap<String, Tensor>)>,
    ) -> Result<Snapshot> {
        let moments = self.optimizer.gather()?;
        let mut snapshot = Snapshot::default();
        if self.world.is_rank0() {
            snapshot.add_tensors(MODEL, variables)?;
            if let Some((name, tensors)) = extra {
                snapshot.add_tensors(name, tensors)?;
            }
            snapshot.add_tensors(OPTIMIZER, &moments)?;
        }
        Ok(snapshot)
    }

    /// Loads `variables` and moments from the directory `dir` of a snapshot after `step` steps.
    pub(crate) fn load(
        &mut self,
        dir: &Path,
        step: u64,
        variables: HashMap<String, Tensor>,
    ) -> Result<()> {
        let model = dir.join(MODEL);
        // Rank 0 reads for all: other ranks may not see its directory.
        if self.world.is_rank0() {
            assign(&model, &variables, &read_tensors(&model)?)?;
        }
        self.world.broadcast_params(variables)?;
        self.optimizer.load_state(&dir.join(OPTIMIZER))?;
        self.step = step;
        Ok(())
    }
}
