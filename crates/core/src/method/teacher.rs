//! The teacher: an exponential moving average of the student that sees the whole input.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn};

use crate::io::checkpoint::{assign, read_tensors};
use crate::model::encoder::Encoder;
use crate::model::transformer::Layer;
use crate::{Batch, Error, FeatureEncoder, Result, Tokens, TransformerConfig, World};

mod shard;

use shard::Shard;

/// Which part of the encoder is averaged; of the rest, tokens are the student's and positions are
/// copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmaScope {
    /// The transformer (1.0 speech and text).
    Blocks,
    /// Transformer and positions (2.0 speech).
    Context,
    /// The whole encoder (vision).
    Everything,
}

/// How the teacher follows the student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// What is averaged.
    pub scope: EmaScope,
    /// Decay at the first step (τ₀).
    pub decay: f64,
    /// Decay from `anneal_steps` on (τₑ). At 1 the teacher does not change.
    pub end_decay: f64,
    /// Number of steps over which the decay rises linearly (τₙ).
    pub anneal_steps: u64,
}

/// The teacher of 2.0 Base for speech.
impl Default for EmaConfig {
    fn default() -> Self {
        let scope = EmaScope::Context;
        Self { scope, decay: 0.999, end_decay: 0.99999, anneal_steps: 75_000 }
    }
}

impl EmaConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        for (key, decay) in [("ema.decay", self.decay), ("ema.end_decay", self.end_decay)] {
            if !(0.0..=1.0).contains(&decay) {
                return Err(Error::config(key, format!("{decay} is outside 0..=1")));
            }
        }
        Ok(())
    }

    /// Returns the decay after optimizer step `step`, counted from 1 (data2vec 1.0, section 3.2).
    pub fn decay_at(&self, step: u64) -> f64 {
        if step >= self.anneal_steps {
            return self.end_decay;
        }
        let left = 1.0 - step as f64 / self.anneal_steps as f64;
        self.end_decay - (self.end_decay - self.decay) * left
    }
}

/// An averaged copy of the student's [`Encoder`], with variables of the same names.
#[derive(Debug)]
pub struct EmaTeacher<F> {
    vars: nn::VarStore,
    encoder: Encoder<F>,
    config: EmaConfig,
    world: World,
    /// Exact weights of this rank's share; `None`: every rank has all exact weights.
    shard: Option<Shard>,
}

impl<F: FeatureEncoder> EmaTeacher<F> {
    /// Creates a teacher with the weights of `student`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid setting.
    pub fn new(
        student: &nn::VarStore,
        features: &F::Config,
        transformer: &TransformerConfig,
        config: &EmaConfig,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        let vars = nn::VarStore::new(device);
        let encoder = Encoder::new(&(vars.root() / "encoder"), features, transformer)?;
        let (config, world) = (config.clone(), World::default());
        let mut teacher = Self { vars, encoder, config, world, shard: None };
        teacher.freeze();
        let student = student.variables();
        tch::no_grad(|| {
            for (name, mut tensor) in teacher.vars.variables() {
                tensor.copy_(&student[&name]);
            }
        });
        Ok(teacher)
    }

    /// Turns gradients off, also for weights that are loaded later.
    fn freeze(&mut self) {
        for (_, mut tensor) in self.vars.variables() {
            let _ = tensor.requires_grad_(false);
        }
    }

    /// Returns the output of all blocks for the whole batch. No mask is passed, so the teacher cannot
    /// see one. `student_tokens` `(B, T, D)` are used unless the feature encoder is averaged too.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder.
    pub fn layers(&self, batch: &Batch, student_tokens: &Tokens) -> Result<Vec<Layer>> {
        tch::no_grad(|| {
            let tokens = match self.config.scope {
                EmaScope::Everything => self.encoder.embed(batch, false)?,
                EmaScope::Blocks | EmaScope::Context => {
                    student_tokens.with_x(student_tokens.x.detach())
                }
            };
            Ok(self.encoder.contextualize(&tokens, None, None)?.layers)
        })
    }

