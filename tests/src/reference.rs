//! Reference values, and fairseq's names of our speech variables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use data2vec_core::io::checkpoint::read_tensors;
use tch::Tensor;

use crate::parity::Names;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Reads the tensors of `goldens/NAME.safetensors`.
///
/// # Panics
/// Panics if the file is missing or invalid.
pub fn golden(name: &str) -> Tensors {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens");
    read_tensors(&dir.join(format!("{name}.safetensors"))).expect("a golden file")
}

/// Returns the name of our variable `name` in fairseq's data2vec 1.0; `None` if it has none.
///
/// Our query, key and value projections are one stacked tensor: the returned name has a `*` in place
/// of `q`, `k`, `v`.
fn speech_v1_name(name: &str) -> Option<String> {
    if name == "mask_token" {
        return Some("mask_emb".into());
    }
    if let Some(rest) = name.strip_prefix("decoder.proj.0.") {
        return Some(format!("final_proj.{rest}"));
    }
    let rest = name.strip_prefix("encoder.")?;
    let rename = [
        ("features.embed.norm.", "layer_norm."),
        ("features.embed.proj.", "post_extract_proj."),
        ("transformer.input_norm.", "encoder.layer_norm."),
    ];
    if let Some((ours, theirs)) = rename.iter().find(|(ours, _)| rest.starts_with(ours)) {
        return Some(rest.replacen(ours, theirs, 1));
    }
    if let Some(rest) = rest.strip_prefix("features.embed.conv_layers.") {
        let theirs = rest.replacen(".conv.", ".0.", 1).replacen(".norm.", ".2.1.", 1);
        return Some(format!("feature_extractor.conv_layers.{theirs}"));
    }
    if let Some(rest) = rest.strip_prefix("features.positions.convs.") {
        let (i, part) = rest.split_once('.')?;
        return Some(format!("encoder.pos_conv.{i}.0.{part}"));
    }
    let block = rest.strip_prefix("transformer.blocks.")?;
    let (i, part) = block.split_once('.')?;
    let (module, kind) = part.rsplit_once('.')?;
    let theirs = match module {
        "attn.qkv" => "self_attn.*_proj",
        "attn.proj" => "self_attn.out_proj",
        "norm1" => "self_attn_layer_norm",
        "norm2" => "final_layer_norm",
        "mlp.fc1" => "fc1",
        "mlp.fc2" => "fc2",
        _ => return None,
    };
    Some(format!("encoder.layers.{i}.{theirs}.{kind}"))
}

/// Variable names of fairseq's data2vec 1.0 for speech.
#[derive(Clone, Copy, Debug)]
pub struct SpeechV1;

impl Names for SpeechV1 {
    fn tensor(&self, tensors: &Tensors, prefix: &str, name: &str, _: &[i64]) -> Option<Tensor> {
        let theirs = speech_v1_name(name)?;
        // The teacher's names are relative to the encoder, which is what the EMA covers.
        let theirs = match prefix.contains("teacher") {
            true => theirs.strip_prefix("encoder.")?,
            false => &theirs,
        };
        let get = |name: &str| tensors.get(&format!("{prefix}.{name}")).map(Tensor::shallow_clone);
        if theirs.contains('*') {
            let part = |part: &str| get(&theirs.replace('*', part));
            return Some(Tensor::cat(&[part("q")?, part("k")?, part("v")?], 0));
        }
        get(theirs)
    }

    fn is_shared_with_student(&self, name: &str) -> bool {
        name.starts_with("encoder.features.embed.")
    }
}
