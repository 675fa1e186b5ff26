//! Import of image checkpoints: Hugging Face's Data2VecVision, BEiT's fork (data2vec 1.0), fairseq
//! (data2vec 2.0).

mod export;
mod tables;

use data2vec_core::io::convert::{
    self, ImportOptions, Imported, Marker, Settings, Source, pretrained_config,
};
use data2vec_core::model::head::{HeadConfig, HeadInit, Pool};
use data2vec_core::{Error, NormPlacement, Result, TransformerConfig, WeightInit};

use crate::config::PatchEncoderConfig;
use crate::feature::PatchEncoder;
use crate::positions::Positions;

pub use export::{to_fairseq, to_hugging_face};

/// Naming scheme of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    HuggingFace,
    Beit,
    Fairseq2,
}

const MARKERS: [Marker<Layout>; 3] = [
    Marker {
        layout: Layout::HuggingFace,
        name: "embeddings.patch_embeddings.projection.weight",
        prefixes: &["", "data2vec_vision."],
    },
    Marker { layout: Layout::Beit, name: "patch_embed.proj.weight", prefixes: &[""] },
    Marker {
        layout: Layout::Fairseq2,
        name: "modality_encoders.IMAGE.local_encoder.proj.weight",
        prefixes: &["", "model."],
    },
];

