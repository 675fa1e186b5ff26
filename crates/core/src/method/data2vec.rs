//! data2vec: read this first.
//!
//! A student that sees part of the input regresses what a slowly averaged copy of itself, the
//! teacher, computes from all of it. Version 1.0 (Baevski et al. 2022) replaces masked tokens by a
//! learned one; 2.0 (Baevski et al. 2023) drops them, shows the student several masks of the same
//! input, and lets a decoder fill the masked places with noise.
//!
//! [`Data2Vec::forward`] is the method; training calls the same [`prepare`](Data2Vec::prepare) and
//! [`student_forward`](Data2Vec::student_forward), on a CPU the latter for some rows at a time.

use data2vec_torch_ext::{self as torch_ext, scope};
use rand::rngs::StdRng;
use tch::{Device, Tensor, nn};

use crate::data::batch::{Batch, Tokens};
use crate::error::{Error, Result};
use crate::method::config::{Data2VecConfig, MaskedInput};
use crate::method::mask::{Mask, MaskStrategy};
use crate::method::parts::Parts;
use crate::method::teacher::EmaTeacher;
use crate::model::encoder::Encoder;
use crate::model::feature::FeatureEncoder;
use crate::model::nn::{expect_torch, trunc_normal};
use crate::model::transformer::WeightInit;
use crate::random::{Purpose, seed_for};

mod access;

/// Student, teacher, decoder and loss: all that pretraining needs and inference does not.
#[derive(Debug)]
pub struct Data2Vec<F: FeatureEncoder> {
    vars: nn::VarStore,
    student: Encoder<F>,
    /// `(D)`; 2.0 has none, and some feature encoders bring their own.
    mask_token: Option<Tensor>,
    teacher: EmaTeacher<F>,
    parts: Parts,
    config: Data2VecConfig<F::Config>,
}

/// A batch, ready for the student.
#[derive(Debug)]
pub struct StudentInput {
    /// `(B·M, T, D)`: the tokens, before masked ones are replaced or dropped.
    pub tokens: Tokens,
    /// `(B·M, T)`.
    pub mask: Mask,
    /// `(B, T, D)` f32, shared by the M adjacent rows of each example; see
    /// [`FeatureEncoder::input_values`] if the input is predicted.
    pub target: Tensor,
    /// `(B·M, T, D)`: the 2.0 decoder's input at masked tokens; `None`: drawn at random.
    pub noise: Option<Tensor>,
}

/// What one batch, or some of its rows, contribute to the objective.
#[derive(Debug)]
pub struct Objective {
    /// Scalar f32, summed over masked tokens, with the CLS loss where there is one.
    pub loss: Tensor,
    /// Number of masked tokens (N); the loss is divided by it once, after the last micro-batch.
    pub num_masked: i64,
    /// Share of masked tokens among all real ones.
    pub masked_share: f64,
    /// `(N, P)`: the student's predictions at masked tokens; P is D unless the input is predicted.
    pub prediction: Tensor,
    /// `(N, P)` f32: the targets there.
    pub target: Tensor,
}

impl<F: FeatureEncoder> Data2Vec<F> {
    /// Builds student, teacher and decoder with weights drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid setting.
    pub fn new(
        config: Data2VecConfig<F::Config>,
        masking: Box<dyn MaskStrategy>,
        device: Device,
        seed: u64,
    ) -> Result<Self> {
        let parts = |path: &nn::Path| Parts::from_config::<F>(&config, masking, path);
        Self::with_parts(config.clone(), parts, device, seed)
    }

    /// Builds a model whose target, decoder or loss is the caller's own. `parts` creates the
    /// decoder's variables below the given path.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid setting.
    pub fn with_parts(
        config: Data2VecConfig<F::Config>,
        parts: impl FnOnce(&nn::Path) -> Parts,
        device: Device,
        seed: u64,
    ) -> Result<Self> {
        config.validate()?;
        config.validate_input_target::<F>()?;
        let Data2VecConfig { model, features, transformer, loss, ema, .. } = &config;
        tch::manual_seed(seed_for(seed, Purpose::Weights, &[]) as i64);
        let vars = nn::VarStore::new(device);
        let root = vars.root();
        let mut student = Encoder::<F>::new(&(&root / "encoder"), features, transformer)?;
        student.checkpoint_activations(model.activation_checkpointing);
        if loss.cls.is_some() && student.features().prefix().is_none() {
            let reason = format!("`{}` features have no prefix token; leave it out", F::NAME);
            return Err(Error::config("loss.cls", reason));
        }
        let learns_mask_token =
            model.masked_input == MaskedInput::Replace && student.features().mask_token().is_none();
        let mask_token = learns_mask_token.then(|| match transformer.init {
            WeightInit::Bert => {
                root.var("mask_token", &[transformer.dim], nn::Init::Uniform { lo: 0.0, up: 1.0 })
            }
            WeightInit::Beit => trunc_normal(&root, "mask_token", &[transformer.dim]),
        });
        let parts = parts(&(&root / "decoder"));
        let teacher = EmaTeacher::new(&vars, features, transformer, ema, device)?;
        Ok(Self { vars, student, mask_token, teacher, parts, config })
    }

