//! Reads labelled texts from shards.

use std::path::Path;

use data2vec_core::{Error, HeadTask, Result};
use data2vec_source::Files;

use super::glue::{CLASSES, SCORE, TEXTS};
use super::record::{Record, Skipped};

/// Field of a text in tar shards.
const TEXT: &str = "txt";
/// Field of a class in tar shards.
const CLASS: &str = "cls";
/// Field of a JSON object with text and label.
const JSON: &str = "json";

/// Reads the records of the shards at `path`. Fields are named as the columns of tables, or `txt`
/// and `cls`.
pub(super) fn read(path: &Path, task: HeadTask, skipped: &mut Skipped) -> Result<Vec<Record>> {
    let first_names = TEXTS.iter().map(|names| names[0]);
    let wanted: Vec<&str> = first_names.chain([TEXT, JSON]).collect();
    let files = Files::open(path, None, &wanted).map_err(Error::data)?;
    files.missing().iter().for_each(|reason| skipped.add(reason));
    let mut labels = [&CLASSES[..], &[CLASS]].concat();
    if task == HeadTask::Regression {
        labels.insert(0, SCORE);
    }
    let mut records = Vec::with_capacity(files.len());
    for at in 0..files.len() {
        let location = files.path(at);
        match texts_and_label(&files, at, &labels).map_err(Error::data)? {
            (None, _) => skipped.add(format!("{location}: no text")),
            (_, None) => {
                skipped.add(format!("{location}: no label (looked for {})", labels.join(", ")));
            }
            (Some(texts), Some(label)) => records.push(Record { location, texts, label }),
        }
    }
    Ok(records)
}

/// Returns the texts and the label of an example, where present.
fn texts_and_label(
    files: &Files,
    at: usize,
    labels: &[&str],
) -> data2vec_source::Result<(Option<Vec<String>>, Option<String>)> {
    let field = |names: &[&str]| -> data2vec_source::Result<Option<String>> {
        let text = files.field(at, names)?.map(|text| text.trim().to_owned());
        Ok(text.filter(|text| !text.is_empty()))
    };
    let label = field(labels)?;
    for names in TEXTS.iter().copied().chain([&[TEXT][..]]) {
        let texts = names
            .iter()
            .map(|name| field(&[name]))
            .collect::<data2vec_source::Result<Option<Vec<_>>>>()?;
        if texts.is_some() {
            return Ok((texts, label));
        }
    }
    Ok((None, label))
}