/// Mean and standard deviation of ImageNet: pretraining, and all of data2vec 2.0.
const IMAGENET: [[f64; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
/// Mean and standard deviation of fine-tuned models of data2vec 1.0.
const HALF: [[f64; 3]; 2] = [[0.5; 3], [0.5; 3]];

/// Epsilon of the references' norms.
const EPS: f64 = 1e-6;

/// Image side of all published models.
const SIDE: i64 = 224;
/// Largest image side accepted from a config.
const MAX_SIDE: i64 = 4096;

/// Keys of Hugging Face's config that do not affect the computation, or that the tensors determine.
const IGNORED: &str = "architectures model_type torch_dtype dtype transformers_version _name_or_path hidden_size \
    num_hidden_layers intermediate_size hidden_dropout_prob initializer_range patch_size num_channels \
    use_mask_token use_relative_position_bias use_shared_relative_position_bias out_indices out_features \
    stage_names pool_scales use_auxiliary_head auxiliary_loss_weight auxiliary_channels auxiliary_num_convs \
    auxiliary_concat_input semantic_loss_ignore_index label2id return_dict vocab_size reshape_hidden_states \
    add_fpn";

/// Imports a checkpoint; returns `None` if it is not an image model.
///
/// # Errors
/// Returns an error if a tensor is missing or has another shape, or a setting is not supported.
pub fn import(
    source: &mut Source,
    options: &ImportOptions,
) -> Result<Option<Imported<PatchEncoderConfig>>> {
    if let Some(own) = convert::import_native::<PatchEncoder>(source, options)? {
        return Ok(Some(own));
    }
    let Some((layout, prefix)) = source.detect_layout(&MARKERS) else { return Ok(None) };
    if options.teacher {
        match layout {
            Layout::Beit | Layout::Fairseq2 => {
                source.use_teacher(prefix, convert::ema_weight_name(prefix))?;
            }
            // Fails: these checkpoints have no teacher.
            Layout::HuggingFace => source.use_teacher(prefix, str::to_owned)?,
        }
    }
    let imported = match layout {
        Layout::HuggingFace => hugging_face(source, prefix, options),
        Layout::Beit => beit(source, options),
        Layout::Fairseq2 => fairseq2(source, prefix, options),
    };
    imported.map(Some)
}

/// Derives the feature settings from the tensors.
///
/// `patches` names the patch embedding; `tables` name the relative position bias shared by all
/// blocks and that of the first block.
fn features(
    source: &Source,
    patches: &str,
    tables: [&str; 2],
    image: Option<[i64; 2]>,
    [mean, std]: [[f64; 3]; 2],
) -> Result<PatchEncoderConfig> {
    let [_, channels, patch, _] = source.size::<4>(patches)?;
    let present = tables.map(|name| source.tensors.contains_key(name));
    let positions = match present {
        [true, false] => Positions::Relative,
        [false, true] => Positions::RelativeBlocks,
        [true, true] => {
            let reason = "has both a shared relative position bias and one per block; only one of \
                          them is supported";
            return Err(Error::file(&source.path, reason));
        }
        [false, false] => Positions::SinCos,
    };
    let image = image.filter(|size| size.iter().all(|side| (1..=MAX_SIDE).contains(side)));
    let image_size = match positions {
        Positions::SinCos => image.unwrap_or([SIDE; 2]),
        Positions::Relative | Positions::RelativeBlocks => {
            // (2h − 1) · (2w − 1) rows, and three for CLS
            let table = tables[usize::from(present[1])];
            let [rows, _] = source.size::<2>(table)?;
            let side = (((rows - 3).max(0) as f64).sqrt().round() as i64 + 1) / 2 * patch;
            let size = image.unwrap_or([side; 2]);
            let [h, w] = size.map(|side| 2 * (side / patch.max(1)) - 1);
            if h * w + 3 != rows {
                let reason =
                    format!("`{table}` has {rows} rows, which does not match {size:?} pixels");
                return Err(Error::file(&source.path, reason));
            }
            size
        }
    };
    let per_channel = |values: [f64; 3]| match channels {
        3 => values.to_vec(),
        n => vec![values.iter().sum::<f64>() / 3.0; n as usize],
    };
    Ok(PatchEncoderConfig {
        image_size,
        channels,
        mean: per_channel(mean),
        std: per_channel(std),
        patch_size: patch,
        positions,
    })
}

fn hugging_face(
    source: &Source,
    prefix: &str,
    options: &ImportOptions,
) -> Result<Imported<PatchEncoderConfig>> {
    let settings = Settings::new(Some(&source.config));
    if let Some(other) = settings.string("hidden_act").filter(|value| *value != "gelu") {
        return Err(source.unsupported("hidden_act", other));
    }
    if settings.flag("use_absolute_position_embeddings") == Some(true) {
        return Err(source.unsupported("use_absolute_position_embeddings", "true"));
    }
    let named = |rest: &str| format!("{prefix}{rest}");
    let block = |i: usize| named(&format!("encoder.layer.{i}.intermediate.dense.weight"));
    let tables = [
        named("encoder.relative_position_bias.relative_position_bias_table"),
        named(&format!("encoder.layer.0.{}", tables::HF_BIAS)),
    ];
    let image = settings.get("image_size").and_then(|size| match size.as_i64() {
        Some(side) => Some([side; 2]),
        None => settings.integers("image_size")?.try_into().ok(),
    });
    let patches = named("embeddings.patch_embeddings.projection.weight");
    let mut features = features(source, &patches, [&tables[0], &tables[1]], image, HALF)?;
    if features.positions == Positions::SinCos {
        let reason = "has no relative position bias, which data2vec 1.0 needs";
        return Err(Error::file(&source.path, reason));
    }
    let preprocessor = source.json("preprocessor_config.json")?;
    for (key, values) in [("image_mean", &mut features.mean), ("image_std", &mut features.std)] {
        let own = preprocessor.get(key).and_then(|own| own.as_array());
        let own: Option<Vec<f64>> = own.and_then(|own| own.iter().map(|v| v.as_f64()).collect());
        if let Some(own) = own.filter(|own| own.len() == values.len()) {
            *values = own;
        }
    }
    let [dim, ..] = source.size::<4>(&patches)?;
    let [hidden, _] = source.size::<2>(&block(0))?;
    let bias = tables.iter().find(|name| source.tensors.contains_key(*name));
    let of_bias = bias.map(|name| source.size::<2>(name)).transpose()?.map(|[_, heads]| heads);
    let heads = options.heads.or(of_bias).or(settings.integer("num_attention_heads"));
    let scaled = source.tensors.contains_key(&named("encoder.layer.0.lambda_1"));
    let eps = settings.number("layer_norm_eps").unwrap_or(1e-12);
    let transformer = TransformerConfig {
        attention_dropout: settings.probability("attention_probs_dropout_prob"),
        drop_path: settings.probability("drop_path_rate"),
        layer_scale: scaled.then(|| settings.number("layer_scale_init_value").unwrap_or(0.1)),
        norm: NormPlacement::Pre,
        norm_eps: eps,
        init: WeightInit::Beit,
        ..TransformerConfig::without_dropout(
            dim,
            source.count(block),
            source.heads(heads, dim)?,
            hidden,
        )
    };
    // Without mean pooling, the classifier uses the CLS token after a norm of its own.
    let mean = settings.flag("use_mean_pooling").unwrap_or(true);
    let head = head(source, &settings, options, "classifier.weight", mean, eps)?;
    let what = if head.is_some() { "ForImageClassification" } else { "Model" };
    let table = tables::hugging_face(prefix, &features, dim, mean);
    let mut imported =
        convert::import::<PatchEncoder>(source, &table, features, transformer, head)?;
    imported.description = format!("Hugging Face's Data2VecVision{what}");
    imported.report.notes.extend(settings.unused(IGNORED));
    Ok(imported)
}

/// Returns the settings of the head whose weight is the tensor `weight`, if it exists.
fn head(
    source: &Source,
    settings: &Settings<'_>,
    options: &ImportOptions,
    weight: &str,
    mean: bool,
    norm_eps: f64,
) -> Result<Option<HeadConfig>> {
    if !source.tensors.contains_key(weight) {
        return Ok(None);
    }
    let [outputs, _] = source.size::<2>(weight)?;
    let (task, labels) = convert::class_labels(source, settings, options, outputs)?;
    Ok(Some(HeadConfig {
        task,
        pool: if mean { Pool::Mean } else { Pool::Prefix },
        norm_eps: Some(norm_eps),
        dropout: 0.0,
        init: HeadInit::Normal,
        labels,
        dense: None,
    }))
}

fn beit(source: &Source, options: &ImportOptions) -> Result<Imported<PatchEncoderConfig>> {
    let settings = Settings::new(Some(&source.config));
    let block = |i: usize| format!("blocks.{i}.mlp.fc1.weight");
    let tables = [tables::BEIT_BIAS.to_owned(), format!("blocks.0.attn.{}", tables::TABLE)];
    let finetuned = source.tensors.contains_key("head.weight");
    let imagenet = settings.flag("imagenet_default_mean_and_std").unwrap_or(!finetuned);
    let mean_std = if imagenet { IMAGENET } else { HALF };
    let image = settings.integer("input_size").map(|side| [side; 2]);
    let patches = "patch_embed.proj.weight";
    let features = features(source, patches, [&tables[0], &tables[1]], image, mean_std)?;
    if features.positions == Positions::SinCos {
        let reason = "has no relative position bias; it is not a data2vec model";
        return Err(Error::file(&source.path, reason));
    }
    let [dim, ..] = source.size::<4>(patches)?;
    let [hidden, _] = source.size::<2>(&block(0))?;
    let bias = tables.iter().find(|name| source.tensors.contains_key(*name));
    let of_bias = bias.map(|name| source.size::<2>(name)).transpose()?.map(|[_, heads]| heads);
    let heads = source.heads(options.heads.or(of_bias), dim)?;
    let scaled = source.tensors.contains_key("blocks.0.gamma_1");
    let transformer = TransformerConfig {
        drop_path: settings.probability("drop_path"),
        layer_scale: scaled.then(|| settings.number("layer_scale_init_value").unwrap_or(0.1)),
        norm: NormPlacement::Pre,
        norm_eps: EPS,
        init: WeightInit::Beit,
        ..TransformerConfig::without_dropout(dim, source.count(block), heads, hidden)
    };
    let mean = source.tensors.contains_key("fc_norm.weight");
    let head = head(source, &settings, options, "head.weight", mean, EPS)?;
    let what = if head.is_some() { ", fine-tuned" } else { "" };
    let table = tables::beit(&features, dim, mean);
    let mut imported =
        convert::import::<PatchEncoder>(source, &table, features, transformer, head)?;
    imported.description = format!("data2vec 1.0 for images (BEiT's fork){what}");
    Ok(imported)
}

fn fairseq2(
    source: &Source,
    prefix: &str,
    options: &ImportOptions,
) -> Result<Imported<PatchEncoderConfig>> {
    let settings = Settings::new(Some(pretrained_config(&source.config)));
    let modalities = Settings::new(settings.get("modalities"));
    let own = Settings::new(modalities.get("image"));
    let within = |rest: &str| format!("{prefix}modality_encoders.IMAGE.{rest}");
    let patches = within("local_encoder.proj.weight");
    let [dim, _, patch, _] = source.size::<4>(&patches)?;
    // Positions are fixed; their number determines the image size.
    let positions = source.tensors.get(&within("fixed_positional_encoder.positions"));
    let side = positions.map(|x| ((x.numel() as i64 / dim) as f64).sqrt().round() as i64);
    let image = side.map(|side| side * patch).or(own.integer("input_size")).map(|side| [side; 2]);
    let features = features(source, &patches, ["", ""], image, IMAGENET)?;
    let prenet = source.count(|i| within(&format!("context_encoder.blocks.{i}.mlp.fc1.weight")));
    let block = |i: usize| format!("{prefix}blocks.{i}.mlp.fc1.weight");
    let [hidden, _] = source.size::<2>(&block(0))?;
    let heads = source.heads(options.heads.or(settings.integer("num_heads")), dim)?;
    let depth = prenet + source.count(block);
    let transformer = TransformerConfig {
        norm_eps: settings.number("norm_eps").unwrap_or(EPS),
        input_norm: true,
        dropout: settings.probability("encoder_dropout"),
        attention_dropout: settings.probability("attention_dropout"),
        activation_dropout: settings.probability("activation_dropout"),
        layer_drop: settings.probability("layerdrop"),
        ..TransformerConfig::without_dropout(dim, depth, heads, hidden)
    };
    let head = head(source, &settings, options, "head.weight", true, EPS)?;
    let what = if head.is_some() { ", fine-tuned" } else { "" };
    let table = tables::fairseq2(prefix, prenet, depth, &features, dim);
    let mut imported =
        convert::import::<PatchEncoder>(source, &table, features, transformer, head)?;
    imported.description = format!("fairseq's data2vec 2.0 for images{what}");
    Ok(imported)
}
