//! Export to Hugging Face and fairseq.

use data2vec_core::io::convert::{self, ExportedModel, Model};
use data2vec_core::model::head::{Activation, HeadConfig, Pool};
use data2vec_core::{Error, NormPlacement, Result};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::tables::{self, UNUSED_POSITIONS};
use crate::config::TokenEncoderConfig;

/// Prefix of the classification head in fairseq.
const HEAD: &str = "classification_heads.sentence_classification_head.";

/// Exports a model for `from_pretrained` of Hugging Face's `Data2VecTextModel`, or
/// `Data2VecTextForSequenceClassification` if it has a head. The caller adds the files of the
/// tokenizer, see [`save_tokenizer`](super::save_tokenizer).
///
/// An encoder alone gets an identity pooler, since the library expects one and data2vec has none.
///
/// # Errors
/// Returns [`Error::Config`], which names a setting that transformers does not support.
pub fn to_hugging_face(model: &Model<TokenEncoderConfig>) -> Result<ExportedModel> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if t.input_norm || t.norm != NormPlacement::Post {
        let reason = "transformers has no norm before the blocks; export it --to safetensors";
        return Err(Error::config("transformer.input_norm", reason));
    }
    if features.norm_eps != t.norm_eps {
        let reason = format!("must equal transformer.norm_eps = {} in transformers", t.norm_eps);
        return Err(Error::config("features.norm_eps", reason));
    }
    if features.pad != UNUSED_POSITIONS - 1 {
        let reason =
            format!("must be 1, since transformers counts positions from it, not {}", features.pad);
        return Err(Error::config("features.pad", reason));
    }
    let (prefix, architecture) = match head {
        None => ("", "Data2VecTextModel"),
        Some(head) => {
            check(head, t.dim)?;
            ("data2vec_text.", "Data2VecTextForSequenceClassification")
        }
    };
    let mut tensors = convert::export(&model.vars, &tables::hugging_face(prefix))?;
    let kind = (Kind::Float, Device::Cpu);
    let types = format!("{prefix}embeddings.token_type_embeddings.weight");
    tensors.insert(types, Tensor::zeros([1, t.dim], kind));
    if head.is_none() {
        tensors.insert("pooler.dense.weight".into(), Tensor::eye(t.dim, kind));
        tensors.insert("pooler.dense.bias".into(), Tensor::zeros([t.dim], kind));
    }
    let mut settings = json!({
        "architectures": [architecture],
        "model_type": "data2vec-text",
        "vocab_size": features.vocabulary,
        "hidden_size": t.dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "intermediate_size": (t.dim as f64 * t.mlp_ratio).round() as i64,
        "hidden_act": "gelu",
        "hidden_dropout_prob": t.dropout,
        "attention_probs_dropout_prob": t.attention_dropout,
        "max_position_embeddings": features.max_tokens + UNUSED_POSITIONS,
        "type_vocab_size": 1,
        "layer_norm_eps": t.norm_eps,
        "pad_token_id": features.pad,
        "bos_token_id": 0,
        "eos_token_id": 2,
    });
    if let (Some(head), Some(settings)) = (head, settings.as_object_mut()) {
        settings.insert("classifier_dropout".into(), json!(head.dropout));
        settings.extend(convert::label_config(head));
    }
    let notes = features.early_positions.then(|| {
        "this 2.0 encoder computes the same as a 1.0 encoder, and transformers treats it as one"
            .into()
    });
    let files = vec![("config.json", settings)];
    Ok(ExportedModel {
        tensors,
        files,
        notes: notes.into_iter().collect(),
        ..ExportedModel::default()
    })
}

/// Checks that other programs support the head.
fn check(head: &HeadConfig, dim: i64) -> Result<()> {
    let bad = |key: &str, reason: &str| {
        let reason = format!("{reason} in other programs; export it --to safetensors");
        Err(Error::config(format!("head.{key}"), reason))
    };
    if head.pool != Pool::First {
        return bad("pool", "must be \"first\"");
    }
    if head.norm_eps.is_some() {
        return bad("norm_eps", "must be absent");
    }
    match &head.dense {
        Some(dense) if dense.dim == dim && dense.activation == Activation::Tanh => Ok(()),
        _ => bad("dense", "must have the encoder's dim and activation \"tanh\""),
    }
}

/// Exports a model for fairseq, data2vec 1.0 or 2.0; with its head, if it has one.
///
/// # Errors
/// Returns [`Error::Config`], which names a setting that fairseq does not support.
pub fn to_fairseq(model: &Model<TokenEncoderConfig>) -> Result<ExportedModel> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if let Some(head) = head {
        check(head, t.dim)?;
    }
    let (prefix, table) = match features.early_positions {
        true => {
            let prefix = if head.is_some() { "model." } else { "" };
            (prefix, tables::fairseq2(prefix, &format!("{prefix}{HEAD}"), 0, t.depth))
        }
        false => ("encoder.", tables::fairseq1("encoder.", HEAD)),
    };
    let mut tensors = convert::export(&model.vars, &table)?;
    if !features.early_positions {
        // Version of the position numbering.
        let version = Tensor::from_slice(&[3.0_f32]);
        tensors.insert(format!("{prefix}sentence_encoder.version"), version);
    }
    Ok(ExportedModel { tensors, ..ExportedModel::default() })
}