    /// The objective of one batch; `train` turns dropout and LayerDrop on.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder or is too short to mask.
    pub fn forward(&self, batch: &Batch, rng: &mut StdRng, train: bool) -> Result<Objective> {
        let input = self.prepare(batch, rng, train)?; // embed, mask, target
        self.student_forward(&input, train.then_some(rng)) // predict, loss
    }

    /// Embeds a batch, masks its tokens and computes the targets.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder or is too short to mask.
    pub fn prepare(&self, batch: &Batch, rng: &mut StdRng, train: bool) -> Result<StudentInput> {
        let Self { student, parts, config, .. } = self;
        config.model.precision.run(self.device(), || {
            let tokens = scope(c"embed", || student.embed(batch, train))?; // (B, T, D)
            let copies = tokens.repeat(config.model.copies); // (B·M, T, D)
            let mask = parts.masking.sample(copies.lengths(), copies.num_tokens(), rng)?; // (B·M, T)
            let target = match config.teacher_sees_masked() {
                false => self.target(batch, &tokens)?, // (B, T, D)
                true => self.target_from_masked(batch, &copies, &mask)?, // (B·M, T, D)
            };
            let tokens = student.features().substitute(copies, &mask)?; // (B·M, T, D)
            Ok(StudentInput { tokens, mask, target, noise: None })
        })?
    }

    /// Computes the targets `(B, T, D)` f32 of a whole batch with the teacher, or from the input. No
    /// mask is involved.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder.
    pub fn target(&self, batch: &Batch, student_tokens: &Tokens) -> Result<Tensor> {
        let Some(target) = &self.parts.target else {
            return self.student.features().input_values(batch); // (B, T, P)
        };
        scope(c"teacher", || {
            let layers = self.teacher.layers(batch, student_tokens)?;
            let padding = student_tokens.padding.as_ref();
            Ok(tch::no_grad(|| target.build(&layers, padding))) // (B, T, D)
        })
    }

    /// Predicts the targets at masked tokens and computes the loss. With `rng` it is a training
    /// pass.
    ///
    /// # Errors
    /// What the feature encoder's positions return.
    pub fn student_forward(
        &self,
        input: &StudentInput,
        rng: Option<&mut StdRng>,
    ) -> Result<Objective> {
        let pass = || {
            let (prediction, prefix) = self.predict(input, rng)?; // (N, D), (B·M, P, D)
            Ok(self.objective(input, prediction, prefix.as_ref()))
        };
        self.config.model.precision.run(self.device(), || scope(c"student", pass))?
    }

    /// Returns predictions `(N, D)` at masked tokens, and the prefix tokens' features `(B·M, P, D)`.
    fn predict(
        &self,
        StudentInput { tokens, mask, noise, .. }: &StudentInput,
        rng: Option<&mut StdRng>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (student, decoder) = (&self.student, &self.parts.decoder);
        let (train, device) = (rng.is_some(), tokens.x.device());
        match self.config.model.masked_input {
            MaskedInput::Replace => {
                let masked = mask.to_tensor(device).unsqueeze(-1); // (B, T, 1)
                let token = self.mask_token().unwrap_or_default(); // (D)
                let shown = tokens.with_x(token.where_self(&masked, &tokens.x)); // (B, T, D)
                if let (Some(mlp), None) = (decoder.as_mlp(), self.config.loss.cls) {
                    let x = student.contextualize_masked(&shown, mask, rng)?; // (N, D)
                    return Ok((mlp.forward(&x), None));
                }
                let output = student.contextualize(&shown, None, rng)?; // (B, T, D)
                let x = decoder.drop_input(&output.x, train);
                Ok((decoder.forward(&tokens.with_x(x), mask), output.prefix)) // (N, D)
            }
            MaskedInput::Drop => {
                let visible = mask.visible(tokens.lengths(), device);
                let shown = tokens.with_x(visible.zero_masked(&tokens.x)); // (B·M, T, D)
                let output = student.contextualize(&shown, Some(&visible), rng)?; // (B·M, K, D)
                let x = decoder.drop_input(&output.x, train);
                let drawn =
                    || torch_ext::noise(&tokens.x.size(), self.config.model.noise_std, device);
                let noise =
                    noise.as_ref().map_or_else(|| expect_torch(drawn()), Tensor::shallow_clone);
                let x = visible.restore(&x, &noise); // (B·M, T, D)
                Ok((decoder.forward(&tokens.with_x(x), mask), output.prefix)) // (N, D)
            }
        }
    }

    fn objective(
        &self,
        StudentInput { tokens, mask, target, .. }: &StudentInput,
        prediction: Tensor,
        prefix: Option<&Tensor>,
    ) -> Objective {
        let loss = &self.parts.loss;
        let cls = prefix.zip(self.config.loss.cls);
        let cls = cls.map(|(prefix, weight)| loss.cls(prefix, target, tokens, mask) * weight);
        let copies = tokens.x.size()[0] / target.size()[0];
        let target = mask.gather(target, copies); // (N, D)
        let sum = loss.sum(&prediction, &target); // scalar
        let (prediction, target) = loss.comparable(&prediction, &target);
        Objective {
            loss: cls.map_or_else(|| sum.shallow_clone(), |cls| &sum + cls),
            num_masked: mask.num_masked(),
            masked_share: mask.share(tokens.lengths()),
            prediction,
            target,
        }
    }
}
