//! Fine-tuning of an encoder with a head on labelled examples.

use std::collections::BTreeMap;
use std::path::Path;

use data2vec_torch_ext::scope;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use crate::io::checkpoint::{Snapshot, assign, read_tensors};
use crate::model::encoder::ENCODER_WEIGHTS;
use crate::model::finetuned::{FinetunedModel, MASK_TOKEN, read_mask_token, save_model};
use crate::model::head::{HeadConfig, Scored, loss};
use crate::random::{Purpose, seed_for};
use crate::train::optim::ParamGroup;
use crate::train::optim_state::{OptimState, Update};
use crate::{
    AdamW, AdamWConfig, Batch, EncoderConfig, EncoderOutput, Error, FeatureEncoder, LabelledBatch,
    MaskStrategy, Precision, Result, Schedule, StepConfig, Tokens, TransformerConfig, World,
};

/// Standard deviation of the noise at masked tokens for encoders without a mask token, as in 2.0.
const NOISE_STD: f64 = 0.01;

/// Settings of fine-tuning: the `tune` section of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Number of initial steps that train only the head.
    pub freeze_steps: u64,
    /// Freezes the front-end variables ([`FeatureEncoder::FRONT_END_PREFIXES`]).
    pub freeze_local: bool,
    /// Ratio of the learning rate of a block to that of the next; 1 disables layer-wise decay.
    pub layer_decay: f64,
    /// Whether features before the blocks decay like a block below the first, as in BEiT; otherwise
    /// they have the full learning rate.
    pub decay_embed: bool,
    /// Dropout before the first block; replaces that of the encoder, as the next five do.
    pub input_dropout: f64,
    /// Dropout of both residual branches.
    pub dropout: f64,
    /// Dropout of attention weights.
    pub attention_dropout: f64,
    /// Dropout after the MLP's activation.
    pub activation_dropout: f64,
    /// Probability that a block is skipped in a training step (LayerDrop).
    pub layer_drop: f64,
    /// Probability that a row skips a residual branch of the last block; rises linearly from 0 at
    /// the first block (drop path).
    pub drop_path: f64,
    /// Precision of matrix products and convolutions; absent: `f32`.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// Recomputes each block in the backward pass to save memory; absent: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub activation_checkpointing: bool,
}

impl FinetuneConfig {
    /// Checks the settings, except those of the transformer.
    ///
    /// # Errors
    /// Returns [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if !(self.layer_decay > 0.0 && self.layer_decay <= 1.0) {
            let reason = format!("must be above 0 and at most 1, not {}", self.layer_decay);
            return Err(Error::config("tune.layer_decay", reason));
        }
        Ok(())
    }

    /// Replaces the dropout rates of `transformer` by those of this section.
    pub fn regularize(&self, transformer: &TransformerConfig) -> TransformerConfig {
        TransformerConfig {
            input_dropout: self.input_dropout,
            dropout: self.dropout,
            attention_dropout: self.attention_dropout,
            activation_dropout: self.activation_dropout,
            layer_drop: self.layer_drop,
            drop_path: self.drop_path,
            ..transformer.clone()
        }
    }

    /// Returns the optimizer settings of the variable `name` in a model of `depth` blocks.
    fn param_group(&self, name: &str, depth: usize) -> ParamGroup {
        let Some(name) = name.strip_prefix("encoder.") else { return ParamGroup::default() };
        let block = name.split_once(".blocks.").and_then(|(_, rest)| rest.split('.').next());
        let below_top = match block.and_then(|block| block.parse::<usize>().ok()) {
            Some(block) => depth - block,
            None if self.decay_embed && name.starts_with("features.") => depth + 1,
            None => 0,
        };
        ParamGroup {
            lr_scale: self.layer_decay.powi(below_top as i32),
            freeze_steps: self.freeze_steps,
        }
    }
}

/// Masking during fine-tuning.
#[derive(Debug, Default)]
pub struct FinetuneMasks {
    /// Masks tokens: replaces them by the encoder's mask token, or noise without one.
    pub tokens: Option<Box<dyn MaskStrategy>>,
    /// Masks channels: sets them to 0 in all tokens of a row.
    pub channels: Option<Box<dyn MaskStrategy>>,
}

/// A model that is fine-tuned, its optimizer and completed steps.
#[derive(Debug)]
pub struct FinetuneState<F: FeatureEncoder> {
    /// Optimizer, schedule and completed steps.
    pub optim: OptimState,
    vars: nn::VarStore,
    model: FinetunedModel<F>,
    /// `(D)`; `None`: noise replaces masked tokens.
    mask_token: Option<Tensor>,
    masks: FinetuneMasks,
    config: FinetuneConfig,
}

