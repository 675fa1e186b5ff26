//! Accessors of a model, its export, and how it joins a process group.

use std::path::Path;

use tch::{Device, Tensor, nn};

use super::Data2Vec;
use crate::error::Result;
use crate::method::config::Data2VecConfig;
use crate::method::target::TargetSource;
use crate::method::teacher::EmaTeacher;
use crate::model::encoder::{Encoder, EncoderConfig};
use crate::model::feature::{FeatureEncoder, InputTarget};
use crate::model::finetuned::save_model;
use crate::train::precision::Precision;
use crate::train::world::World;

impl<F: FeatureEncoder> Data2Vec<F> {
    /// Moves the teacher after optimizer step `step`, counted from 1. Returns the decay used.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if LibTorch fails.
    pub fn update_teacher(&mut self, step: u64) -> Result<f64> {
        self.teacher.update(&self.vars, step)
    }

    /// Writes the student's encoder to the directory `dir`, and 1.0's mask token, which fine-tuning
    /// may use, to a file of its own.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the directory cannot be written.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let config = self.encoder_config();
        let mask_token = self.mask_token();
        save_model(dir, &self.vars.variables(), &config, None, mask_token.as_ref())
    }

    /// The settings of the encoder that is kept after pretraining.
    pub fn encoder_config(&self) -> EncoderConfig<F::Config> {
        EncoderConfig {
            encoder: F::NAME.to_owned(),
            features: self.config.features.clone(),
            transformer: self.config.transformer.clone(),
        }
    }

    /// Returns targets as numbers, `(…, P)` f32: ids `(…, 1)` become one-hot vectors.
    pub fn comparable_target(&self, target: &Tensor) -> Tensor {
        self.parts.loss.comparable_target(target)
    }

    /// Width of the predictions (P).
    pub fn target_width(&self) -> i64 {
        let input = match self.config.target.source {
            TargetSource::Input => F::input_target(&self.config.features),
            TargetSource::Ffn | TargetSource::Block => None,
        };
        input.map_or(self.config.transformer.dim, InputTarget::width)
    }

    /// Turns LayerDrop and drop path of the student on (the default) or off. Off, a step needs the
    /// most memory that it can.
    pub fn stochastic_depth(&mut self, on: bool) {
        self.student.stochastic_depth(on);
    }

    /// Joins a process group: broadcasts rank 0's weights. With `shard` the ranks divide the
    /// teacher's weights among them, in bf16 only: in f32 every pass needs all exact values.
    ///
    /// # Errors
    /// If the other ranks train another model, or are gone.
    pub fn join(&mut self, world: &World, shard: bool) -> Result<()> {
        world.assert_same_variables(&self.vars.variables())?;
        world.broadcast_params(self.vars.variables())?;
        self.teacher.join(world, shard && self.config.model.precision == Precision::Bf16)
    }

    /// The student: the part that is kept.
    pub fn student(&self) -> &Encoder<F> {
        &self.student
    }

    /// `(D)`: the token that replaces masked ones; `None` where they are dropped.
    pub fn mask_token(&self) -> Option<Tensor> {
        match &self.mask_token {
            Some(own) => Some(own.shallow_clone()),
            None => self.student.features().mask_token(),
        }
    }

    /// The teacher.
    pub fn teacher(&self) -> &EmaTeacher<F> {
        &self.teacher
    }

    /// The variables of student, decoder and mask token.
    pub fn vars(&self) -> &nn::VarStore {
        &self.vars
    }

    /// The settings the model was built with.
    pub fn config(&self) -> &Data2VecConfig<F::Config> {
        &self.config
    }

    /// Number of trained parameters: all of them, and those of the encoder, which is kept.
    pub fn parameters(&self) -> (usize, usize) {
        let count = |keep: &dyn Fn(&str) -> bool| {
            let all = self.vars.variables();
            all.iter().filter(|(name, _)| keep(name)).map(|(_, t)| t.numel()).sum()
        };
        (count(&|_| true), count(&|name| name.starts_with("encoder.")))
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.vars.device()
    }
}
