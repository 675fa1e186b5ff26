//! Tiny vision models, and the references' names of their variables.

use data2vec_core::{
    AdamWConfig, Data2VecConfig, DecoderConfig, EmaConfig, EmaScope, MaskedInput, ModelConfig,
    NormPlacement, RegressionLoss, TargetConfig, TargetNorm, TargetSource, WeightInit,
};
use data2vec_vision::{PatchEncoderConfig, Positions};
use tch::Tensor;

use crate::parity::Names;
use crate::reference::Tensors;
use crate::tiny;

/// Number of blocks of the modality encoder in `goldens/v2_image`, which give no targets.
const MODALITY_BLOCKS: usize = 1;

/// Returns the config of data2vec 2.0 for images at the sizes of `goldens/v2_image`.
pub fn v2() -> Data2VecConfig<PatchEncoderConfig> {
    let mut transformer = tiny::speech_v1().transformer;
    (transformer.depth, transformer.mlp_ratio, transformer.norm_eps) = (4, 4.0, 1e-6);
    Data2VecConfig {
        model: tiny::v2(),
        features: PatchEncoderConfig {
            image_size: [32, 32],
            channels: 3,
            mean: vec![0.0; 3],
            std: vec![1.0; 3],
            patch_size: 8,
            positions: Positions::SinCos,
        },
        transformer,
        target: TargetConfig {
            top_k: 3,
            source: TargetSource::Ffn,
            layer_norm: TargetNorm::Instance,
            target_norm: TargetNorm::Layer,
        },
        // 0.01 for each of the 6 rows.
        loss: RegressionLoss { beta: 0.0, scale: None, cls: Some(0.06) },
        decoder: DecoderConfig::Conv2d {
            dim: 48,
            kernel: 3,
            groups: 4,
            layers: 3,
            residual: true,
            input_dropout: 0.0,
        },
        ema: EmaConfig { scope: EmaScope::Everything, decay: 0.9, end_decay: 0.9, anneal_steps: 0 },
    }
}

/// Returns the config of data2vec 1.0 for images at the sizes of `goldens/v1_image`.
pub fn v1() -> Data2VecConfig<PatchEncoderConfig> {
    let mut config = v2();
    config.model = ModelConfig { masked_input: MaskedInput::Replace, copies: 1, ..config.model };
    config.features.positions = Positions::Relative;
    let t = &mut config.transformer;
    (t.norm, t.input_norm) = (NormPlacement::Pre, false);
    (t.init, t.layer_scale) = (WeightInit::Beit, Some(0.1));
    config.target.source = TargetSource::Block;
    config.target.layer_norm = TargetNorm::Layer;
    config.loss = RegressionLoss { beta: 2.0, scale: Some(1.0 / 48.0), cls: None }; // mean over D
    config.decoder = DecoderConfig::Mlp { layers: 1, norm_eps: Some(1e-6) };
    config
}

/// Returns the optimizer config of `goldens/v1_image`.
pub fn v1_adamw() -> AdamWConfig {
    AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.05, compat: vec![] }
}

/// Returns the name of our variable `name` in fairseq's data2vec 2.0.
fn v2_name(name: &str) -> Option<String> {
    let image = |rest: &str| Some(format!("modality_encoders.IMAGE.{rest}"));
    if let Some(rest) = name.strip_prefix("decoder.") {
        let rest = rest.strip_prefix("proj.0.").map_or(rest.to_owned(), |r| format!("proj.{r}"));
        let parts: Vec<&str> = rest.split('.').collect();
        return match parts.as_slice() {
            ["blocks", i, kind] => image(&format!("decoder.blocks.{i}.0.{kind}")),
            _ => image(&format!("decoder.{rest}")),
        };
    }
    let rest = name.strip_prefix("encoder.")?;
    match rest {
        "features.positions.cls" => return image("extra_tokens"),
        "features.embed.proj.weight" => return image("local_encoder.proj.weight"),
        "features.embed.proj.bias" => return image("local_encoder.proj.bias"),
        _ => {}
    }
    let rest = rest.strip_prefix("transformer.")?;
    if let Some(kind) = rest.strip_prefix("input_norm.") {
        return image(&format!("context_encoder.norm.{kind}"));
    }
    let (i, part) = rest.strip_prefix("blocks.")?.split_once('.')?;
    match i.parse::<usize>().ok()?.checked_sub(MODALITY_BLOCKS) {
        Some(i) => Some(format!("blocks.{i}.{part}")),
        None => image(&format!("context_encoder.blocks.{i}.{part}")),
    }
}

/// Returns the name of our variable `name` in the BEiT fork.
fn v1_name(name: &str) -> Option<String> {
    let known = [
        ("mask_token", "mask_token"),
        ("decoder.norm.", "norm."),
        ("decoder.proj.0.", "lm_head."),
        ("encoder.features.positions.cls", "cls_token"),
        ("encoder.features.positions.relative_bias", "rel_pos_bias.relative_position_bias_table"),
        ("encoder.features.embed.proj.", "patch_embed.proj."),
        ("encoder.transformer.blocks.", "blocks."),
    ];
    let (ours, theirs) = known.iter().find(|(ours, _)| name.starts_with(ours))?;
    let name = name.replacen(ours, theirs, 1);
    Some(name.replace(".scale1", ".gamma_1").replace(".scale2", ".gamma_2"))
}

/// Reference implementation of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// fairseq's data2vec 2.0.
    V2,
    /// The BEiT fork with data2vec 1.0 for images.
    V1,
}

impl Names for Reference {
    fn tensor(&self, tensors: &Tensors, prefix: &str, name: &str, size: &[i64]) -> Option<Tensor> {
        let get = |theirs: &str| tensors.get(&format!("{prefix}.{theirs}"));
        let theirs = match self {
            Self::V2 => v2_name(name)?,
            Self::V1 => v1_name(name)?,
        };
        // BEiT has no key bias.
        if *self == Self::V1 && theirs.ends_with("attn.qkv.bias") {
            let part = |part: &str| get(&theirs.replace("qkv.bias", part));
            let (q, v) = (part("q_bias")?, part("v_bias")?);
            return Some(Tensor::cat(&[q, &q.zeros_like(), v], 0));
        }
        get(&theirs).map(|tensor| tensor.reshape(size))
    }

    // Student and teacher are in separate files.
    fn file<'a>(&self, prefix: &'a str) -> &'a str {
        match prefix {
            "grad" => "grads",
            "after_torch_adamw" => "torch",
            _ => prefix,
        }
    }

    fn max_abs_diff(&self, name: &str, ours: &Tensor, theirs: &Tensor) -> f64 {
        if *self == Self::V1 && name.ends_with("attn.qkv.bias") {
            let dim = ours.size()[0] / 3;
            let without_keys =
                |x: &Tensor| Tensor::cat(&[x.narrow(0, 0, dim), x.narrow(0, 2 * dim, dim)], 0);
            return tiny::max_abs_diff(&without_keys(ours), &without_keys(theirs));
        }
        tiny::max_abs_diff(ours, theirs)
    }
}
