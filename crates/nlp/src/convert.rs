//! Import of text checkpoints: Hugging Face's Data2VecText, fairseq (data2vec 1.0 and 2.0).

mod export;
mod tables;
mod tokenizer;

use data2vec_core::io::convert::{
    self, ImportOptions, Imported, Marker, Settings, Source, pretrained_config,
};
use data2vec_core::model::head::{Activation, DenseConfig, HeadConfig, HeadInit, Pool};
use data2vec_core::{Error, Result, TransformerConfig};

use crate::config::TokenEncoderConfig;
use crate::feature::TokenEncoder;
use crate::tokenizer::Tokenizer;

pub use export::{to_fairseq, to_hugging_face};
use tables::UNUSED_POSITIONS;
pub use tokenizer::save_tokenizer;

/// Naming scheme of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    HuggingFace,
    Fairseq1,
    Fairseq2,
}

const MARKERS: [Marker<Layout>; 3] = [
    Marker {
        layout: Layout::HuggingFace,
        name: "embeddings.word_embeddings.weight",
        prefixes: &["", "data2vec_text."],
    },
    Marker {
        layout: Layout::Fairseq1,
        name: "sentence_encoder.embed_tokens.weight",
        prefixes: &["encoder."],
    },
    Marker {
        layout: Layout::Fairseq2,
        name: "modality_encoders.TEXT.local_encoder.embed_tokens.weight",
        prefixes: &["", "model."],
    },
];

/// Keys of Hugging Face's config that do not affect the computation, or that the tensors determine.
const IGNORED: &str = "architectures model_type torch_dtype dtype transformers_version _name_or_path vocab_size \
    hidden_size num_hidden_layers intermediate_size max_position_embeddings type_vocab_size \
    initializer_range bos_token_id eos_token_id use_cache gradient_checkpointing label2id return_dict \
    tie_word_embeddings classifier_dropout";

