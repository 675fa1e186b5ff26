//! Fine-tuning: an encoder learns, with a head, what labelled examples ask of it.

use std::collections::BTreeMap;
use std::path::Path;

use data2vec_torch_ext::scope;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use crate::checkpoint::{Snapshot, assign, read_tensors};
use crate::encoder::ENCODER_WEIGHTS;
use crate::head::{HeadConfig, Scored, loss};
use crate::optim::ParamGroup;
use crate::random::{Purpose, seed_for};
use crate::tuned::{MASK_TOKEN, FinetunedModel, read_mask_token, write_model};
use crate::{
    AdamW, AdamWConfig, Batch, EncoderConfig, Error, FeatureEncoder, Gradients, Hidden,
    LabelledBatch, MaskStrategy, Precision, World, Result, Schedule, StepConfig, Tokens,
    TransformerConfig,
};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Standard deviation of what stands at hidden tokens where no token was learned for that: 2.0's.
const NOISE_STD: f64 = 0.01;

/// How an encoder is trained further: the recipe's tune section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Steps in which the head alone learns.
    pub freeze_steps: u64,
    /// Leaves the variables that look at the raw signal ([`FeatureEncoder::FRONT_END_PREFIXES`]) as they are.
    pub freeze_local: bool,
    /// Learning rate of a block over the next one's; 1: all alike.
    pub layer_decay: f64,
    /// Whether what comes before the blocks learns at the pace of a block below the first (BEiT's
    /// way), rather than at full pace.
    pub decay_embed: bool,
    /// In place of the encoder's: dropout before the first block.
    pub input_dropout: f64,
    /// Dropout of both residual branches.
    pub dropout: f64,
    /// Dropout of attention weights.
    pub attention_dropout: f64,
    /// Dropout after the MLP's activation.
    pub activation_dropout: f64,
    /// Chance that a block is skipped in a training step.
    pub layer_drop: f64,
    /// Chance that a row skips a residual branch; rises linearly from 0 to this over the depth.
    pub drop_path: f64,
    /// Of products and convolutions; absent: `f32`.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// Computes each block again for its gradients; absent: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub activation_checkpointing: bool,
}

impl FinetuneConfig {
    /// Checks the settings that the transformer does not check itself.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if !(self.layer_decay > 0.0 && self.layer_decay <= 1.0) {
            let reason = format!("{} is not above 0 and at most 1", self.layer_decay);
            return Err(Error::config("tune.layer_decay", reason));
        }
        Ok(())
    }

    /// The encoder's transformer with this section's regularisation.
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

    /// At which pace the variable `name` of a model of `depth` blocks learns.
    fn pace(&self, name: &str, depth: usize) -> ParamGroup {
        let Some(name) = name.strip_prefix("encoder.") else { return ParamGroup::default() };
        let block = name.split_once(".blocks.").and_then(|(_, rest)| rest.split('.').next());
        let below_top = match block.and_then(|block| block.parse::<usize>().ok()) {
            Some(block) => depth - block,
            None if self.decay_embed && name.starts_with("features.") => depth + 1,
            None => 0,
        };
        ParamGroup { scale: self.layer_decay.powi(below_top as i32), start: self.freeze_steps }
    }
}

/// What is hidden from the encoder while it is fine-tuned.
#[derive(Debug, Default)]
pub struct FinetuneMasks {
    /// Tokens, in whose places the encoder's mask token stands, or noise.
    pub tokens: Option<Box<dyn MaskStrategy>>,
    /// Channels of a whole row, set to 0.
    pub channels: Option<Box<dyn MaskStrategy>>,
}

/// A model, its optimizer and the number of completed steps.
#[derive(Debug)]
pub struct FinetuneState<F: FeatureEncoder> {
    /// Completed optimizer steps.
    pub step: u64,
    /// What the schedule's learning rates are multiplied by; 1 unless training had to be slowed down.
    pub lr_scale: f64,
    vars: nn::VarStore,
    model: FinetunedModel<F>,
    /// `(D)`; `None`: noise stands at hidden tokens.
    mask_token: Option<Tensor>,
    masks: FinetuneMasks,
    optimizer: AdamW,
    schedule: Schedule,
    config: FinetuneConfig,
    steps: StepConfig,
    ranks: World,
}

/// Figures of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneReport {
    /// Completed steps, this one included.
    pub step: u64,
    /// Mean over examples.
    pub loss: f64,
    /// How many there are.
    pub examples: f64,
    /// Norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Loss or gradient was not finite: nothing was changed.
    pub skipped: bool,
}

