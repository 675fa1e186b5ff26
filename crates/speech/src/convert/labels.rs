//! Labels of the outputs of an imported CTC head.

use std::path::Path;

use data2vec_core::io::convert::{ImportOptions, Model, Source, check_label_count, read_labels};
use data2vec_core::{Error, Result};
use tch::Tensor;

use crate::config::WaveEncoderConfig;

/// Labels of the first outputs. fairseq's dictionaries have other names for the same rows, of which the
/// first is the blank, too.
const FIRST: [&str; 4] = ["<pad>", "<s>", "</s>", "<unk>"];
/// Labels of all published English models, after [`FIRST`].
const ENGLISH: &str = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ";

/// Reads labels from a `vocab.json`, fairseq's `dict.ltr.txt`, or lines.
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

/// Returns the labels of a head with `outputs` outputs: from the user's file, from `vocab.json` or
/// `dict.ltr.txt` beside the checkpoint, or those of the published models if the number matches.
pub(super) fn find(source: &Source, options: &ImportOptions, outputs: i64) -> Result<Vec<String>> {
    let beside = ["vocab.json", "dict.ltr.txt"].map(|name| source.dir.join(name));
    let beside = beside.into_iter().find(|path| path.is_file());
    if let Some(path) = options.labels.clone().or(beside) {
        return check_label_count(&path, symbols(&path)?, outputs);
    }
    let english: Vec<String> =
        FIRST.map(String::from).into_iter().chain(ENGLISH.chars().map(String::from)).collect();
    if english.len() as i64 == outputs {
        return Ok(english);
    }
    let reason = format!(
        "does not name its {outputs} outputs; add --labels with its vocab.json or dict.ltr.txt"
    );
    Err(Error::file(&source.path, reason))
}

/// Moves the blank to the front and renames special labels. In Hugging Face's models the configuration
/// has the id of the blank.
pub(super) fn blank_first(source: &Source, model: &mut Model<WaveEncoderConfig>) {
    let Some(head) = &mut model.head else { return };
    let labels = &mut head.labels;
    let pad_id = source.config.get("pad_token_id").and_then(serde_json::Value::as_u64);
    let blank = pad_id.map_or(0, |id| id as usize);
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
    fn reads_dictionary_list_and_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            symbols(&path).unwrap().join(" ")
        };
        assert_eq!(read("| 94802\nE 51860\n"), "<pad> <s> </s> <unk> | E");
        assert_eq!(read("a\nb c\n"), "a b c");
        assert_eq!(read(r#"{"<pad>": 0, "E": 1}"#), "<pad> E");
    }
}
