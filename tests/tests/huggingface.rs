//! Encoders match those of Hugging Face's transformers layer by layer, with padding; see
//! `goldens/make.py`.

use std::collections::HashMap;

use data2vec_core::{Batch, Encoder, FeatureEncoder, TransformerConfig};
use data2vec_nlp::TokenEncoder;
use data2vec_speech::{WaveCompat, WaveEncoder};
use data2vec_tests::reference::{Tensors, golden};
use data2vec_tests::tiny::{self, max_abs_diff};
use data2vec_tests::{text, vision};
use data2vec_vision::PatchEncoder;
use tch::{Device, Kind, Tensor, nn};

const TOLERANCE: f64 = 1e-5;

/// Creates an encoder; `theirs` returns the weight of each of our variables.
fn encoder<F: FeatureEncoder>(
    features: &F::Config,
    transformer: &TransformerConfig,
    theirs: impl Fn(&str) -> Option<Tensor>,
) -> Encoder<F> {
    let vars = nn::VarStore::new(Device::Cpu);
    let encoder = Encoder::new(&(vars.root() / "encoder"), features, transformer);
    for (name, mut var) in vars.variables() {
        let value = theirs(&name).unwrap_or_else(|| panic!("no weight for {name}"));
        tch::no_grad(|| var.copy_(&value.reshape(var.size())));
    }
    encoder.expect("a valid config")
}

/// Looks up our variable `name` after renaming it by the first entry of `names` that is a prefix.
fn renamed(weights: &Tensors, name: &str, names: &[(&str, &str)]) -> Option<Tensor> {
    let name = name.strip_prefix("encoder.")?;
    let (ours, theirs) = names.iter().find(|(ours, _)| name.starts_with(ours))?;
    let name = format!("weights.{}", name.replacen(ours, theirs, 1));
    weights.get(&name).map(Tensor::shallow_clone)
}

