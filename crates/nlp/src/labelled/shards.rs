//! Labelled texts in shards.

use std::path::Path;

use data2vec_core::{Error, HeadTask, Result};
use data2vec_source::Files;

use crate::{
    glue::{CLASSES, SCORE, TEXTS},
    tsv::{Record, Skipped},
};

/// What a text is called in tar shards.
const TEXT: &str = "txt";
/// A class in tar shards.
const CLASS: &str = "cls";
/// A field that may hold all.
const NOTES: &str = "json";

/// The records of the shards at `path`, whose fields are called as columns of tables are, or `txt` and `cls`.
pub(crate) fn read(path: &Path, task: HeadTask, skipped: &mut Skipped) -> Result<Vec<Record>> {
    let firsts = TEXTS.iter().map(|names| names[0]);
    let wanted: Vec<&str> = firsts.chain([TEXT, NOTES]).collect();
    let files = Files::open(path, None, &wanted).map_err(Error::data)?;
    files.lacking().iter().for_each(|reason| skipped.add(reason));
    let mut labels = [&CLASSES[..], &[CLASS]].concat();
    if task == HeadTask::Regression {
        labels.insert(0, SCORE);
    }
    let mut records = Vec::with_capacity(files.len());
    for at in 0..files.len() {
        let place = files.path(at);
        match record(&files, at, &labels).map_err(Error::data)? {
            (None, _) => skipped.add(format!("{place}: no text")),
            (_, None) => {
                skipped.add(format!("{place}: no label (looked for {})", labels.join(", ")));
            }
            (Some(texts), Some(label)) => records.push(Record { place, texts, label }),
        }
    }
    Ok(records)
}

/// Texts and label of an example, if it has such.
fn record(
    files: &Files,
    at: usize,
    labels: &[&str],
) -> data2vec_source::Result<(Option<Vec<String>>, Option<String>)> {
    let told = |names: &[&str]| -> data2vec_source::Result<Option<String>> {
        let text = files.told(at, names)?.map(|text| text.trim().to_owned());
        Ok(text.filter(|text| !text.is_empty()))
    };
    let label = told(labels)?;
    for names in TEXTS.iter().copied().chain([&[TEXT][..]]) {
        let texts = names
            .iter()
            .map(|name| told(&[name]))
            .collect::<data2vec_source::Result<Option<Vec<_>>>>()?;
        if texts.is_some() {
            return Ok((texts, label));
        }
    }
    Ok((None, label))
}
