//! Conversion from and to Hugging Face's Data2VecAudio and fairseq's data2vec 1.0 and 2.0 for speech.

mod export;
mod labels;
mod tables;

use data2vec_core::io::convert::{
    self, ImportOptions, Imported, Marker, Settings, Source, pretrained_config,
};
use data2vec_core::model::head::{Activation, DenseConfig, HeadConfig, HeadInit, HeadTask, Pool};
use data2vec_core::{Error, Result, TransformerConfig};

use crate::config::{ConvNorm, WaveCompat, WaveEncoderConfig};
use crate::feature::WaveEncoder;

pub use export::{to_fairseq, to_hugging_face};

/// Origin of the tensor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    HuggingFace,
    Fairseq1,
    Fairseq2,
}

const MARKERS: [Marker<Layout>; 3] = [
    Marker {
        layout: Layout::HuggingFace,
        name: "feature_extractor.conv_layers.0.conv.weight",
        prefixes: &["", "data2vec_audio."],
    },
    Marker {
        layout: Layout::Fairseq1,
        name: "feature_extractor.conv_layers.0.0.weight",
        prefixes: &["", "w2v_encoder.w2v_model."],
    },
    Marker {
        layout: Layout::Fairseq2,
        name: "modality_encoders.AUDIO.local_encoder.conv_layers.0.0.weight",
        prefixes: &["", "w2v_encoder.w2v_model."],
    },
];

/// Stride of the first convolution in published models; tensors do not contain it.
const FIRST_STRIDE: i64 = 5;
/// Stride of the other convolutions.
const STRIDE: i64 = 2;

/// Keys of Hugging Face's configuration that do not change what the model computes or follow from the
/// tensors.
const IGNORED_KEYS: &str = "architectures model_type torch_dtype dtype transformers_version _name_or_path bos_token_id \
    eos_token_id pad_token_id tokenizer_class vocab_size hidden_size num_hidden_layers \
    intermediate_size conv_dim conv_kernel num_feat_extract_layers num_conv_pos_embeddings \
    conv_pos_kernel_size num_conv_pos_embedding_groups classifier_proj_size output_hidden_size \
    initializer_range feat_proj_dropout mask_time_prob mask_time_length mask_time_min_masks \
    mask_feature_prob mask_feature_length mask_feature_min_masks apply_spec_augment \
    ctc_loss_reduction ctc_zero_infinity tdnn_dim tdnn_kernel tdnn_dilation xvector_output_dim \
    adapter_kernel_size adapter_stride num_adapter_layers label2id use_cache final_dropout \
    conv_pos_batch_norm is_encoder_decoder return_dict";

/// Imports a checkpoint for speech; returns `None` if it is for another modality.
///
/// # Errors
/// Returns an error if a tensor is missing or has another shape, or a setting is not supported.
pub fn import(
    source: &mut Source,
    options: &ImportOptions,
) -> Result<Option<Imported<WaveEncoderConfig>>> {
    if let Some(own) = convert::import_native::<WaveEncoder>(source, options)? {
        return Ok(Some(own));
    }
    let Some((layout, prefix)) = source.detect_layout(&MARKERS) else { return Ok(None) };
    if options.teacher {
        match layout {
            // The teacher has only a transformer; the rest is the student's.
            Layout::Fairseq1 => {
                source.use_teacher(prefix, |name| format!("{prefix}encoder.{name}"))?
            }
            Layout::Fairseq2 => source.use_teacher(prefix, convert::ema_weight_name(prefix))?,
            Layout::HuggingFace => source.use_teacher(prefix, str::to_owned)?, // has no teacher
        }
    }
    let imported = match layout {
        Layout::HuggingFace => hugging_face(source, prefix, options),
        Layout::Fairseq1 => fairseq1(source, prefix, options),
        Layout::Fairseq2 => fairseq2(source, prefix, options),
    };
    imported.map(Some)
}

/// Infers the convolutions over the waveform from the tensors; `strides` if they are known.
fn conv_layers(
    source: &Source,
    name: impl Fn(usize) -> String,
    strides: Option<Vec<i64>>,
) -> Result<Vec<[i64; 3]>> {
    let count = source.count(&name);
    let stride = |i: usize| match &strides {
        Some(strides) => strides.get(i).copied(),
        None => Some(if i == 0 { FIRST_STRIDE } else { STRIDE }),
    };
    let layer = |i: usize| {
        let [dim, _, kernel] = source.size::<3>(&name(i))?;
        let stride = stride(i).ok_or_else(|| {
            let reason =
                format!("its configuration has fewer strides than its {count} convolutions");
            Error::file(&source.path, reason)
        })?;
        Ok([dim, kernel, stride])
    };
    (0..count).map(layer).collect()
}

