//! data2vec: read this first.
//!
//! A student that sees part of the input regresses what a slowly averaged copy of itself, the
//! teacher, computes from all of it. Version 1.0 (Baevski et al. 2022) replaces hidden tokens by a
//! learned one; 2.0 (Baevski et al. 2023) drops them, shows the student several masks of the same
//! input, and has a decoder put noise where tokens are hidden.

mod parts;

use std::path::Path;

use data2vec_torch_ext as torch_ext;
use data2vec_torch_ext::scope;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use crate::batch::upload;
use crate::encoder::{Encoder, EncoderConfig};
use crate::head::mean_over_tokens;
use crate::nn::{Init, trunc_normal, done};
use crate::random::{Purpose, seed_for};
use crate::tuned::write_model;
use crate::{
    Batch, Decoder, DecoderConfig, EmaConfig, EmaScope, EmaTeacher, Error, FeatureEncoder, Mask,
    MaskStrategy, Precision, World, RegressionLoss, Result, Substitute, TargetConfig, Tokens,
    TransformerConfig, WeightInit,
};

/// What becomes of hidden tokens on their way through the student.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskedInput {
    /// A learned token stands in their place (1.0).
    Replace,
    /// They are left out; the decoder sees noise in their place (2.0).
    Drop,
}

/// What becomes of the input: the model section of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// 1.0 or 2.0.
    pub masked_input: MaskedInput,
    /// How many masks of each input the student sees in a step (M).
    pub copies: i64,
    /// Standard deviation of the noise that a decoder sees at hidden tokens; for `drop` alone.
    pub noise_std: f64,
    /// Of products and convolutions; absent: `f32`.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// Keeps of each of the student's blocks only its input, and computes the block again for its
    /// gradients: a third more time for the student, much less memory, the same numbers. Absent: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub activation_checkpointing: bool,
    /// Departures from the papers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compat: Vec<ModelCompat>,
}

/// Released behaviour that departs from the papers' intent, for exact reproduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelCompat {
    /// The teacher sees the hidden tokens alone, moved together, rather than the whole input
    /// (fairseq issue 4881). For `replace` and a teacher that takes the student's tokens.
    TeacherSeesHidden,
}

/// Everything that defines a [`Data2Vec`] but its mask strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Data2VecConfig<C> {
    /// Replace or drop, and copies.
    pub model: ModelConfig,
    /// The feature encoder.
    pub features: C,
    /// The transformer.
    pub transformer: TransformerConfig,
    /// What is predicted.
    pub target: TargetConfig,
    /// How far off a prediction is.
    pub loss: RegressionLoss,
    /// From features to predictions.
    pub decoder: DecoderConfig,
    /// How the teacher follows.
    pub ema: EmaConfig,
}

/// Student, teacher, decoder and loss: all that pretraining needs and inference does not.
#[derive(Debug)]
pub struct Data2Vec<F: FeatureEncoder> {
    vars: nn::VarStore,
    student: Encoder<F>,
    /// `(D)`; 2.0 has none, and some features have their own.
    mask_token: Option<Tensor>,
    decoder: Decoder,
    teacher: EmaTeacher<F>,
    masking: Box<dyn MaskStrategy>,
    config: Data2VecConfig<F::Config>,
}

/// What one batch contributes to the objective.
#[derive(Debug)]
pub struct Objective {
    /// Scalar f32, summed over hidden tokens, with the prefix token's share where it has one.
    pub loss: Tensor,
    /// How many tokens were hidden (N): what the loss is divided by, once.
    pub num_hidden: i64,
    /// Share of hidden tokens among all real ones.
    pub masked_share: f64,
    /// `(N, D)`: what the student says at hidden tokens.
    pub prediction: Tensor,
    /// `(N, D)` f32: what it should have said.
    pub target: Tensor,
}

/// What the student is to do with a batch.
struct Task {
    /// `(B·M, T, D)`: tokens before hidden ones leave.
    shown: Tokens,
    /// `(B·M, T)`.
    mask: Mask,
    /// `(B, T, D)`, or `(B·M, T, D)` of some rows.
    target: Tensor,
}

