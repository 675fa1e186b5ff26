//! Parsers of transcript formats.

use std::collections::HashMap;
use std::path::Path;

use data2vec_core::{Error, Result};

use super::{Labels, stem};
use crate::text_file::read_text;

/// Reads a table with a header and lines `path<TAB>label`, the paths relative to the table.
pub(super) fn table(path: &Path, root: &Path, labels: &mut Labels) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let relative = directory.strip_prefix(root).unwrap_or(directory);
    for (number, line) in (1..).zip(read_text(path)?.lines()).skip(1) {
        if line.trim().is_empty() {
            continue;
        }
        let Some((file, label)) = line.split_once('\t') else {
            let start: String = line.chars().take(80).collect();
            let reason = format!("line {number}: must be `path<TAB>text`, not {start:?}");
            return Err(Error::file(path, reason));
        };
        let file = relative.join(file.trim_start_matches("./"));
        labels.entry(file).or_insert_with(|| label.to_owned());
    }
    Ok(())
}

/// Joins the letters of a fairseq `.ltr` line, `H E L L O | W O R L D |`, to words.
pub(super) fn letters(line: &str) -> String {
    line.split_whitespace().map(|letter| if letter == "|" { " " } else { letter }).collect()
}

/// Reads the lines `NAME TEXT` of a LibriSpeech `*.trans.txt` for the recordings in `directory`.
pub(super) fn libri(
    path: &Path,
    directory: &Path,
    recordings: &[&Path],
    texts: &mut Labels,
) -> Result<()> {
    let text = read_text(path)?;
    let by_name: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(char::is_whitespace)).collect();
    for &recording in recordings.iter().filter(|file| file.parent() == Some(directory)) {
        if let Some(text) = by_name.get(stem(recording).as_str()) {
            texts.entry(recording.to_owned()).or_insert_with(|| (*text).to_owned());
        }
    }
    Ok(())
}
