//! Class names: the table `labels.tsv` and the order of classes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::{Error, Result};

/// File name of the table of labels in a directory of images.
pub(crate) const LABELS_FILE: &str = "labels.tsv";
/// Optional header line of the table.
const HEADER: &str = "path\tlabel";

/// Reads `labels.tsv` in `folder`, if it exists; see [`read`].
pub(crate) fn read_in(folder: &Path) -> Result<Option<BTreeMap<PathBuf, String>>> {
    let path = folder.join(LABELS_FILE);
    if path.exists() { read(&path).map(Some) } else { Ok(None) }
}

/// Reads a table of `path<TAB>label` lines: the label of each relative path.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let text = fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = String::from_utf8(text).map_err(|_| Error::file(path, "is not UTF-8"))?;
    let mut labels = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        if line.is_empty() || (at == 0 && line == HEADER) {
            continue;
        }
        let bad = |reason: &str| Err(Error::file(path, format!("line {}: {reason}", at + 1)));
        let mut parts = line.split('\t');
        let (Some(file), Some(label), None) = (parts.next(), parts.next(), parts.next()) else {
            return bad("is not `path<TAB>label`");
        };
        let label = label.trim();
        if file.is_empty() || label.is_empty() {
            return bad("has no path or no label");
        }
        let old = labels.insert(PathBuf::from(file), label.to_owned());
        if old.is_some_and(|old| old != label) {
            return bad(&format!("{file} has another label on an earlier line"));
        }
    }
    if labels.is_empty() {
        return Err(Error::file(path, "lists no images"));
    }
    Ok(labels)
}

/// Sorts class names: by value if all are integers, else alphabetically.
pub(crate) fn sort_classes(names: BTreeSet<&str>) -> Vec<String> {
    let numbers: Option<Vec<i64>> = names.iter().map(|name| name.parse().ok()).collect();
    let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    if let Some(numbers) = numbers {
        let mut numbered: Vec<_> = numbers.into_iter().zip(names).collect();
        numbered.sort();
        names = numbered.into_iter().map(|(_, name)| name).collect();
    }
    names
}