fn hugging_face(
    source: &Source,
    prefix: &str,
    options: &ImportOptions,
) -> Result<Imported<WaveEncoderConfig>> {
    let settings = Settings::new(Some(&source.config));
    for (key, wanted) in [("hidden_act", "gelu"), ("feat_extract_activation", "gelu")] {
        if let Some(other) = settings.string(key).filter(|value| *value != wanted) {
            return Err(source.unsupported(key, other));
        }
    }
    for key in ["conv_bias", "add_adapter", "use_weighted_layer_sum"] {
        if settings.flag(key) == Some(true) {
            return Err(source.unsupported(key, "true"));
        }
    }
    let named = |rest: &str| format!("{prefix}{rest}");
    let conv = |i: usize| named(&format!("feature_extractor.conv_layers.{i}.conv.weight"));
    let position = |i: usize| named(&format!("encoder.pos_conv_embed.layers.{i}.conv.weight"));
    let [dim, _] = source.size::<2>(&named("feature_projection.projection.weight"))?;
    let block =
        |i: usize| named(&format!("encoder.layers.{i}.feed_forward.intermediate_dense.weight"));
    let [hidden, _] = source.size::<2>(&block(0))?;
    let preprocessor = source.json("preprocessor_config.json")?;
    let preprocessor = Settings::new(Some(&preprocessor));
    let features = WaveEncoderConfig {
        normalize: preprocessor.flag("do_normalize").unwrap_or(true),
        conv_layers: conv_layers(source, conv, settings.integers("conv_stride"))?,
        compat: vec![WaveCompat::PaddingLeaks],
        ..positions(source, dim, position)?
    };
    let heads = source.heads(options.heads.or(settings.integer("num_attention_heads")), dim)?;
    let eps = settings.number("layer_norm_eps").unwrap_or(1e-5);
    let transformer = TransformerConfig {
        input_dropout: settings.probability("hidden_dropout"),
        dropout: settings.probability("hidden_dropout"),
        attention_dropout: settings.probability("attention_dropout"),
        activation_dropout: settings.probability("activation_dropout"),
        layer_drop: settings.probability("layerdrop"),
        norm_eps: eps,
        input_norm: true,
        ..TransformerConfig::without_dropout(dim, source.count(block), heads, hidden)
    };
    let (head, suffix) = hugging_face_head(source, &settings, options)?;
    let is_ctc = head.as_ref().is_some_and(|head| head.task == HeadTask::Ctc);
    let table = tables::hugging_face(prefix, is_ctc);
    let mut imported = convert::import::<WaveEncoder>(source, &table, features, transformer, head)?;
    if is_ctc {
        labels::blank_first(source, &mut imported.model);
    }
    imported.description = format!("Hugging Face's Data2VecAudio{suffix}");
    if eps != data2vec_core::model::nn::CONV_NORM_EPS {
        let line = format!("the norm before the projection has epsilon 1e-5 here, {eps} there");
        imported.report.notes.push(line);
    }
    imported.report.notes.extend(settings.unused(IGNORED_KEYS));
    Ok(imported)
}

/// Returns the head, if there is one, and the suffix of the model's class name.
fn hugging_face_head(
    source: &Source,
    settings: &Settings<'_>,
    options: &ImportOptions,
) -> Result<(Option<HeadConfig>, &'static str)> {
    if source.tensors.contains_key("lm_head.weight") {
        let head = ctc(source, "lm_head.weight", options)?;
        return Ok((Some(head), "ForCTC"));
    }
    if !source.tensors.contains_key("projector.weight") {
        return Ok((None, "Model"));
    }
    let [dim, _] = source.size::<2>("projector.weight")?;
    let [outputs, _] = source.size::<2>("classifier.weight")?;
    let (task, labels) = convert::class_labels(source, settings, options, outputs)?;
    let head = HeadConfig {
        task,
        pool: Pool::Mean,
        norm_eps: None,
        dropout: 0.0,
        init: HeadInit::Torch,
        labels,
        dense: Some(DenseConfig { dim, activation: Activation::None }),
    };
    Ok((Some(head), "ForSequenceClassification"))
}

fn ctc(source: &Source, weight: &str, options: &ImportOptions) -> Result<HeadConfig> {
    let [outputs, _] = source.size::<2>(weight)?;
    Ok(HeadConfig {
        task: HeadTask::Ctc,
        pool: Pool::None,
        norm_eps: None,
        dropout: 0.0,
        init: HeadInit::Xavier,
        labels: labels::find(source, options, outputs)?,
        dense: None,
    })
}

/// Infers the positional convolutions from the tensors; other settings are those of 1.0.
fn positions(
    source: &Source,
    dim: i64,
    name: impl Fn(usize) -> String,
) -> Result<WaveEncoderConfig> {
    let count = source.count(&name);
    let [_, group, kernel] = if count > 0 { source.size::<3>(&name(0))? } else { [dim, dim, 1] };
    Ok(WaveEncoderConfig {
        normalize: true,
        conv_layers: Vec::new(),
        conv_norm: ConvNorm::Layer,
        pos_layers: count,
        pos_kernel: kernel,
        pos_groups: dim / group.max(1),
        alibi: false,
        compat: Vec::new(),
    })
}