    /// Moves the teacher after optimizer step `step` (counted from 1):
    /// teacher ← decay · teacher + (1 − decay) · student. Returns the decay.
    ///
    /// # Errors
    /// [`Error::Torch`] if LibTorch fails.
    pub fn update(&mut self, student: &nn::VarStore, step: u64) -> Result<f64> {
        let decay = self.config.decay_at(step);
        let student = student.variables();
        let (mut averaged, mut targets) = (Vec::new(), Vec::new());
        let is_complete = |name: &String| self.shard.as_ref().is_none_or(|shard| !shard.has(name));
        tch::no_grad(|| {
            for (name, mut tensor) in
                self.vars.variables().into_iter().filter(|(name, _)| is_complete(name))
            {
                let Some(source) = student.get(&name) else { continue };
                if self.averages(&name) {
                    averaged.push(tensor);
                    targets.push(source.shallow_clone());
                } else {
                    tensor.copy_(source);
                }
            }
        });
        for (name, exact) in self.shard.iter().flat_map(Shard::own) {
            averaged.push(exact.shallow_clone());
            targets.push(student[name].shallow_clone());
        }
        if decay < 1.0 {
            data2vec_torch_ext::ema_update(&averaged, &targets, decay)?;
            self.shard.as_ref().map_or(Ok(()), Shard::publish)?;
        }
        Ok(decay)
    }

    /// Joins a process group: broadcasts rank 0's weights. With `shard` each rank keeps the exact
    /// values of a part of the blocks' matrices only, and computes with all of them in bf16; use it
    /// with [`Precision::Bf16`](crate::Precision), where that makes no difference.
    ///
    /// # Errors
    /// [`Error::Dist`] if another rank is gone.
    pub fn join(&mut self, world: &World, shard: bool) -> Result<()> {
        world.broadcast_params(self.vars.variables())?;
        self.world = world.clone();
        if shard && world.size() > 1 {
            let is_divided = |name: &str, x: &Tensor| {
                name.starts_with("encoder.transformer.blocks.")
                    && x.dim() == 2
                    && self.averages(name)
            };
            let mut weights = BTreeMap::from_iter(self.vars.variables());
            weights.retain(|name, x| is_divided(name, x));
            self.shard = Some(Shard::divide(weights, world));
        }
        Ok(())
    }

    /// Returns the exact values of all weights on rank 0, and this rank's on the others. All ranks must
    /// call it.
    ///
    /// # Errors
    /// [`Error::Dist`] if another rank is gone.
    pub fn gather(&self) -> Result<HashMap<String, Tensor>> {
        let mut all = self.vars.variables();
        if let Some(shard) = &self.shard {
            all.extend(shard.gather()?);
        }
        Ok(all)
    }

    /// Loads weights from the file `path`, which rank 0 reads for all ranks.
    ///
    /// # Errors
    /// If it cannot be read; [`Error::Tensor`] if weights are missing or of another shape.
    pub fn load(&self, path: &Path) -> Result<()> {
        let is_rank0 = self.world.is_rank0();
        let read = if is_rank0 { read_tensors(path)? } else { BTreeMap::new() };
        let mut variables = self.vars.variables();
        if let Some(shard) = &self.shard {
            variables.retain(|name, _| !shard.has(name));
            shard.scatter(path, &read)?;
        }
        if is_rank0 {
            assign(path, &variables, &read)?;
        }
        self.world.broadcast_params(variables)
    }

    fn averages(&self, name: &str) -> bool {
        match self.config.scope {
            EmaScope::Everything => true,
            EmaScope::Context => !name.starts_with("encoder.features.embed."),
            EmaScope::Blocks => name.starts_with("encoder.transformer."),
        }
    }

    /// The teacher's variables, named like the student's; sharded ones in bf16.
    pub fn variables(&self) -> HashMap<String, Tensor> {
        self.vars.variables()
    }

    /// The settings.
    pub fn config(&self) -> &EmaConfig {
        &self.config
    }

    /// The averaged encoder.
    pub fn encoder(&self) -> &Encoder<F> {
        &self.encoder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_matches_the_reference() {
        // fairseq 3d262bb, `get_annealed_rate`, for its speech configurations of 1.0 and 2.0.
        let at = |decay, end_decay, anneal_steps, step| {
            EmaConfig { scope: EmaScope::Blocks, decay, end_decay, anneal_steps }.decay_at(step)
        };
        for (step, expected) in [
            (1, 0.99900003),
            (100, 0.999003),
            (15_000, 0.99945),
            (30_000, 0.9999),
            (40_000, 0.9999),
        ] {
            assert!((at(0.999, 0.9999, 30_000, step) - expected).abs() < 1e-12);
        }
        for (step, expected) in [(1, 0.9990000132), (37_500, 0.999495), (74_999, 0.9999899868)] {
            assert!((at(0.999, 0.99999, 75_000, step) - expected).abs() < 1e-12);
        }
        assert_eq!(at(0.9998, 0.9998, 0, 1), 0.9998);
    }
}