/// Metrics of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneReport {
    /// Completed steps, this one included.
    pub step: u64,
    /// Mean loss over examples.
    pub loss: f64,
    /// Number of examples.
    pub examples: f64,
    /// Norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Whether the update was skipped because loss or gradient was not finite.
    pub skipped: bool,
}

impl<F: FeatureEncoder> FinetuneState<F> {
    /// Creates the state before the first step, with the weights of the encoder in the directory
    /// `dir`.
    ///
    /// With `from_scratch`, the encoder has random weights and no part of it is frozen.
    ///
    /// # Errors
    /// Returns [`Error::Config`] naming an invalid setting, or an error if `dir` cannot be read.
    pub fn new(
        dir: &Path,
        from_scratch: bool,
        head: HeadConfig,
        masks: FinetuneMasks,
        config: FinetuneConfig,
        (optimizer, schedule, steps): (&AdamWConfig, Schedule, StepConfig),
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        // Random weights must not be frozen.
        let config = match from_scratch {
            true => FinetuneConfig { freeze_steps: 0, freeze_local: false, ..config },
            false => config,
        };
        optimizer.validate()?;
        let mut encoder: EncoderConfig<F::Config> = crate::model::encoder::read_config::<F>(dir)?;
        encoder.transformer = config.regularize(&encoder.transformer);
        let depth = encoder.transformer.depth;
        let path = dir.join(ENCODER_WEIGHTS);
        let mut weights = if from_scratch { BTreeMap::new() } else { read_tensors(&path)? };
        F::adapt_for_finetuning(&mut encoder.features, depth, &mut weights);

        tch::manual_seed(seed_for(steps.seed, Purpose::Weights, &[]) as i64);
        let vars = nn::VarStore::new(device);
        let mut model = FinetunedModel::<F>::new(&vars.root(), encoder, head)?;
        model.encoder_mut().checkpoint_activations(config.activation_checkpointing);
        let pretrained_token = read_mask_token(dir)?;
        let mask_token = match &pretrained_token {
            Some(token) if model.encoder().features().mask_token().is_none() => {
                let init = nn::Init::Uniform { lo: 0.0, up: 1.0 };
                Some(vars.root().var("mask_token", &token.size(), init))
            }
            _ => model.encoder().features().mask_token(),
        };
        if !from_scratch {
            let encoder = crate::io::checkpoint::filter_by_prefix(&vars.variables(), "encoder.");
            assign(&path, &encoder, &weights)?;
            if let (Some(token), Some(pretrained)) = (&mask_token, &pretrained_token) {
                let vars = [("mask_token".to_owned(), token.shallow_clone())].into();
                let tensors = [("mask_token".to_owned(), pretrained.shallow_clone())].into();
                assign(&dir.join(MASK_TOKEN), &vars, &tensors)?;
            }
        }
        let is_front_end = |name: &str| {
            let name = name.strip_prefix("encoder.features.");
            name.is_some_and(|name| {
                F::FRONT_END_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            })
        };
        for (name, mut tensor) in vars.variables() {
            if config.freeze_local && is_front_end(&name) {
                let _ = tensor.requires_grad_(false);
            }
        }
        let group_of = |name: &str| config.param_group(name, depth);
        let optimizer = AdamW::with_groups(vars.variables(), optimizer, group_of);
        let optim = OptimState::new(optimizer, schedule, steps)?;
        Ok(Self { optim, vars, model, mask_token, masks, config })
    }

    /// Joins a process group that trains the model in data parallel; all ranks start with the
    /// weights of rank 0.
    ///
    /// With `shard`, each rank keeps the moments of a part of the parameters.
    ///
    /// # Errors
    /// Returns an error if another rank has a different model or communication fails.
    pub fn join(&mut self, world: &World, shard: bool) -> Result<()> {
        world.assert_same_variables(&self.vars.variables())?;
        let overlap = !self.config.activation_checkpointing;
        let variables = || self.vars.trainable_variables();
        self.optim.join(world, shard, overlap.then(variables))?;
        world.broadcast_params(self.vars.variables())
    }

    /// Takes one optimizer step on one or more micro-batches, whose gradients are accumulated.
    ///
    /// # Errors
    /// Returns an error if a batch does not fit the model or an operation fails.
    pub fn step(&mut self, batches: &[LabelledBatch]) -> Result<FinetuneReport> {
        self.step_at(&(0..).zip(batches).collect::<Vec<_>>())
    }

