//! Tiny speech models, and helpers to train and compare models.

use data2vec_core::{
    AdamWConfig, Data2Vec, Data2VecConfig, DecoderConfig, EmaConfig, EmaScope, FeatureEncoder,
    Mask, MaskStrategy, MaskedInput, ModelConfig, Objective, Precision, RegressionLoss, Result,
    Schedule, StepConfig, StudentInput, TargetConfig, TargetNorm, TargetSource, Tokens, TrainState,
    TransformerConfig,
};
use data2vec_speech::{ConvNorm, WaveEncoder, WaveEncoderConfig};
use rand::rngs::StdRng;
use tch::{Device, Kind, Tensor};

/// Returns a schedule with the constant learning rate `lr`.
pub fn constant(lr: f64) -> Schedule {
    Schedule::TriStage { lr, init_scale: 1.0, final_scale: 1.0, phases: [0.0, 1.0, 0.0] }
}

/// Returns the same mask for every batch.
#[derive(Debug)]
pub struct FixedMask(pub Mask);

impl MaskStrategy for FixedMask {
    fn sample(&self, _: &[i64], _: i64, _: &mut StdRng) -> Result<Mask> {
        Ok(self.0.clone())
    }
}

/// Returns the config of data2vec 1.0 for speech at the sizes of `goldens/v1_audio`, without dropout.
pub fn speech_v1() -> Data2VecConfig<WaveEncoderConfig> {
    Data2VecConfig {
        model: ModelConfig {
            masked_input: MaskedInput::Replace,
            copies: 1,
            noise_std: 0.0,
            precision: Precision::F32,
            activation_checkpointing: false,
            compat: vec![],
        },
        features: WaveEncoderConfig {
            normalize: false,
            conv_layers: vec![[32, 10, 5], [32, 3, 2], [32, 3, 2], [32, 2, 2]],
            conv_norm: ConvNorm::Layer,
            pos_layers: 3,
            pos_kernel: 5,
            pos_groups: 4,
            alibi: false,
            compat: vec![],
        },
        transformer: TransformerConfig {
            input_norm: true,
            ..TransformerConfig::without_dropout(48, 4, 4, 96)
        },
        target: TargetConfig {
            top_k: 3,
            source: TargetSource::Ffn,
            layer_norm: TargetNorm::Instance,
            target_norm: TargetNorm::None,
        },
        loss: RegressionLoss { beta: 0.0, scale: None, cls: None },
        decoder: DecoderConfig::Mlp { layers: 1, norm_eps: None },
        ema: EmaConfig { scope: EmaScope::Blocks, decay: 0.9, end_decay: 0.9, anneal_steps: 0 },
    }
}

/// Returns the config that all tiny 2.0 models share.
pub fn v2() -> ModelConfig {
    ModelConfig {
        masked_input: MaskedInput::Drop,
        copies: 3,
        noise_std: 0.01,
        precision: Precision::F32,
        activation_checkpointing: false,
        compat: vec![],
    }
}

/// Returns the config of data2vec 2.0 for speech: dropped tokens, three copies, ALiBi, a
/// convolutional decoder.
pub fn speech_v2() -> Data2VecConfig<WaveEncoderConfig> {
    let mut config = speech_v1();
    config.model = v2();
    config.features.alibi = true;
    config.ema.scope = EmaScope::Context;
    config.decoder = DecoderConfig::Conv1d {
        dim: 24,
        kernel: 7,
        groups: 4,
        layers: 3,
        residual: true,
        projections: 1,
        input_dropout: 0.0,
    };
    config
}

/// Turns on every kind of dropout.
pub fn with_dropout(
    mut config: Data2VecConfig<WaveEncoderConfig>,
) -> Data2VecConfig<WaveEncoderConfig> {
    let t = &mut config.transformer;
    (t.input_dropout, t.dropout, t.attention_dropout) = (0.1, 0.1, 0.1);
    (t.activation_dropout, t.layer_drop, t.drop_path) = (0.1, 0.2, 0.1);
    if let DecoderConfig::Conv1d { input_dropout, .. } = &mut config.decoder {
        *input_dropout = 0.1;
    }
    config
}

/// Creates a model on the CPU.
///
/// # Panics
/// Panics if the config is invalid.
pub fn model(
    config: Data2VecConfig<WaveEncoderConfig>,
    masking: impl MaskStrategy + 'static,
) -> Data2Vec<WaveEncoder> {
    Data2Vec::new(config, Box::new(masking), Device::Cpu, 1).expect("a valid config")
}

/// Returns the optimizer config of the speech and text goldens, without compatibility options.
pub fn adamw() -> AdamWConfig {
    AdamWConfig { betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.01, compat: vec![] }
}

/// Creates the training state before the first step.
///
/// # Panics
/// Panics if the config is invalid.
pub fn state(model: Data2Vec<WaveEncoder>, optimizer: &AdamWConfig) -> TrainState<WaveEncoder> {
    let config = StepConfig { steps: 100, clip_norm: Some(0.5), seed: 1 };
    TrainState::new(model, optimizer, constant(1e-3), config).expect("a valid config")
}

/// Returns the largest absolute difference of two tensors.
///
/// # Panics
/// Panics if the shapes differ.
pub fn max_abs_diff(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// Computes the student's objective with the given mask, targets and noise.
///
/// `tokens` has a row per copy; `rng` is the source of dropout.
///
/// # Panics
/// Panics if the forward pass fails.
pub fn regress<F: FeatureEncoder>(
    model: &Data2Vec<F>,
    tokens: &Tokens,
    mask: &Mask,
    target: &Tensor,
    noise: Option<&Tensor>,
    rng: Option<&mut StdRng>,
) -> Objective {
    let input = StudentInput {
        tokens: tokens.with_x(tokens.x.shallow_clone()),
        mask: mask.clone(),
        target: target.shallow_clone(),
        noise: noise.map(Tensor::shallow_clone),
    };
    model.student_forward(&input, rng).expect("a forward pass")
}