impl<F: FeatureEncoder> FinetuneState<F> {
    /// Before the first step, with the weights of the encoder in the folder `dir`; or, `from_scratch`, an
    /// encoder of the same settings that has learned nothing, of which no part is frozen.
    ///
    /// # Errors
    /// [`Error::Config`] naming an impossible setting; or if the folder cannot be read.
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
        // What has learned nothing is not worth keeping.
        let config = match from_scratch {
            true => FinetuneConfig { freeze_steps: 0, freeze_local: false, ..config },
            false => config,
        };
        optimizer.validate()?;
        schedule.validate(steps.steps)?;
        let mut encoder: EncoderConfig<F::Config> = crate::encoder::read_config::<F>(dir)?;
        encoder.transformer = config.regularize(&encoder.transformer);
        let depth = encoder.transformer.depth;
        let path = dir.join(ENCODER_WEIGHTS);
        let mut learned = if from_scratch { BTreeMap::new() } else { read_tensors(&path)? };
        F::adapt_for_finetuning(&mut encoder.features, depth, &mut learned);

        tch::manual_seed(seed_for(steps.seed, Purpose::Weights, &[]) as i64);
        let vars = nn::VarStore::new(device);
        let mut model = FinetunedModel::<F>::new(&vars.root(), encoder, head)?;
        model.encoder_mut().checkpoint_activations(config.activation_checkpointing);
        let learned_token = read_mask_token(dir)?;
        let mask_token = match &learned_token {
            Some(token) if model.encoder().features().mask_token().is_none() => {
                let init = nn::Init::Uniform { lo: 0.0, up: 1.0 };
                Some(vars.root().var("mask_token", &token.size(), init))
            }
            _ => model.encoder().features().mask_token(),
        };
        if !from_scratch {
            let encoder = crate::tuned::share(&vars.variables(), "encoder.");
            assign(&path, &encoder, &learned)?;
            if let (Some(token), Some(learned)) = (&mask_token, &learned_token) {
                let vars = [("mask_token".to_owned(), token.shallow_clone())].into();
                let tensors = [("mask_token".to_owned(), learned.shallow_clone())].into();
                assign(&dir.join(MASK_TOKEN), &vars, &tensors)?;
            }
        }
        let is_local = |name: &str| {
            let name = name.strip_prefix("encoder.features.");
            name.is_some_and(|name| F::FRONT_END_PREFIXES.iter().any(|local| name.starts_with(local)))
        };
        for (name, mut tensor) in vars.variables() {
            if config.freeze_local && is_local(&name) {
                let _ = tensor.requires_grad_(false);
            }
        }
        let pace = |name: &str| config.pace(name, depth);
        let optimizer = AdamW::with_groups(vars.variables(), optimizer, pace);
        let ranks = World::default();
        Ok(Self {
            step: 0,
            lr_scale: 1.0,
            vars,
            model,
            mask_token,
            masks,
            optimizer,
            schedule,
            config,
            steps,
            ranks,
        })
    }

    /// From now on this is one of several processes that train the model together. With `shard` each keeps
    /// the moments of a part of the parameters alone.
    ///
    /// # Errors
    /// If the others train another model, or are gone.
    pub fn join(&mut self, ranks: &World, shard: bool) -> Result<()> {
        ranks.assert_same_variables(&self.vars.variables())?;
        let overlap = !self.config.activation_checkpointing;
        let variables = || self.vars.trainable_variables();
        self.optimizer.join(ranks, shard, overlap.then(variables))?;
        self.ranks = ranks.clone();
        self.ranks.broadcast_params(self.vars.variables())
    }

    /// One optimizer step on one or more micro-batches, whose gradients add up to that of one batch as
    /// large.
    ///
    /// # Errors
    /// If a batch does not suit the model, or LibTorch refuses.
    pub fn step(&mut self, batches: &[LabelledBatch]) -> Result<FinetuneReport> {
        self.step_at(&(0..).zip(batches).collect::<Vec<_>>())
    }

    /// The same on this rank's micro-batches of a step, each with its place among those of all ranks, on
    /// which its dropout depends. Loss and gradients are of all ranks.
    ///
    /// # Errors
    /// As [`step`](Self::step), and if another rank is gone.
    pub fn step_at(&mut self, batches: &[(u64, &LabelledBatch)]) -> Result<FinetuneReport> {
        let lr = self.lr_scale * self.schedule.at(self.step, self.steps.steps);
        let mut count = 0;
        let place = (self.steps.seed, self.step);
        let gradients = self.optimizer.gradients(place, batches, |batch, rng, _| {
            let scored = scope(c"forward", || self.score(batch, Some(rng)))?;
            count += batch.batch.rows();
            Ok(scored.loss)
        })?;
        let read = Tensor::stack(&[&gradients.loss, &gradients.norm], 0).to_kind(Kind::Double);
        let read = Vec::<f64>::try_from(&read)?;
        let (loss, norm) = (read[0], read[1]);
        let [loss, count] = self.ranks.sum_numbers([loss, count as f64], self.device())?;
        let skipped = !loss.is_finite() || !norm.is_finite();
        if !skipped {
            let divisor = Gradients::divisor(norm, count, self.steps.clip_norm);
            let step = || self.optimizer.step(self.step + 1, lr, &gradients, divisor);
            scope(c"optimizer", step)?;
        }
        self.step += 1;
        let grad_norm = if skipped { f64::NAN } else { norm / count };
        let (step, loss) = (self.step, loss / count);
        Ok(FinetuneReport { step, loss, examples: count, grad_norm, lr, skipped })
    }

    /// Loss and scores of a batch; with `rng` in a training pass, which keeps what gradients need.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the model.
    pub fn score(&self, batch: &LabelledBatch, rng: Option<&mut StdRng>) -> Result<Scored> {
        let device = self.vars.device();
        let batch = batch.to_device(device);
        let train = rng.is_some();
        let body = || -> Result<Scored> {
            let hidden = match train && self.step < self.config.freeze_steps {
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

    fn encode(&self, batch: &Batch, mut rng: Option<&mut StdRng>) -> Result<Hidden> {
        let encoder = self.model.encoder();
        let mut tokens = encoder.embed(batch, rng.is_some())?; // (B, T, D)
        if let Some(rng) = rng.as_deref_mut() {
            tokens = self.hide(tokens, rng)?;
        }
        Ok(encoder.contextualize(&tokens, None, rng))
    }

    /// What fine-tuning hides: tokens, and channels.
    fn hide(&self, tokens: Tokens, rng: &mut StdRng) -> Result<Tokens> {
        let (b, t, d) = tokens.x.size3()?;
        let device = tokens.x.device();
        let mut x = tokens.x.shallow_clone();
        if let Some(masking) = &self.masks.tokens {
            let hidden = masking.sample(tokens.lengths(), t, rng)?.to_tensor(device).unsqueeze(-1); // (B, T, 1)
            let shown = match &self.mask_token {
                Some(token) => token.to_kind(x.kind()),
                None => data2vec_torch_ext::noise(&[b, t, d], NOISE_STD, device)?.to_kind(x.kind()),
            };
            x = shown.where_self(&hidden, &x);
        }
        if let Some(masking) = &self.masks.channels {
            let hidden = masking.sample(&vec![d; b as usize], d, rng)?.to_tensor(device); // (B, D)
            x = x.masked_fill(&hidden.unsqueeze(1), 0.0);
        }
        Ok(tokens.with(x))
    }

    /// The model.
    pub fn model(&self) -> &FinetunedModel<F> {
        &self.model
    }

    /// Number of values in the model's variables.
    pub fn parameters(&self) -> usize {
        self.vars.variables().values().map(Tensor::numel).sum()
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.vars.device()
    }

    /// Writes the fine-tuned model to the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written.
    pub fn export(&self, dir: &Path) -> Result<()> {
        // How the last layer started is of no use to anybody who reads the model.
        let head = HeadConfig { init: Default::default(), ..self.model.head_config().clone() };
        let token = self.mask_token.as_ref();
        write_model(dir, &self.vars.variables(), self.model.config(), Some(&head), token)
    }

    /// Copies weights and moments.
    ///
    /// # Errors
    /// [`Error::Torch`] if there is no memory for the copies. Of several processes rank 0 alone copies, but
    /// all have to call it: [`Error::Dist`] if one is gone.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let moments = self.optimizer.gather()?;
        let mut snapshot = Snapshot::default();
        if self.ranks.is_rank0() {
            snapshot.add_tensors(MODEL, &self.vars.variables())?;
            snapshot.add_tensors(OPTIMIZER, &moments)?;
        }
        Ok(snapshot)
    }

    /// Takes over what a [`snapshot`](Self::snapshot) has written to the folder `dir` after `step` steps.
    ///
    /// # Errors
    /// If a file is missing, broken, or belongs to a model of other sizes.
    pub fn load(&mut self, dir: &Path, step: u64) -> Result<()> {
        let [model, optimizer] = [MODEL, OPTIMIZER].map(|name| dir.join(name));
        if self.ranks.is_rank0() {
            assign(&model, &self.vars.variables(), &read_tensors(&model)?)?;
        }
        self.ranks.broadcast_params(self.vars.variables())?;
        self.optimizer.load_state(&optimizer)?;
        self.step = step;
        Ok(())
    }
}

#[cfg(test)]
#[path = "finetune_tests.rs"]
mod tests;
