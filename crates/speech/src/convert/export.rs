//! Export to Hugging Face and fairseq.

use data2vec_core::io::convert::{self, ExportedModel, Model};
use data2vec_core::model::head::{Activation, HeadConfig, HeadTask, Pool};
use data2vec_core::{Error, NormPlacement, Result};
use serde_json::{Map, Value as Json, json};
use tch::{Device, Kind, Tensor};

use super::tables;
use crate::audio;
use crate::config::{ConvNorm, WaveCompat, WaveEncoderConfig};

/// Label between words.
const DELIMITER: &str = "|";

/// Exports a model to a directory for `from_pretrained` of Hugging Face's Data2VecAudio: the encoder
/// alone, ForCTC, or ForSequenceClassification.
///
/// # Errors
/// Returns [`Error::Config`], which names the setting, if transformers does not support one.
pub fn to_hugging_face(model: &Model<WaveEncoderConfig>) -> Result<ExportedModel> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if features.alibi || !t.input_norm || t.norm != NormPlacement::Post {
        let reason = "transformers supports only data2vec 1.0, but this encoder is 2.0; export it \
                      --to fairseq or --to safetensors";
        return Err(Error::config("features.alibi", reason));
    }
    if features.conv_norm != ConvNorm::Layer {
        let reason = "transformers' Data2VecAudio supports only \"layer\", not \"group\"";
        return Err(Error::config("features.conv_norm", reason));
    }
    let ctc = head.as_ref().is_some_and(|head| head.task == HeadTask::Ctc);
    let prefix = if head.is_some() { "data2vec_audio." } else { "" };
    let mut vars = model.all_vars();
    let mut exported = ExportedModel::default();
    let architecture = match head {
        None => "Data2VecAudioModel",
        Some(_) if ctc => "Data2VecAudioForCTC",
        Some(head) => {
            check_classifier(head)?;
            if head.dense.is_none() {
                // transformers has a linear layer before the last one; the identity keeps the output.
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
            "in padded batches, transformers lets padding leak into the last real frames; single \
             recordings are not affected"
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
        // Must be 0 for models without a mask token.
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
            settings.extend(convert::label_config(head));
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

/// Checks that transformers' classifier supports `head`.
fn check_classifier(head: &HeadConfig) -> Result<()> {
    let bad = |key: &str, reason: &str| {
        let reason = format!("{reason} in transformers; export it --to safetensors");
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

/// Returns the files of a Wav2Vec2CTCTokenizer.
fn tokenizer(labels: &[String]) -> Result<Vec<(&'static str, Json)>> {
    let mut vocabulary = Map::new();
    for (i, label) in labels.iter().enumerate() {
        if vocabulary.insert(label.clone(), json!(i)).is_some() {
            let reason =
                format!("{label:?} occurs twice, which transformers' tokenizer does not support");
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

/// Exports a model with fairseq's tensor names, of 1.0 or 2.0; with a CTC head, of a fine-tuned
/// model. In 2.0 all blocks are main blocks: `prenet_depth` is 0.
///
/// # Errors
/// Returns [`Error::Config`], which names the setting, if fairseq does not support one.
pub fn to_fairseq(model: &Model<WaveEncoderConfig>) -> Result<ExportedModel> {
    let Model { config, head, .. } = model;
    let (features, t) = (&config.features, &config.transformer);
    if head.as_ref().is_some_and(|head| head.task != HeadTask::Ctc) {
        let reason = "fairseq's data2vec supports only \"ctc\"; export it --to safetensors";
        return Err(Error::config("head.task", reason));
    }
    let prefix = if head.is_some() { "w2v_encoder.w2v_model." } else { "" };
    let table = match features.alibi {
        true => tables::fairseq2(prefix, 0, t.depth, features.pos_layers, t.heads),
        false => tables::fairseq1(prefix),
    };
    let tensors = convert::export(&model.all_vars(), &table)?;
    Ok(ExportedModel { tensors, ..ExportedModel::default() })
}
