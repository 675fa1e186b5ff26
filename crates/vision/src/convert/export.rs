//! Our models under other programs' names.

use data2vec_core::convert::{self, Exported, Model};
use data2vec_core::head::{HeadConfig, Pool};
use data2vec_core::{Error, NormPlacement, Result};
use serde_json::json;

use super::tables;
use crate::positions::sin_cos;
use crate::{PatchEncoderConfig, Positions};

/// A folder for `from_pretrained` of Hugging Face's Data2VecVision: the encoder alone, whose features are
/// those of the last block, or ForImageClassification.
///
/// # Errors
/// [`Error::Config`] that names what transformers cannot be.
pub fn to_hugging_face(model: &Model<PatchEncoderConfig>) -> Result<Exported> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if features.positions == Positions::SinCos || t.input_norm || t.norm != NormPlacement::Pre {
        let reason = "transformers has data2vec 1.0 alone, and this encoder is 2.0's: export it --to \
                      fairseq or --to safetensors";
        return Err(Error::config("features.positions", reason));
    }
    if let Some(head) = head {
        check(head)?;
        if head.norm_eps != Some(t.norm_eps) {
            let reason = format!("must be transformer.norm_eps = {} in transformers", t.norm_eps);
            return Err(Error::config("head.norm_eps", reason));
        }
    }
    let [height, width] = features.image_size;
    let size = if height == width { json!(height) } else { json!([height, width]) };
    let mean = head.as_ref().is_none_or(|head| head.pool == Pool::Mean);
    let (prefix, architecture) = match head {
        None => ("", "Data2VecVisionModel"),
        Some(_) => ("data2vec_vision.", "Data2VecVisionForImageClassification"),
    };
    let table = tables::hugging_face(prefix, features, t.dim, mean);
    let mut exported =
        Exported { tensors: convert::export(&model.all_vars(), &table)?, ..Exported::default() };
    let mut settings = json!({
        "architectures": [architecture],
        "model_type": "data2vec-vision",
        "hidden_size": t.dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "intermediate_size": (t.dim as f64 * t.mlp_ratio).round() as i64,
        "hidden_act": "gelu",
        "hidden_dropout_prob": t.dropout,
        "attention_probs_dropout_prob": t.attention_dropout,
        "drop_path_rate": t.drop_path,
        "layer_norm_eps": t.norm_eps,
        "layer_scale_init_value": t.layer_scale.unwrap_or(0.0),
        "image_size": size,
        "patch_size": features.patch_size,
        "num_channels": features.channels,
        "use_mask_token": model.mask_token.is_some(),
        "use_absolute_position_embeddings": false,
        "use_relative_position_bias": features.positions == Positions::RelativeBlocks,
        "use_shared_relative_position_bias": features.positions == Positions::Relative,
        "use_mean_pooling": mean,
    });
    if let (Some(head), Some(settings)) = (head, settings.as_object_mut()) {
        settings.extend(convert::label_settings(head));
    }
    exported.files.push(("config.json", settings));
    exported.files.push((
        "preprocessor_config.json",
        json!({
            "image_processor_type": "BeitImageProcessor",
            "do_resize": true,
            "size": { "height": height, "width": width },
            "resample": 3,
            "do_center_crop": false,
            "do_rescale": true,
            "rescale_factor": 1.0 / 255.0,
            "do_normalize": true,
            "image_mean": features.mean,
            "image_std": features.std,
        }),
    ));
    Ok(exported)
}

/// Whether other programs' classifiers can be `head`.
fn check(head: &HeadConfig) -> Result<()> {
    let bad = |key: &str, reason: &str| {
        let reason = format!("{reason}: export it --to safetensors");
        Err(Error::config(format!("head.{key}"), reason))
    };
    match head {
        HeadConfig { dense: Some(_), .. } => bad("dense", "is not there in other programs"),
        HeadConfig { norm_eps: None, .. } => {
            bad("norm_eps", "there is always a norm in other programs")
        }
        HeadConfig { pool: Pool::Mean | Pool::Prefix, .. } => Ok(()),
        _ => bad("pool", "is \"mean\" or \"prefix\" in other programs"),
    }
}

/// The tensors under the names of BEiT's fork (1.0) or of fairseq (2.0); with a head, those of a fine-tuned
/// model. In 2.0 all blocks are main ones: its `prenet_depth` is 0.
///
/// # Errors
/// [`Error::Config`] that names what they cannot be.
pub fn to_fairseq(model: &Model<PatchEncoderConfig>) -> Result<Exported> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if let Some(head) = head {
        check(head)?;
    }
    let mean = head.as_ref().is_none_or(|head| head.pool == Pool::Mean);
    let second = features.positions == Positions::SinCos;
    let prefix = if head.is_some() && second { "model." } else { "" };
    let table = match second {
        true => tables::fairseq2(prefix, 0, t.depth, features, t.dim),
        false => tables::beit(features, t.dim, mean),
    };
    let mut tensors = convert::export(&model.all_vars(), &table)?;
    if second {
        let name = format!("{prefix}modality_encoders.IMAGE.fixed_positional_encoder.positions");
        tensors.insert(name, sin_cos(features.grid(), t.dim).unsqueeze(0));
    }
    Ok(Exported { tensors, ..Exported::default() })
}
