//! Which images have which classes: what is found at a path.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::{Error, Result};

use crate::folder::Folder;
use crate::idx;
use crate::images::Images;

/// A list of labels in a folder of images.
const TABLE: &str = "labels.tsv";
/// A first line of it that names no image.
const HEADER: &str = "path\tlabel";
/// What images for validation are called where a folder has them beside those to train on.
const VALIDATION: [&str; 4] = ["val", "valid", "validation", "test"];
/// What labelled images look like.
const EXPECTED: &str = "expected is a folder of images for each class, a labels.tsv with \
                        `path<TAB>label` a line, IDX files of images and labels, or shards with `cls` or \
                        `label`";

/// Images, and the class of each.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) images: Images,
    /// Numbers of `classes`.
    pub(crate) labels: Vec<u32>,
    pub(crate) classes: Vec<String>,
}

/// Paths of the images to train on at `path`, and of those for validation if it has such of its own.
pub(crate) fn sides(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let alone = (path.to_owned(), None);
    if !path.is_dir() || path.join(TABLE).exists() {
        return Ok(alone);
    }
    let mut folders = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let entry = entry.map_err(|e| Error::io(path, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            folders.insert(name);
        }
    }
    // With others beside them, `train` and `test` may be classes.
    let validation = VALIDATION.iter().find(|name| folders.contains(**name));
    let known = |name: &String| name == "train" || VALIDATION.contains(&name.as_str());
    if let Some(validation) = validation
        && folders.contains("train")
        && folders.iter().all(known)
    {
        return Ok((path.join("train"), Some(path.join(validation))));
    }
    Ok(match idx::find(path)? {
        Some(train) => {
            let validation = idx::beside(&train)?;
            (train, validation)
        }
        None => alone,
    })
}

impl Listing {
    /// Lists the images at `path`, all with their classes.
    pub(crate) fn read(path: &Path, cache: Option<&Path>) -> Result<Self> {
        let table = path.join(TABLE);
        if path.is_dir() && table.exists() {
            return Self::from_table(&table);
        }
        if path.is_file() && path.extension().is_some_and(|extension| extension == "tsv") {
            return Self::from_table(path);
        }
        let images = Images::open(path, cache)?;
        let classes = images.classes()?;
        let mut labels = Vec::with_capacity(images.len());
        for at in 0..images.len() {
            match images.label(at)? {
                Some(label) => labels.push(label as u32),
                None => {
                    let reason = format!("{} has no label; {EXPECTED}", images.name(at));
                    return Err(Error::file(path, reason));
                }
            }
        }
        Ok(Self { images, labels, classes })
    }

    /// Lists the images that a table names, relative to its own folder.
    fn from_table(path: &Path) -> Result<Self> {
        let labels = table(path)?;
        let classes = sorted(labels.values().map(String::as_str).collect());
        let number: BTreeMap<_, _> = classes.iter().map(String::as_str).zip(0..).collect();
        let numbers = labels.values().map(|label| number[label.as_str()]).collect();
        let folder = Folder {
            root: path.parent().map(Path::to_owned).unwrap_or_default(),
            files: labels.into_keys().collect(),
            skipped: Vec::new(),
            classes: Vec::new(),
        };
        Ok(Self { images: Images::of_folder(folder)?, labels: numbers, classes })
    }

    /// Checks that there is something to learn: validation images may all be of one class.
    pub(crate) fn check(self) -> Result<Self> {
        if self.classes.len() < 2 {
            let only = self.classes.first().map_or("none", String::as_str);
            let reason = format!("all images are of one class, {only}; {EXPECTED}");
            return Err(Error::file(self.images.path(), reason));
        }
        Ok(self)
    }
}

/// Whether there are images for validation beside those to train on, in folders of their own.
///
/// # Errors
/// If the folder cannot be read.
pub fn has_sides(path: &Path) -> Result<bool> {
    Ok(sides(path)?.1.is_some_and(|validation| validation.is_dir()))
}

/// The labels in the table of a folder, if it has one, by relative path.
pub(crate) fn table_in(folder: &Path) -> Result<Option<BTreeMap<PathBuf, String>>> {
    let path = folder.join(TABLE);
    if path.exists() { table(&path).map(Some) } else { Ok(None) }
}

/// The labels in a table, by path.
fn table(path: &Path) -> Result<BTreeMap<PathBuf, String>> {
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
            return bad("lacks a path or a label");
        }
        let old = labels.insert(PathBuf::from(file), label.to_owned());
        if old.is_some_and(|old| old != label) {
            return bad(&format!("{file} had another label before"));
        }
    }
    if labels.is_empty() {
        return Err(Error::file(path, "names no image"));
    }
    Ok(labels)
}

/// By value where all are numbers, else as text.
pub(crate) fn sorted(names: BTreeSet<&str>) -> Vec<String> {
    let numbers: Option<Vec<i64>> = names.iter().map(|name| name.parse().ok()).collect();
    let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    if let Some(numbers) = numbers {
        let mut with: Vec<_> = numbers.into_iter().zip(names).collect();
        with.sort();
        names = with.into_iter().map(|(_, name)| name).collect();
    }
    names
}