impl<F: FeatureEncoder> Data2Vec<F> {
    /// Builds student, teacher and decoder with weights drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first impossible setting.
    pub fn new(
        config: Data2VecConfig<F::Config>,
        masking: Box<dyn MaskStrategy>,
        device: Device,
        seed: u64,
    ) -> Result<Self> {
        let Data2VecConfig { model, features, transformer, target, loss, decoder, ema } = &config;
        if model.copies < 1 {
            return Err(Error::config("model.copies", format!("{} is below 1", model.copies)));
        }
        if model.compat.contains(&ModelCompat::TeacherSeesHidden)
            && (model.masked_input == MaskedInput::Drop || ema.scope == EmaScope::Everything)
        {
            let reason = "`teacher-sees-hidden` needs masked_input = \"replace\" and ema.scope \
                          \"blocks\" or \"context\"";
            return Err(Error::config("model.compat", reason));
        }
        target.validate(transformer)?;
        loss.validate()?;
        decoder.validate(transformer.dim)?;

        tch::manual_seed(seed_for(seed, Purpose::Weights, &[]) as i64);
        let vars = nn::VarStore::new(device);
        let root = vars.root();
        let mut student = Encoder::<F>::new(&(&root / "encoder"), features, transformer)?;
        student.checkpoint_activations(model.activation_checkpointing);
        let own =
            model.masked_input == MaskedInput::Replace && student.features().mask_token().is_none();
        let mask_token = own.then(|| {
            let size = [transformer.dim];
            match transformer.init {
                WeightInit::Bert => {
                    root.var("mask_token", &size, nn::Init::Uniform { lo: 0.0, up: 1.0 })
                }
                WeightInit::Beit => trunc_normal(&root, "mask_token", &size),
            }
        });
        if loss.cls.is_some() && student.features().prefix().is_none() {
            let reason = format!("`{}` features have no prefix token; leave it out", F::NAME);
            return Err(Error::config("loss.cls", reason));
        }
        let init = match transformer.init {
            WeightInit::Bert => F::DECODER_INIT,
            WeightInit::Beit => Init::Beit,
        };
        let decoder = Decoder::new(&(&root / "decoder"), decoder, transformer.dim, init);
        let teacher = EmaTeacher::new(&vars, features, transformer, ema, device)?;
        Ok(Self { vars, student, mask_token, decoder, teacher, masking, config })
    }

    /// The objective for one batch; `train` turns dropout and layer drop on.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder or is too short to mask.
    pub fn forward(&self, batch: &Batch, rng: &mut StdRng, train: bool) -> Result<Objective> {
        let precision = self.config.model.precision;
        precision.run(self.device(), || self.objective(batch, rng, train))?
    }

    fn objective(&self, batch: &Batch, rng: &mut StdRng, train: bool) -> Result<Objective> {
        let task = self.task(batch, rng, train)?;
        Ok(self.answer(&task, train.then_some(rng)))
    }

    fn answer(&self, Task { shown, mask, target }: &Task, rng: Option<&mut StdRng>) -> Objective {
        scope(c"student", || self.regress(shown, mask, target, None, rng))
    }

    fn task(&self, batch: &Batch, rng: &mut StdRng, train: bool) -> Result<Task> {
        let tokens = scope(c"embed", || self.student.embed(batch, train))?; // (B, T, D)
        let repeated = tokens.repeat(self.config.model.copies); // (B·M, T, D)
        let mask = self.masking.sample(repeated.lengths(), repeated.num_tokens(), rng)?; // (B·M, T)
        let target = match self.config.model.compat.contains(&ModelCompat::TeacherSeesHidden) {
            false => self.target(batch, &tokens)?, // (B, T, D)
            true => self.target_of_hidden(batch, &repeated, &mask)?, // (B·M, T, D)
        };
        Ok(Task { shown: self.substitute(repeated, &mask)?, mask, target })
    }

