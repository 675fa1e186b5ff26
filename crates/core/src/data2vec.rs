//! data2vec: read this first.
//!
//! A student that sees part of the input regresses what a slowly averaged copy of itself, the
//! teacher, computes from all of it. Version 1.0 (Baevski et al. 2022) replaces hidden tokens by a
//! learned one; 2.0 (Baevski et al. 2023) drops them, shows the student several masks of the same
//! input, and has a decoder put noise where tokens are hidden.

use std::path::Path;

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn};

use crate::encoder::{self, Encoder, EncoderConfig};
use crate::random::{Purpose, seed_for};
use crate::{
    Batch, Decoder, DecoderConfig, EmaConfig, EmaTeacher, Error, FeatureEncoder, Mask, MaskStrategy,
    RegressionLoss, Result, TargetConfig, Tokens, TransformerConfig,
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
    /// `(D)`; 2.0 has none.
    mask_token: Option<Tensor>,
    decoder: Decoder,
    teacher: EmaTeacher<F>,
    masking: Box<dyn MaskStrategy>,
    config: Data2VecConfig<F::Config>,
}

/// What one batch contributes to the objective.
#[derive(Debug)]
pub struct Objective {
    /// Scalar f32, summed over hidden tokens.
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

impl<F: FeatureEncoder> Data2Vec<F> {
    /// Builds student, teacher and decoder with weights drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first impossible setting.
    pub fn new(
        config: Data2VecConfig<F::Config>, masking: Box<dyn MaskStrategy>, device: Device, seed: u64,
    ) -> Result<Self> {
        let Data2VecConfig { model, features, transformer, target, loss, decoder, ema } = &config;
        if model.copies < 1 {
            return Err(Error::config("model.copies", format!("{} is below 1", model.copies)));
        }
        target.validate(transformer)?;
        loss.validate()?;
        decoder.validate(transformer.dim)?;

        tch::manual_seed(seed_for(seed, Purpose::Weights, &[]) as i64);
        let vars = nn::VarStore::new(device);
        let root = vars.root();
        let student = Encoder::new(&(&root / "encoder"), features, transformer)?;
        let mask_token = (model.masked_input == MaskedInput::Replace).then(|| {
            root.var("mask_token", &[transformer.dim], nn::Init::Uniform { lo: 0.0, up: 1.0 })
        });
        let decoder = Decoder::new(&(&root / "decoder"), decoder, transformer.dim);
        let teacher = EmaTeacher::new(&vars, features, transformer, ema, device)?;
        Ok(Self { vars, student, mask_token, decoder, teacher, masking, config })
    }

    /// The objective for one batch; `train` turns dropout and layer drop on.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder or is too short to mask.
    pub fn forward(&self, batch: &Batch, rng: &mut StdRng, train: bool) -> Result<Objective> {
        let tokens = self.student.embed(batch, train)?; // (B, T, D)
        let target = self.target(batch, &tokens)?; // (B, T, D)
        let tokens = tokens.repeat(self.config.model.copies); // (B·M, T, D)
        let mask = self.masking.sample(tokens.lengths(), tokens.num_tokens(), rng)?; // (B·M, T)
        Ok(self.regress(&tokens, &mask, &target, None, train.then_some(rng)))
    }

    /// `(B, T, D)` f32: what the teacher makes of the whole batch. No mask is involved.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder.
    pub fn target(&self, batch: &Batch, student_tokens: &Tokens) -> Result<Tensor> {
        let layers = self.teacher.layers(batch, student_tokens)?;
        Ok(tch::no_grad(|| self.config.target.build(&layers, student_tokens.padding.as_ref())))
    }

    /// The objective for a mask `(B·M, T)` of the caller's choice, of `tokens` `(B·M, T, D)` and the
    /// `target` `(B, T, D)` that each M adjacent rows share.
    ///
    /// `noise` `(B·M, T, D)` is what a 2.0 decoder sees at hidden tokens; `None`: drawn. With `rng`
    /// it is a training pass.
    pub fn regress(
        &self, tokens: &Tokens, mask: &Mask, target: &Tensor, noise: Option<&Tensor>,
        rng: Option<&mut StdRng>,
    ) -> Objective {
        let (train, device) = (rng.is_some(), tokens.x.device());
        let features = match &self.mask_token {
            Some(mask_token) => {
                let hidden = mask.to_tensor(device).unsqueeze(-1); // (B, T, 1)
                let x = mask_token.where_self(&hidden, &tokens.x); // (B, T, D)
                let hidden = self.student.contextualize(&tokens.with(x), None, rng);
                self.decoder.drop_input(&hidden.x, train)
            }
            None => {
                let visible = mask.visible(tokens.lengths(), device);
                let x = visible.without_hidden(&tokens.x); // (B·M, T, D)
                let seen = self.student.contextualize(&tokens.with(x), Some(&visible), rng).x;
                let seen = self.decoder.drop_input(&seen, train); // (B·M, K, D)
                match noise {
                    Some(noise) => visible.restore(&seen, noise), // (B·M, T, D)
                    None => {
                        let noise = tokens.x.randn_like() * self.config.model.noise_std;
                        visible.restore(&seen, &noise)
                    }
                }
            }
        };
        let prediction = self.decoder.forward(&tokens.with(features), mask); // (N, D)
        let target = mask.gather(target, tokens.x.size()[0] / target.size()[0]); // (N, D)
        Objective {
            loss: self.config.loss.sum(&prediction, &target),
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

    /// Writes the student's encoder, which is what one keeps, to the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let config = EncoderConfig {
            encoder: F::NAME.to_owned(),
            features: self.config.features.clone(),
            transformer: self.config.transformer.clone(),
        };
        encoder::export::<F>(dir, &self.vars, &config)
    }

    /// The student: the part that is kept.
    pub fn student(&self) -> &Encoder<F> {
        &self.student
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
