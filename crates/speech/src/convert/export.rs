//! Our models under other programs' names.

use data2vec_core::convert::{self, Exported, Model};
use data2vec_core::head::{Activation, HeadConfig, HeadTask, Pool};
use data2vec_core::{Error, NormPlacement, Result};
use serde_json::{Map, Value as Json, json};
use tch::{Device, Kind, Tensor};

use super::tables;
use crate::{ConvNorm, WaveCompat, WaveEncoderConfig, audio};

/// The word delimiter of the letters' labels.
const DELIMITER: &str = "|";

/// A folder for `from_pretrained` of Hugging Face's Data2VecAudio: the encoder alone, ForCTC, or
/// ForSequenceClassification.
///
/// # Errors
/// [`Error::Config`] that names what transformers cannot be.
pub fn to_hugging_face(model: &Model<WaveEncoderConfig>) -> Result<Exported> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if features.alibi || !t.input_norm || t.norm != NormPlacement::Post {
        let reason = "transformers has data2vec 1.0 alone, and this encoder is 2.0's: export it --to \
                      fairseq or --to safetensors";
        return Err(Error::config("features.alibi", reason));
    }
    if features.conv_norm != ConvNorm::Layer {
        let reason = "\"group\" is wav2vec 2.0's: transformers' Data2VecAudio has \"layer\" alone";
        return Err(Error::config("features.conv_norm", reason));
    }
    let ctc = head.as_ref().is_some_and(|head| head.task == HeadTask::Ctc);
    let prefix = if head.is_some() { "data2vec_audio." } else { "" };
    let mut vars = model.all_vars();
    let mut exported = Exported::default();
    let architecture = match head {
        None => "Data2VecAudioModel",
        Some(_) if ctc => "Data2VecAudioForCTC",
        Some(head) => {
            check_classifier(head)?;
            if head.dense.is_none() {
                // There, a map without activation comes before the last one: it changes nothing.
                let kind = (Kind::Float, Device::Cpu);
                vars.insert("head.dense.weight".into(), Tensor::eye(t.dim, kind));
                vars.insert("head.dense.bias".into(), Tensor::zeros(t.dim, kind));
            }
            "Data2VecAudioForSequenceClassification"
        }
    };
    exported.tensors = convert::export(&vars, &tables::hugging_face(prefix, ctc))?;
    if !features.compat.contains(&WaveCompat::PaddingLeaks) && features.pos_layers > 1 {
        exported.notes.push(
            "in padded batches transformers lets padding reach the last real frames; single \
             recordings are the same"
                .into(),
        );
    }
    let column = |i: usize| features.conv_layers.iter().map(|layer| layer[i]).collect::<Vec<_>>();
    let mut settings = json!({
        "architectures": [architecture],
        "model_type": "data2vec-audio",
        "hidden_size": t.dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "intermediate_size": (t.dim as f64 * t.mlp_ratio).round() as i64,
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "hidden_dropout": t.dropout,
        "attention_dropout": t.attention_dropout,
        "activation_dropout": t.activation_dropout,
        "feat_proj_dropout": 0.0,
        "final_dropout": head.as_ref().map_or(0.0, |head| head.dropout),
        "layerdrop": t.layer_drop,
        "layer_norm_eps": t.norm_eps,
        "conv_dim": column(0),
        "conv_kernel": column(1),
        "conv_stride": column(2),
        "num_feat_extract_layers": features.conv_layers.len(),
        "conv_bias": false,
        "num_conv_pos_embeddings": features.pos_layers,
        "conv_pos_kernel_size": features.pos_kernel,
        "num_conv_pos_embedding_groups": features.pos_groups,
        // Without a mask token there must be none.
        "mask_time_prob": if model.mask_token.is_some() { 0.05 } else { 0.0 },
        "mask_feature_prob": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    });
    if let (Some(head), Some(settings)) = (head, settings.as_object_mut()) {
        if ctc {
            settings.insert("vocab_size".into(), json!(head.labels.len()));
            settings.insert("ctc_zero_infinity".into(), json!(true));
            exported.files.extend(tokenizer(&head.labels)?);
        } else {
            let width = head.dense.as_ref().map_or(t.dim, |dense| dense.dim);
            settings.insert("classifier_proj_size".into(), json!(width));
            settings.extend(convert::label_settings(head));
        }
    }
    exported.files.push(("config.json", settings));
    exported.files.push((
        "preprocessor_config.json",
        json!({
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": audio::SAMPLE_RATE,
            "padding_value": 0.0,
            "padding_side": "right",
            "do_normalize": features.normalize,
            "return_attention_mask": true,
        }),
    ));
    Ok(exported)
}

/// Whether transformers' classifier can be `head`.
fn check_classifier(head: &HeadConfig) -> Result<()> {
    let bad = |key: &str, reason: &str| {
        let reason = format!("{reason} in transformers: export it --to safetensors");
        Err(Error::config(format!("head.{key}"), reason))
    };
    if head.pool != Pool::Mean {
        return bad("pool", "is always \"mean\"");
    }
    if head.norm_eps.is_some() {
        return bad("norm_eps", "there is no norm after pooling");
    }
    match &head.dense {
        Some(dense) if dense.activation != Activation::None => {
            bad("dense.activation", "is always \"none\"")
        }
        _ => Ok(()),
    }
}

/// Files of Wav2Vec2CTCTokenizer.
fn tokenizer(labels: &[String]) -> Result<Vec<(&'static str, Json)>> {
    let mut vocabulary = Map::new();
    for (i, label) in labels.iter().enumerate() {
        if vocabulary.insert(label.clone(), json!(i)).is_some() {
            let reason =
                format!("{label:?} is there twice: transformers' tokenizer cannot have that");
            return Err(Error::config("head.labels", reason));
        }
    }
    let special = |name: &str| labels.iter().any(|label| label == name).then(|| name.to_owned());
    let tokens = json!({
        "pad_token": labels.first(),
        "bos_token": special("<s>"),
        "eos_token": special("</s>"),
        "unk_token": special("<unk>"),
    });
    let mut settings = json!({
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "word_delimiter_token": special(DELIMITER),
        "replace_word_delimiter_char": " ",
        "do_lower_case": false,
    });
    if let (Some(settings), Some(tokens)) = (settings.as_object_mut(), tokens.as_object()) {
        settings.extend(tokens.clone());
    }
    Ok(vec![
        ("vocab.json", Json::Object(vocabulary)),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", tokens),
    ])
}

/// The tensors under fairseq's names, of 1.0 or 2.0; with a CTC head, those of a fine-tuned model. In 2.0 all
/// blocks are main ones: its `prenet_depth` is 0.
///
/// # Errors
/// [`Error::Config`] that names what fairseq cannot be.
pub fn to_fairseq(model: &Model<WaveEncoderConfig>) -> Result<Exported> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if head.as_ref().is_some_and(|head| head.task != HeadTask::Ctc) {
        let reason = "fairseq's data2vec has \"ctc\" alone: export it --to safetensors";
        return Err(Error::config("head.task", reason));
    }
    let prefix = if head.is_some() { "w2v_encoder.w2v_model." } else { "" };
    let table = match features.alibi {
        true => tables::fairseq2(prefix, 0, t.depth, features.pos_layers, t.heads),
        false => tables::fairseq1(prefix),
    };
    let tensors = convert::export(&model.all_vars(), &table)?;
    Ok(Exported { tensors, ..Exported::default() })
}