/// Looks up a variable of a block.
///
/// `parts` are Hugging Face's names of norm1, the attention's query, key and value, its output
/// projection, norm2, the two linear layers of the MLP and the two layer scales.
fn block(weights: &Tensors, name: &str, layers: &str, parts: [&str; 8]) -> Option<Tensor> {
    let (i, part) = name.strip_prefix("encoder.transformer.blocks.")?.split_once('.')?;
    let get =
        |module: &str, kind: &str| weights.get(&format!("weights.{layers}.{i}.{module}{kind}"));
    if let Some(kind) = part.strip_prefix("attn.qkv") {
        let part = |which: usize| get(parts[1].split(' ').nth(which)?, kind);
        let (q, v) = (part(0)?, part(2)?);
        let zero = q.zeros_like(); // BEiT has no key bias
        return Some(Tensor::cat(&[q, part(1).unwrap_or(&zero), v], 0));
    }
    let ours = ["norm1", "-", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2", "scale1", "scale2"];
    let at = ours.iter().position(|ours| part.starts_with(ours))?;
    get(parts[at], &part[ours[at].len()..]).map(Tensor::shallow_clone)
}

/// Compares the output of each block with `hidden.1`, `hidden.2`, …, without padding.
fn assert_layers<F: FeatureEncoder>(
    encoder: &Encoder<F>,
    batch: &Batch,
    tensors: &HashMap<String, Tensor>,
) {
    let output = encoder.forward(batch).expect("a valid batch");
    assert_eq!(output.layers.len(), 3);
    for (i, layer) in output.layers.iter().enumerate() {
        let expected = &tensors[&format!("hidden.{}", i + 1)];
        // Hugging Face's output includes the CLS token.
        let prefix = expected.size()[1] - layer.out.size()[1];
        for (row, &len) in output.lengths.iter().enumerate() {
            let expected = expected.get(row as i64).narrow(0, prefix, len);
            let diff = max_abs_diff(&layer.out.get(row as i64).narrow(0, 0, len), &expected);
            assert!(diff < TOLERANCE, "layer {i}, row {row} differs by {diff}");
        }
    }
}

/// Returns the tensors whose names begin with `prefix`, without it.
fn values(tensors: &Tensors, prefix: &str) -> HashMap<String, Tensor> {
    let named = |(name, t): (&String, &Tensor)| {
        Some((name.strip_prefix(prefix)?.to_owned(), t.shallow_clone()))
    };
    tensors.iter().filter_map(named).collect()
}

fn lengths(mask: &Tensor) -> Vec<i64> {
    Vec::try_from(mask.sum_dim_intlist(&[1_i64][..], false, Kind::Int64)).expect("integers")
}

#[test]
fn audio_encoder_matches() {
    let tensors = golden("hf_audio");
    let mut config = tiny::speech_v1();
    config.features.conv_layers = vec![[32, 10, 5], [32, 3, 2], [32, 3, 2], [32, 2, 2]];
    config.features.compat = vec![WaveCompat::PaddingLeaks];
    config.transformer.depth = 3;
    let parts = [
        "layer_norm",
        "attention.q_proj attention.k_proj attention.v_proj",
        "attention.out_proj",
        "final_layer_norm",
        "feed_forward.intermediate_dense",
        "feed_forward.output_dense",
        "-",
        "-",
    ];
    let theirs = |name: &str| {
        let positions = name.replace("positions.convs", "encoder.pos_conv_embed.layers");
        let name = match positions.rsplit_once('.') {
            Some((layer, kind)) if positions != name => format!("{layer}.conv.{kind}"),
            _ => name.replace(".norm.", ".layer_norm."),
        };
        let names = [
            ("features.embed.conv_layers", "feature_extractor.conv_layers"),
            ("features.embed.layer_norm", "feature_projection.layer_norm"),
            ("features.embed.proj", "feature_projection.projection"),
            ("features.encoder", "encoder"),
            ("transformer.input_norm", "encoder.layer_norm"),
        ];
        renamed(&tensors, &name, &names).or_else(|| block(&tensors, &name, "encoder.layers", parts))
    };
    let encoder: Encoder<WaveEncoder> = encoder(&config.features, &config.transformer, theirs);
    let (wave, mask) = (&tensors["input.input_values"], &tensors["input.attention_mask"]);
    let batch = Batch::padded(wave.shallow_clone(), lengths(mask)).expect("a batch");
    assert_layers(&encoder, &batch, &values(&tensors, ""));
}

#[test]
fn vision_encoder_matches() {
    let tensors = golden("hf_vision");
    let mut config = vision::v1();
    (config.transformer.depth, config.transformer.mlp_ratio) = (3, 2.0);
    let parts = [
        "layernorm_before",
        "attention.attention.query attention.attention.key attention.attention.value",
        "attention.output.dense",
        "layernorm_after",
        "intermediate.dense",
        "output.dense",
        "lambda_1",
        "lambda_2",
    ];
    let relative = "encoder.relative_position_bias.relative_position_bias_table";
    let names = [
        ("features.embed.proj", "embeddings.patch_embeddings.projection"),
        ("features.positions.cls", "embeddings.cls_token"),
        ("features.positions.relative_bias", relative),
    ];
    let theirs = |name: &str| {
        renamed(&tensors, name, &names).or_else(|| block(&tensors, name, "encoder.layer", parts))
    };
    let encoder: Encoder<PatchEncoder> = encoder(&config.features, &config.transformer, theirs);
    for size in ["", "large."] {
        let values = values(&tensors, size);
        let batch = Batch::new(values["input.pixel_values"].shallow_clone()).expect("a batch");
        assert_layers(&encoder, &batch, &values);
    }
}

#[test]
fn text_encoder_matches() {
    let tensors = golden("hf_text");
    let mut config = text::v1();
    config.transformer.mlp_ratio = 2.0;
    let parts = [
        "attention.output.LayerNorm",
        "attention.self.query attention.self.key attention.self.value",
        "attention.output.dense",
        "output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "-",
        "-",
    ];
    let names = [
        ("features.embed.words", "embeddings.word_embeddings.weight"),
        ("features.positions.table", "embeddings.position_embeddings.weight"),
        ("features.positions.norm", "embeddings.LayerNorm"),
    ];
    let theirs = |name: &str| {
        let value = renamed(&tensors, name, &names);
        // There is one token type, whose embedding is added to every token.
        let kind = &tensors["weights.embeddings.token_type_embeddings.weight"];
        let value = value.map(|v| if name.ends_with("positions.table") { v + kind } else { v });
        value.or_else(|| block(&tensors, name, "encoder.layer", parts))
    };
    for early_positions in [false, true] {
        config.features.early_positions = early_positions;
        let encoder: Encoder<TokenEncoder> = encoder(&config.features, &config.transformer, theirs);
        let (ids, mask) = (&tensors["input.input_ids"], &tensors["input.attention_mask"]);
        let batch = Batch::padded(ids.shallow_clone(), lengths(mask)).expect("a batch");
        assert_layers(&encoder, &batch, &values(&tensors, ""));
    }
}
