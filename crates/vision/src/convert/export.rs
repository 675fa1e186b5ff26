//! Export to Hugging Face, BEiT's fork and fairseq.

use data2vec_core::io::convert::{self, ExportedModel, Model};
use data2vec_core::model::head::{HeadConfig, Pool};
use data2vec_core::{Error, NormPlacement, Result};
use serde_json::json;

use super::tables;
use crate::config::PatchEncoderConfig;
use crate::positions::{Positions, sin_cos};

/// Exports a model for `from_pretrained` of Hugging Face's `Data2VecVisionModel`, or
/// `Data2VecVisionForImageClassification` if it has a head.
///
/// # Errors
/// Returns [`Error::Config`], which names a setting that transformers does not support.
pub fn to_hugging_face(model: &Model<PatchEncoderConfig>) -> Result<ExportedModel> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if features.positions == Positions::SinCos || t.input_norm || t.norm != NormPlacement::Pre {
        let reason = "transformers supports only data2vec 1.0, and this is a 2.0 encoder; export it \
                      --to fairseq or --to safetensors";
        return Err(Error::config("features.positions", reason));
    }
    if let Some(head) = head {
        check(head)?;
        if head.norm_eps != Some(t.norm_eps) {
            let reason =
                format!("must equal transformer.norm_eps = {} in transformers", t.norm_eps);
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
    let mut exported = ExportedModel {
        tensors: convert::export(&model.all_vars(), &table)?,
        ..ExportedModel::default()
    };
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
        settings.extend(convert::label_config(head));
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

/// Returns an error if other programs do not support `head`.
fn check(head: &HeadConfig) -> Result<()> {
    let bad = |key: &str, reason: &str| {
        let reason = format!("{reason}; export it --to safetensors");
        Err(Error::config(format!("head.{key}"), reason))
    };
    match head {
        HeadConfig { dense: Some(_), .. } => bad("dense", "is not supported by other programs"),
        HeadConfig { norm_eps: None, .. } => bad("norm_eps", "is required by other programs"),
        HeadConfig { pool: Pool::Mean | Pool::Prefix, .. } => Ok(()),
        _ => bad("pool", "must be \"mean\" or \"prefix\" in other programs"),
    }
}

/// Exports a model for BEiT's fork (data2vec 1.0) or fairseq (data2vec 2.0), fine-tuned if it has a
/// head. In 2.0 all blocks are main blocks: `prenet_depth` is 0.
///
/// # Errors
/// Returns [`Error::Config`], which names a setting that they do not support.
pub fn to_fairseq(model: &Model<PatchEncoderConfig>) -> Result<ExportedModel> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if let Some(head) = head {
        check(head)?;
    }
    let mean = head.as_ref().is_none_or(|head| head.pool == Pool::Mean);
    let is_v2 = features.positions == Positions::SinCos;
    let prefix = if head.is_some() && is_v2 { "model." } else { "" };
    let table = match is_v2 {
        true => tables::fairseq2(prefix, 0, t.depth, features, t.dim),
        false => tables::beit(features, t.dim, mean),
    };
    let mut tensors = convert::export(&model.all_vars(), &table)?;
    if is_v2 {
        let name = format!("{prefix}modality_encoders.IMAGE.fixed_positional_encoder.positions");
        tensors.insert(name, sin_cos(features.grid(), t.dim).unsqueeze(0));
    }
    Ok(ExportedModel { tensors, ..ExportedModel::default() })
}