/// Imports a checkpoint; returns `None` if it is not a text model. `tokenizer` is that of the
/// checkpoint, if it has one.
///
/// # Errors
/// Returns an error if a tensor is missing or has another shape, a setting is not supported, or the
/// tokenizer does not fit the checkpoint.
pub fn import(
    source: &mut Source,
    options: &ImportOptions,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<Imported<TokenEncoderConfig>>> {
    if let Some(own) = convert::import_native::<TokenEncoder>(source, options)? {
        if let Some(tokenizer) = tokenizer {
            tokenizer.check(&own.model.config.features)?;
        }
        return Ok(Some(own));
    }
    rename_old_tensors(source);
    let Some((layout, prefix)) = source.detect_layout(&MARKERS) else { return Ok(None) };
    if options.teacher {
        match layout {
            Layout::Fairseq1 => {
                source.use_teacher(prefix, |name| format!("{prefix}sentence_encoder.{name}"))?
            }
            Layout::Fairseq2 => source.use_teacher(prefix, convert::ema_weight_name(prefix))?,
            // Fails: these checkpoints have no teacher.
            Layout::HuggingFace => source.use_teacher(prefix, str::to_owned)?,
        }
    }
    let mut imported = match layout {
        Layout::HuggingFace => hugging_face(source, prefix, options),
        Layout::Fairseq1 => fairseq1(source, prefix, options),
        Layout::Fairseq2 => fairseq2(source, prefix, options),
    }?;
    if let Some(tokenizer) = tokenizer {
        let features = &mut imported.model.config.features;
        let special = tokenizer.special();
        (features.pad, features.mask) = (special.pad, special.mask);
        tokenizer.check(features)?;
    }
    Ok(Some(imported))
}

/// Renames the tensors of fairseq's older checkpoints to their current names.
fn rename_old_tensors(source: &mut Source) {
    let old = |name: &String| name.starts_with("decoder.sentence_encoder.");
    let is_old = source.tensors.keys().any(old);
    let is_fairseq = is_old || source.tensors.keys().any(|name| name.contains("sentence_encoder."));
    if is_fairseq {
        let tensors = std::mem::take(&mut source.tensors).into_iter();
        source.tensors = tensors
            .map(|(name, tensor)| {
                let name = match name.strip_prefix("decoder.").filter(|_| is_old) {
                    Some(rest) => format!("encoder.{rest}"),
                    None => name,
                };
                (name.replace(".emb_layer_norm.", ".layernorm_embedding."), tensor)
            })
            .collect();
    }
}

/// Derives the feature settings from the word and position embeddings. `<mask>` is the last entry,
/// as in all vocabularies of fairseq and RoBERTa.
fn features(
    source: &Source,
    [words, positions]: [&str; 2],
    norm_eps: f64,
    dropout: f64,
) -> Result<TokenEncoderConfig> {
    let [vocabulary, _] = source.size::<2>(words)?;
    let [rows, _] = source.size::<2>(positions)?;
    Ok(TokenEncoderConfig {
        vocabulary,
        max_tokens: rows - UNUSED_POSITIONS,
        pad: 1,
        mask: vocabulary - 1,
        dropout,
        norm_eps,
        early_positions: false,
    })
}

fn hugging_face(
    source: &mut Source,
    prefix: &str,
    options: &ImportOptions,
) -> Result<Imported<TokenEncoderConfig>> {
    let named = |rest: &str| format!("{prefix}{rest}");
    let words = named("embeddings.word_embeddings.weight");
    let positions = named("embeddings.position_embeddings.weight");
    let note =
        add_token_type(source, &named("embeddings.token_type_embeddings.weight"), &positions)?;
    let source = &*source;
    let settings = Settings::new(Some(&source.config));
    for (key, wanted) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
        if let Some(other) = settings.string(key).filter(|value| *value != wanted) {
            return Err(source.unsupported(key, other));
        }
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if settings.flag(key) == Some(true) {
            return Err(source.unsupported(key, "true"));
        }
    }
    if let Some(pad) = settings.integer("pad_token_id").filter(|&pad| pad != 1) {
        return Err(source.unsupported("pad_token_id", &pad.to_string()));
    }
    let block = |i: usize| named(&format!("encoder.layer.{i}.intermediate.dense.weight"));
    let [_, dim] = source.size::<2>(&words)?;
    let [hidden, _] = source.size::<2>(&block(0))?;
    // 1e-5 is that of the published models, 1e-12 the default of transformers.
    let default = if settings.is_empty() { 1e-5 } else { 1e-12 };
    let eps = settings.number("layer_norm_eps").unwrap_or(default);
    let dropout = settings.probability("hidden_dropout_prob");
    let features = features(source, [&words, &positions], eps, dropout)?;
    let heads = source.heads(options.heads.or(settings.integer("num_attention_heads")), dim)?;
    let transformer = TransformerConfig {
        dropout,
        attention_dropout: settings.probability("attention_probs_dropout_prob"),
        norm_eps: eps,
        ..TransformerConfig::without_dropout(dim, source.count(block), heads, hidden)
    };
    let head = head(source, &settings, options, "classifier.")?;
    let class = if head.is_some() { "ForSequenceClassification" } else { "Model" };
    let table = tables::hugging_face(prefix);
    let mut imported =
        convert::import::<TokenEncoder>(source, &table, features, transformer, head)?;
    imported.description = format!("Hugging Face's Data2VecText{class}");
    imported.report.notes.extend(note);
    imported.report.notes.extend(settings.unused(IGNORED));
    Ok(imported)
}

/// Adds the embedding of the first token type, which all tokens have, to the position embeddings.
fn add_token_type(source: &mut Source, types: &str, positions: &str) -> Result<Option<String>> {
    let Some(table) = source.tensors.remove(types) else { return Ok(None) };
    let [_, dim] = source.size::<2>(positions)?;
    if table.dim() != 2 || table.size()[1] != dim || table.size()[0] < 1 {
        let reason = format!("tensor `{types}` has shape {:?}, not [types, {dim}]", table.size());
        return Err(Error::file(&source.path, reason));
    }
    if table.count_nonzero(None::<i64>).int64_value(&[]) > 0
        && let Some(tensor) = source.tensors.get_mut(positions)
    {
        *tensor = &*tensor + table.get(0);
    }
    Ok((table.size()[0] > 1).then(|| {
        format!("only the first of {} token types is imported; all tokens have it", table.size()[0])
    }))
}

/// Returns the settings of the head whose tensor names start with `prefix`, if there is one.
fn head(
    source: &Source,
    settings: &Settings<'_>,
    options: &ImportOptions,
    prefix: &str,
) -> Result<Option<HeadConfig>> {
    let weight = format!("{prefix}dense.weight");
    if !source.tensors.contains_key(&weight) {
        return Ok(None);
    }
    let [dim, _] = source.size::<2>(&weight)?;
    let [outputs, _] = source.size::<2>(&format!("{prefix}out_proj.weight"))?;
    let (task, labels) = convert::class_labels(source, settings, options, outputs)?;
    let dropout =
        ["classifier_dropout", "hidden_dropout_prob"].iter().find_map(|key| settings.number(key));
    Ok(Some(HeadConfig {
        task,
        pool: Pool::First,
        norm_eps: None,
        dropout: dropout.filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0),
        init: HeadInit::Torch,
        labels,
        dense: Some(DenseConfig { dim, activation: Activation::Tanh }),
    }))
}

