//! What the outputs of a CTC head mean.

use std::path::Path;

use data2vec_core::convert::{ImportOptions, Model, Source, as_many, read_labels};
use data2vec_core::{Error, Result};
use tch::Tensor;

use crate::WaveEncoderConfig;

/// Names of the first outputs. fairseq's dictionaries begin with others for the same rows, of which the first
/// is the blank, too.
const FIRST: [&str; 4] = ["<pad>", "<s>", "</s>", "<unk>"];
/// The letters of all published English models, after [`FIRST`].
const ENGLISH: &str = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ";

/// Names in `path`: a `vocab.json`, fairseq's `dict.ltr.txt`, or lines.
fn symbols(path: &Path) -> Result<Vec<String>> {
    let lines = read_labels(path)?;
    let counted = |line: &String| {
        let (symbol, count) = line.trim_end().rsplit_once(' ')?;
        count.parse::<u64>().is_ok().then(|| symbol.to_owned())
    };
    let dictionary: Option<Vec<String>> = lines.iter().map(counted).collect();
    Ok(match dictionary {
        Some(symbols) => FIRST.map(String::from).into_iter().chain(symbols).collect(),
        None => lines,
    })
}

/// Names of `outputs` symbols: of the user's file, of `vocab.json` or `dict.ltr.txt` beside the checkpoint,
/// or of the published models where the number is theirs.
pub(super) fn of_symbols(
    source: &Source,
    options: &ImportOptions,
    outputs: i64,
) -> Result<Vec<String>> {
    let beside = ["vocab.json", "dict.ltr.txt"].map(|name| source.folder.join(name));
    let beside = beside.into_iter().find(|path| path.is_file());
    if let Some(path) = options.labels.clone().or(beside) {
        return as_many(&path, symbols(&path)?, outputs);
    }
    let english: Vec<String> =
        FIRST.map(String::from).into_iter().chain(ENGLISH.chars().map(String::from)).collect();
    if english.len() as i64 == outputs {
        return Ok(english);
    }
    let reason = format!(
        "does not say what its {outputs} outputs mean: add --labels with its vocab.json or dict.ltr.txt"
    );
    Err(Error::file(&source.path, reason))
}

/// Moves the blank to the front, and gives special symbols our names. Hugging Face has it where the
/// configuration says.
pub(super) fn blank_first(source: &Source, model: &mut Model<WaveEncoderConfig>) {
    let Some(head) = &mut model.head else { return };
    let labels = &mut head.labels;
    let told = source.config.get("pad_token_id").and_then(serde_json::Value::as_u64);
    let blank = told.map_or(0, |id| id as usize);
    if blank > 0 && blank < labels.len() {
        labels.swap(0, blank);
        let mut order: Vec<i64> = (0..labels.len() as i64).collect();
        order.swap(0, blank);
        for name in ["head.out.weight", "head.out.bias"] {
            if let Some(tensor) = model.vars.get_mut(name) {
                *tensor = tensor.index_select(0, &Tensor::from_slice(&order));
            }
        }
    }
    labels[0] = FIRST[0].to_owned();
    if let Some(unknown) = labels.iter_mut().find(|label| *label == "[UNK]") {
        *unknown = FIRST[3].to_owned();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn dictionaries_and_lists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels");
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            symbols(&path).unwrap().join(" ")
        };
        assert_eq!(of("| 94802\nE 51860\n"), "<pad> <s> </s> <unk> | E");
        assert_eq!(of("a\nb c\n"), "a b c");
        assert_eq!(of(r#"{"<pad>": 0, "E": 1}"#), "<pad> E");
    }
}