    /// Takes one optimizer step on this rank's micro-batches, each with its index among those of
    /// all ranks, which seeds its dropout. Loss and gradients are those of all ranks.
    ///
    /// # Errors
    /// See [`step`](Self::step); also returns an error if communication fails.
    pub fn step_at(&mut self, batches: &[(u64, &LabelledBatch)]) -> Result<FinetuneReport> {
        let mut count = 0;
        let (optimizer, seed) = (&self.optim.optimizer, self.optim.seed());
        let gradients = optimizer.gradients(seed, batches, |batch, rng, _| {
            let scored = scope(c"forward", || self.score(batch, Some(rng)))?;
            count += batch.batch.rows();
            Ok(scored.loss)
        })?;
        let read = Tensor::stack(&[&gradients.loss, &gradients.norm], 0).to_kind(Kind::Double);
        let read = Vec::<f64>::try_from(&read)?;
        let (loss, norm) = (read[0], read[1]);
        let sums = [loss, count as f64];
        let [loss, examples] = self.optim.world.sum_scalars(sums, self.device())?;
        let Update { grad_norm, lr, skipped } =
            self.optim.update(&gradients, (loss, norm), examples)?;
        let (step, loss) = (self.optim.step, loss / examples);
        Ok(FinetuneReport { step, loss, examples, grad_norm, lr, skipped })
    }

    /// Computes loss and scores of a batch; with `rng`, in a training pass with gradients.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the batch does not fit the model.
    pub fn score(&self, batch: &LabelledBatch, rng: Option<&mut StdRng>) -> Result<Scored> {
        let device = self.vars.device();
        let batch = batch.to_device(device);
        let train = rng.is_some();
        let body = || -> Result<Scored> {
            let hidden = match train && self.optim.step < self.config.freeze_steps {
                true => tch::no_grad(|| self.encode(&batch.batch, rng))?,
                false => self.encode(&batch.batch, rng)?,
            };
            let scores = self.model.head().forward(&hidden, train);
            let loss = loss(&scores, &hidden.lengths, &batch.targets)?;
            Ok(Scored { loss, scores, lengths: hidden.lengths })
        };
        match train {
            true => self.config.precision.run(device, body)?,
            false => tch::no_grad(|| self.config.precision.run(device, body))?,
        }
    }

    fn encode(&self, batch: &Batch, mut rng: Option<&mut StdRng>) -> Result<EncoderOutput> {
        let encoder = self.model.encoder();
        let mut tokens = encoder.embed(batch, rng.is_some())?; // (B, T, D)
        if let Some(rng) = rng.as_deref_mut() {
            tokens = self.mask(tokens, rng)?;
        }
        encoder.contextualize(&tokens, None, rng)
    }

    /// Masks tokens and channels.
    fn mask(&self, tokens: Tokens, rng: &mut StdRng) -> Result<Tokens> {
        let (b, t, d) = tokens.x.size3()?;
        let device = tokens.x.device();
        let mut x = tokens.x.shallow_clone();
        if let Some(masking) = &self.masks.tokens {
            let masked = masking.sample(tokens.lengths(), t, rng)?.to_tensor(device);
            let masked = masked.unsqueeze(-1); // (B, T, 1)
            let substitute = match &self.mask_token {
                Some(token) => token.to_kind(x.kind()),
                None => data2vec_torch_ext::noise(&[b, t, d], NOISE_STD, device)?.to_kind(x.kind()),
            };
            x = substitute.where_self(&masked, &x);
        }
        if let Some(masking) = &self.masks.channels {
            let masked = masking.sample(&vec![d; b as usize], d, rng)?.to_tensor(device); // (B, D)
            x = x.masked_fill(&masked.unsqueeze(1), 0.0);
        }
        Ok(tokens.with_x(x))
    }

    /// Returns the model.
    pub fn model(&self) -> &FinetunedModel<F> {
        &self.model
    }

    /// Returns the number of values in the variables of the model.
    pub fn parameters(&self) -> usize {
        self.vars.variables().values().map(Tensor::numel).sum()
    }

    /// Returns the device of the weights.
    pub fn device(&self) -> Device {
        self.vars.device()
    }

    /// Writes the fine-tuned model to the directory `dir`.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if a file cannot be written.
    pub fn export(&self, dir: &Path) -> Result<()> {
        // Users of the model do not need the initialisation of the output layer.
        let head = HeadConfig { init: Default::default(), ..self.model.head_config().clone() };
        let token = self.mask_token.as_ref();
        save_model(dir, &self.vars.variables(), self.model.config(), Some(&head), token)
    }

    /// Copies weights and moments for a checkpoint.
    ///
    /// All ranks must call it; only the snapshot of rank 0 has content.
    ///
    /// # Errors
    /// Returns [`Error::Torch`] if memory is short and [`Error::Dist`] if communication fails.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.optim.snapshot(&self.vars.variables(), None)
    }

    /// Loads a [`snapshot`](Self::snapshot) from the directory `dir`, taken after `step` steps.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, or belongs to a model of other sizes.
    pub fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        self.optim.load(dir, step, self.vars.variables())
    }
}

#[cfg(test)]
#[path = "finetune_tests.rs"]
mod tests;