/// Returns the prefix of fairseq's classification head, which may have any name.
fn fairseq_head(source: &Source, prefix: &str) -> String {
    let start = format!("{prefix}classification_heads.");
    let name = source.tensors.keys().find_map(|name| {
        name.strip_prefix(&start)?
            .strip_suffix(".dense.weight")
            .map(|name| format!("{start}{name}."))
    });
    name.unwrap_or(start)
}

fn fairseq1(
    source: &Source,
    prefix: &str,
    options: &ImportOptions,
) -> Result<Imported<TokenEncoderConfig>> {
    let model = pretrained_config(&source.config);
    // RoBERTa's settings are flat; data2vec's keep the transformer's in a section.
    let settings = Settings::new(Some(model));
    let inner = Settings::new(model.get("transformer").and_then(|t| t.get("encoder")));
    let named = |rest: &str| format!("{prefix}sentence_encoder.{rest}");
    let (words, positions) = (named("embed_tokens.weight"), named("embed_positions.weight"));
    let block = |i: usize| named(&format!("layers.{i}.fc1.weight"));
    let [_, dim] = source.size::<2>(&words)?;
    let [hidden, _] = source.size::<2>(&block(0))?;
    let transformer_settings = Settings::new(model.get("transformer"));
    let dropout = transformer_settings.number("dropout").or(settings.number("dropout"));
    let dropout = dropout.filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0);
    let features = features(source, [&words, &positions], 1e-5, dropout)?;
    let heads = inner.integer("attention_heads").or(settings.integer("encoder_attention_heads"));
    let transformer = TransformerConfig {
        dropout,
        attention_dropout: settings
            .probability("attention_dropout")
            .max(transformer_settings.probability("attention_dropout")),
        ..TransformerConfig::without_dropout(
            dim,
            source.count(block),
            source.heads(options.heads.or(heads), dim)?,
            hidden,
        )
    };
    let head_prefix = fairseq_head(source, "");
    let head = head(source, &settings, options, &head_prefix)?;
    let suffix = if head.is_some() { ", fine-tuned" } else { "" };
    let table = tables::fairseq1(prefix, &head_prefix);
    let mut imported =
        convert::import::<TokenEncoder>(source, &table, features, transformer, head)?;
    imported.description = format!("fairseq's data2vec 1.0 for text{suffix}");
    Ok(imported)
}

fn fairseq2(
    source: &Source,
    prefix: &str,
    options: &ImportOptions,
) -> Result<Imported<TokenEncoderConfig>> {
    let settings = Settings::new(Some(pretrained_config(&source.config)));
    let modalities = Settings::new(settings.get("modalities"));
    let own = Settings::new(modalities.get("text"));
    let within = |rest: &str| format!("{prefix}modality_encoders.TEXT.{rest}");
    let words = within("local_encoder.embed_tokens.weight");
    let positions = within("local_encoder.embed_positions.weight");
    let block = |i: usize| format!("{prefix}blocks.{i}.mlp.fc1.weight");
    let prenet = source.count(|i| within(&format!("context_encoder.blocks.{i}.mlp.fc1.weight")));
    let [_, dim] = source.size::<2>(&words)?;
    let [hidden, _] = source.size::<2>(&block(0))?;
    let mut features = features(source, [&words, &positions], 1e-5, own.probability("dropout"))?;
    features.early_positions = true;
    let heads = source.heads(options.heads.or(settings.integer("num_heads")), dim)?;
    let depth = prenet + source.count(block);
    let eps = settings.number("norm_eps").unwrap_or(1e-5);
    let transformer = TransformerConfig {
        input_norm: source.tensors.contains_key(&within("context_encoder.norm.weight")),
        dropout: settings.probability("encoder_dropout"),
        attention_dropout: settings.probability("attention_dropout"),
        activation_dropout: settings.probability("activation_dropout"),
        layer_drop: settings.probability("layerdrop"),
        norm_eps: eps,
        ..TransformerConfig::without_dropout(dim, depth, heads, hidden)
    };
    let head_prefix = fairseq_head(source, prefix);
    let head = head(source, &settings, options, &head_prefix)?;
    let suffix = if head.is_some() { ", fine-tuned" } else { "" };
    let table = tables::fairseq2(prefix, &head_prefix, prenet, depth);
    let mut imported =
        convert::import::<TokenEncoder>(source, &table, features, transformer, head)?;
    imported.description = format!("fairseq's data2vec 2.0 for text{suffix}");
    Ok(imported)
}