fn fairseq1(
    source: &Source,
    prefix: &str,
    options: &ImportOptions,
) -> Result<Imported<WaveEncoderConfig>> {
    let settings = Settings::new(Some(pretrained_config(&source.config)));
    let named = |rest: &str| format!("{prefix}{rest}");
    let conv = |i: usize| named(&format!("feature_extractor.conv_layers.{i}.0.weight"));
    let position = |i: usize| named(&format!("encoder.pos_conv.{i}.0.weight"));
    let block = |i: usize| named(&format!("encoder.layers.{i}.fc1.weight"));
    let [dim, _] = source.size::<2>(&named("post_extract_proj.weight"))?;
    let [hidden, _] = source.size::<2>(&block(0))?;
    let strides = settings.string("conv_feature_layers").and_then(tables::strides);
    let features = WaveEncoderConfig {
        normalize: normalize(source),
        conv_layers: conv_layers(source, conv, strides)?,
        compat: vec![WaveCompat::PaddingLeaks],
        ..positions(source, dim, position)?
    };
    let heads = options.heads.or(settings.integer("encoder_attention_heads"));
    let heads = source.heads(heads, dim)?;
    let transformer = TransformerConfig {
        input_dropout: settings.probability("dropout"),
        dropout: settings.probability("dropout"),
        attention_dropout: settings.probability("attention_dropout"),
        activation_dropout: settings.probability("activation_dropout"),
        layer_drop: settings.probability("encoder_layerdrop"),
        input_norm: true,
        ..TransformerConfig::without_dropout(dim, source.count(block), heads, hidden)
    };
    let (head, with) = fairseq_head(source, options)?;
    let table = tables::fairseq1(prefix);
    let mut imported = convert::import::<WaveEncoder>(source, &table, features, transformer, head)?;
    imported.description = format!("fairseq's data2vec 1.0 for speech{with}");
    Ok(imported)
}

fn fairseq2(
    source: &Source,
    prefix: &str,
    options: &ImportOptions,
) -> Result<Imported<WaveEncoderConfig>> {
    let settings = Settings::new(Some(pretrained_config(&source.config)));
    let modalities = Settings::new(settings.get("modalities"));
    let own = Settings::new(modalities.get("audio"));
    let within = |rest: &str| format!("{prefix}modality_encoders.AUDIO.{rest}");
    let conv = |i: usize| within(&format!("local_encoder.conv_layers.{i}.0.weight"));
    let position = |i: usize| within(&format!("relative_positional_encoder.{}.0.weight", i + 1));
    let prenet = source.count(|i| within(&format!("context_encoder.blocks.{i}.mlp.fc1.weight")));
    let block = |i: usize| format!("{prefix}blocks.{i}.mlp.fc1.weight");
    let [dim, _] = source.size::<2>(&within("project_features.2.weight"))?;
    let [hidden, _] = source.size::<2>(&block(0))?;
    let scale = source.tensors.get(&within("alibi_scale")).map(|scale| scale.numel() as i64);
    let strides = own.string("feature_encoder_spec").and_then(tables::strides);
    let features = WaveEncoderConfig {
        normalize: normalize(source),
        conv_layers: conv_layers(source, conv, strides)?,
        alibi: scale.is_some(),
        ..positions(source, dim, position)?
    };
    // ALiBi has a learned scale per head.
    let heads = options.heads.or(settings.integer("num_heads")).or(scale.filter(|&n| n > 1));
    let heads = source.heads(heads, dim)?;
    let eps = settings.number("norm_eps").unwrap_or(1e-5);
    let depth = prenet + source.count(block);
    let transformer = TransformerConfig {
        input_dropout: own.probability("prenet_dropout"),
        dropout: settings.probability("encoder_dropout"),
        attention_dropout: settings.probability("attention_dropout"),
        activation_dropout: settings.probability("activation_dropout"),
        layer_drop: settings.probability("layerdrop"),
        norm_eps: eps,
        input_norm: true,
        ..TransformerConfig::without_dropout(dim, depth, heads, hidden)
    };
    let (head, with) = fairseq_head(source, options)?;
    let table = tables::fairseq2(prefix, prenet, depth, features.pos_layers, heads);
    let mut imported = convert::import::<WaveEncoder>(source, &table, features, transformer, head)?;
    imported.description = format!("fairseq's data2vec 2.0 for speech{with}");
    Ok(imported)
}

fn fairseq_head(
    source: &Source,
    options: &ImportOptions,
) -> Result<(Option<HeadConfig>, &'static str)> {
    const WEIGHT: &str = "w2v_encoder.proj.weight";
    match source.tensors.contains_key(WEIGHT) {
        true => Ok((Some(ctc(source, WEIGHT, options)?), ", fine-tuned with CTC")),
        false => Ok((None, "")),
    }
}

/// Returns true if the fairseq task normalized recordings, as all of data2vec did.
fn normalize(source: &Source) -> bool {
    let task = source.config.get("task").and_then(|task| task.get("normalize"));
    task.or(source.config.get("normalize")).and_then(|value| value.as_bool()).unwrap_or(true)
}