    /// Other tokens in the places where the mask wants them.
    fn substitute(&self, tokens: Tokens, mask: &Mask) -> Result<Tokens> {
        let all = mask.substitutes();
        if all.is_empty() {
            return Ok(tokens);
        }
        let place = |s: &Substitute| s.row as i64 * tokens.num_tokens() + s.token as i64;
        let places: Vec<i64> = all.iter().map(place).collect();
        let entries: Vec<i64> = all.iter().map(|s| s.entry).collect();
        let places = upload(&Tensor::from_slice(&places), tokens.x.device());
        let x = tokens.x.flatten(0, 1).index_copy(
            0,
            &places,
            &self.student.features().entries(&entries)?,
        );
        Ok(tokens.with(x.reshape(tokens.x.size())))
    }

    /// [`ModelCompat::TeacherSeesHidden`]: `(B, T, D)`, of use at hidden tokens alone.
    fn target_of_hidden(&self, batch: &Batch, tokens: &Tokens, mask: &Mask) -> Result<Tensor> {
        let hidden = mask.inverted(tokens.lengths()).visible(tokens.lengths(), tokens.x.device());
        let together = Tokens::new(hidden.gather(&tokens.x), Some(mask.counts())); // (B, N/B, D)
        let target = self.target(batch, &together)?;
        Ok(hidden.restore(&target, &tokens.x.detach().zeros_like()))
    }

    /// `(B, T, D)` f32: what the teacher makes of the whole batch. No mask is involved.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder.
    pub fn target(&self, batch: &Batch, student_tokens: &Tokens) -> Result<Tensor> {
        scope(c"teacher", || {
            let layers = self.teacher.layers(batch, student_tokens)?;
            Ok(tch::no_grad(|| self.config.target.build(&layers, student_tokens.padding.as_ref())))
        })
    }

    /// The objective for a mask `(B·M, T)` of the caller's choice, of `tokens` `(B·M, T, D)` and the
    /// `target` `(B, T, D)` that each M adjacent rows share.
    ///
    /// `noise` `(B·M, T, D)` is what a 2.0 decoder sees at hidden tokens; `None`: drawn. With `rng`
    /// it is a training pass.
    pub fn regress(
        &self,
        tokens: &Tokens,
        mask: &Mask,
        target: &Tensor,
        noise: Option<&Tensor>,
        rng: Option<&mut StdRng>,
    ) -> Objective {
        let (train, device) = (rng.is_some(), tokens.x.device());
        let (prediction, prefix) = match self.config.model.masked_input {
            MaskedInput::Replace => {
                let hidden = mask.to_tensor(device).unsqueeze(-1); // (B, T, 1)
                let x = self.mask_token().unwrap_or_default().where_self(&hidden, &tokens.x); // (B, T, D)
                let shown = tokens.with(x);
                match &self.decoder {
                    Decoder::Mlp(mlp) if self.config.loss.cls.is_none() => {
                        (mlp.forward(&self.student.contextualize_hidden(&shown, mask, rng)), None)
                    }
                    decoder => {
                        let seen = self.student.contextualize(&shown, None, rng);
                        let x = decoder.drop_input(&seen.x, train);
                        (decoder.forward(&tokens.with(x), mask), seen.prefix)
                    }
                }
            }
            MaskedInput::Drop => {
                let visible = mask.visible(tokens.lengths(), device);
                let x = visible.without_hidden(&tokens.x); // (B·M, T, D)
                let seen = self.student.contextualize(&tokens.with(x), Some(&visible), rng);
                let kept = self.decoder.drop_input(&seen.x, train); // (B·M, K, D)
                let noise = match noise {
                    Some(noise) => noise.shallow_clone(),
                    None => {
                        let std = self.config.model.noise_std;
                        done(torch_ext::noise(&tokens.x.size(), std, device))
                    }
                };
                let x = visible.restore(&kept, &noise); // (B·M, T, D)
                (self.decoder.forward(&tokens.with(x), mask), seen.prefix)
            }
        }; // (N, D)
        let copies = tokens.x.size()[0] / target.size()[0];
        let cls_loss = prefix.zip(self.config.loss.cls).map(|(prefix, weight)| {
            // Each row counts as often as it has hidden tokens: divided by N, a mean over rows.
            let counts = upload(&Tensor::from_slice(&mask.counts()), device); // (B·M)
            let cls = prefix.select(1, -1); // (B·M, D)
            let padding = tokens.padding.as_ref().map(|p| p.slice(0, 0, None, copies)); // (B, T)
            let mean = mean_over_tokens(target, padding.as_ref()); // (B, D)
            let mean = mean.repeat_interleave_self_int(copies, 0, None); // (B·M, D)
            (self.config.loss.rows(&cls, &mean) * counts).sum(Kind::Float) * weight
        });
        let target = mask.gather(target, copies); // (N, D)
        let loss = self.config.loss.sum(&prediction, &target);
        Objective {
            loss: cls_loss.map_or_else(|| loss.shallow_clone(), |cls_loss| &loss + cls_loss),
            num_hidden: mask.num_hidden(),
            masked_share: mask.share(tokens.lengths()),
            prediction,
            target,
        }
    }

