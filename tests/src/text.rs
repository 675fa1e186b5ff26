//! Tiny text models, and fairseq's names of their variables.

use data2vec_core::{
    Data2VecConfig, DecoderConfig, EmaConfig, EmaScope, MaskedInput, ModelConfig, RegressionLoss,
};
use data2vec_nlp::TokenEncoderConfig;
use tch::Tensor;

use crate::parity::Names;
use crate::reference::Tensors;
use crate::tiny;

/// Returns the config of data2vec 2.0 for text at the sizes of `goldens/v2_text`, without dropout.
pub fn v2() -> Data2VecConfig<TokenEncoderConfig> {
    let speech = tiny::speech_v1();
    let mut transformer = speech.transformer;
    (transformer.depth, transformer.mlp_ratio, transformer.input_norm) = (3, 4.0, false);
    Data2VecConfig {
        model: tiny::v2(),
        features: TokenEncoderConfig {
            vocabulary: 64,
            max_tokens: 32,
            pad: 1,
            mask: 63,
            dropout: 0.0,
            norm_eps: 1e-5,
            early_positions: true,
        },
        transformer,
        target: speech.target, // top 3 blocks, instance norm
        loss: RegressionLoss { beta: 0.0, scale: Some(1.0), cls: None },
        decoder: DecoderConfig::Conv1d {
            dim: 48,
            kernel: 5,
            groups: 1,
            layers: 3,
            residual: false,
            projections: 2,
            input_dropout: 0.0,
        },
        ema: EmaConfig { scope: EmaScope::Blocks, decay: 0.9, end_decay: 0.9, anneal_steps: 0 },
    }
}

/// Returns the config of data2vec 1.0 for text: replaced tokens, late positions, an MLP decoder.
pub fn v1() -> Data2VecConfig<TokenEncoderConfig> {
    let mut config = v2();
    config.model = ModelConfig { masked_input: MaskedInput::Replace, copies: 1, ..config.model };
    config.features.early_positions = false;
    config.loss.beta = 4.0;
    config.decoder = DecoderConfig::Mlp { layers: 2, norm_eps: None };
    config
}

/// Returns the name of our variable `name` in fairseq's data2vec 2.0.
fn v2_name(name: &str) -> Option<String> {
    if let Some(block) = name.strip_prefix("encoder.transformer.") {
        return Some(block.to_owned());
    }
    if let Some(rest) = name.strip_prefix("decoder.") {
        let mut parts: Vec<String> = rest.split('.').map(str::to_owned).collect();
        match parts[0].as_str() {
            "blocks" => parts.insert(2, "0".into()),
            // The GELUs between the linear layers are numbered too.
            _ => parts[1] = (2 * parts[1].parse::<usize>().ok()?).to_string(),
        }
        return Some(format!("modality_encoders.TEXT.decoder.{}", parts.join(".")));
    }
    let theirs = match name.strip_prefix("encoder.features.")? {
        "embed.words" => "embed_tokens.weight",
        "positions.table" => "embed_positions.weight",
        "positions.norm.weight" => "layernorm_embedding.weight",
        "positions.norm.bias" => "layernorm_embedding.bias",
        _ => return None,
    };
    Some(format!("modality_encoders.TEXT.local_encoder.{theirs}"))
}

/// Variable names of fairseq's data2vec 2.0 for text.
#[derive(Clone, Copy, Debug)]
pub struct TextV2;

impl Names for TextV2 {
    fn tensor(&self, tensors: &Tensors, prefix: &str, name: &str, _: &[i64]) -> Option<Tensor> {
        let theirs = v2_name(name)?;
        // The teacher's names are relative to the blocks, which is what the EMA covers.
        let theirs = match prefix.contains("teacher") {
            true => theirs.strip_prefix("blocks.")?,
            false => &theirs,
        };
        tensors.get(&format!("{prefix}.{theirs}")).map(Tensor::shallow_clone)
    }

    fn is_shared_with_student(&self, name: &str) -> bool {
        name.starts_with("encoder.features.")
    }
}