    /// Moves the teacher after optimizer step `step`, counted from 1. Returns the decay used.
    ///
    /// # Errors
    /// [`Error::Torch`] if LibTorch refuses.
    pub fn update_teacher(&mut self, step: u64) -> Result<f64> {
        self.teacher.update(&self.vars, step)
    }

    /// Writes the student's encoder, which is what one keeps, to the folder `dir`, with 1.0's mask token,
    /// which fine-tuning may want again, in a file of its own.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let config = self.encoder_config();
        let mask_token = self.mask_token();
        write_model(dir, &self.vars.variables(), &config, None, mask_token.as_ref())
    }

    /// The settings of what is kept.
    pub fn encoder_config(&self) -> EncoderConfig<F::Config> {
        EncoderConfig {
            encoder: F::NAME.to_owned(),
            features: self.config.features.clone(),
            transformer: self.config.transformer.clone(),
        }
    }

    /// Whether training leaves out blocks and branches of the student by chance, as the settings say: so it is at
    /// first. Without, a step takes the most that it can.
    pub fn stochastic_depth(&mut self, on: bool) {
        self.student.stochastic_depth(on);
    }

    /// The student: the part that is kept.
    pub fn student(&self) -> &Encoder<F> {
        &self.student
    }

    /// `(D)`: what stands in the places of hidden tokens; `None` where they are dropped.
    pub fn mask_token(&self) -> Option<Tensor> {
        match &self.mask_token {
            Some(own) => Some(own.shallow_clone()),
            None => self.student.features().mask_token(),
        }
    }

    /// From now on this is the model of several processes, which begin with rank 0's weights. With `shard` they divide
    /// the teacher's weights among them, in bf16 alone: in f32 every pass needs the exact values of all.
    ///
    /// # Errors
    /// If the others train another model, or are gone.
    pub fn join(&mut self, ranks: &World, shard: bool) -> Result<()> {
        ranks.assert_same_variables(&self.vars.variables())?;
        ranks.broadcast_params(self.vars.variables())?;
        self.teacher.join(ranks, shard && self.config.model.precision == Precision::Bf16)
    }

    /// The teacher.
    pub fn teacher(&self) -> &EmaTeacher<F> {
        &self.teacher
    }

    /// Variables of student, decoder and mask token.
    pub fn vars(&self) -> &nn::VarStore {
        &self.vars
    }

    /// The settings it was built with.
    pub fn config(&self) -> &Data2VecConfig<F::Config> {
        &self.config
    }

    /// Number of values in the student's variables, with and without what is thrown away.
    pub fn parameters(&self) -> (usize, usize) {
        let count = |keep: &dyn Fn(&str) -> bool| {
            let all = self.vars.variables();
            all.iter().filter(|(name, _)| keep(name)).map(|(_, t)| t.numel()).sum()
        };
        (count(&|_| true), count(&|name| name.starts_with("encoder.")))
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.vars.device()
    }
}
