//! Finds labelled images at a path, and the validation images next to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::{Error, Result};

use crate::idx;
use crate::labels::{self, LABELS_FILE, sort_classes};
use crate::listing::Images;

/// Names of a validation directory next to `train`.
const VALIDATION: [&str; 4] = ["val", "valid", "validation", "test"];
/// Accepted layouts, for error messages.
const EXPECTED: &str = "expected a directory per class, a labels.tsv with `path<TAB>label` lines, \
                        IDX files of images and labels, or shards with `cls` or `label`";

/// Images and their classes.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) images: Images,
    /// Index into `classes` of each image.
    pub(super) labels: Vec<u32>,
    pub(super) classes: Vec<String>,
}

/// Returns the paths of the training images at `path` and of the validation images, if any.
pub(super) fn train_and_validation(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let train_only = (path.to_owned(), None);
    if !path.is_dir() || path.join(LABELS_FILE).exists() {
        return Ok(train_only);
    }
    let mut folders = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let entry = entry.map_err(|e| Error::io(path, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            folders.insert(name);
        }
    }
    // `train` and `test` may be classes if there are other directories.
    let validation = VALIDATION.iter().find(|name| folders.contains(**name));
    let is_split = |name: &String| name == "train" || VALIDATION.contains(&name.as_str());
    if let Some(validation) = validation
        && folders.contains("train")
        && folders.iter().all(is_split)
    {
        return Ok((path.join("train"), Some(path.join(validation))));
    }
    Ok(match idx::find(path)? {
        Some(train) => {
            let validation = idx::find_validation(&train)?;
            (train, validation)
        }
        None => train_only,
    })
}

/// Returns true if `path` has separate directories of training and validation images.
///
/// # Errors
/// Returns [`Error::Io`] if the directory cannot be read.
pub fn has_validation_split(path: &Path) -> Result<bool> {
    Ok(train_and_validation(path)?.1.is_some_and(|validation| validation.is_dir()))
}

impl Listing {
    /// Lists the images at `path` with their classes.
    pub(super) fn open(path: &Path, cache: Option<&Path>) -> Result<Self> {
        let table = path.join(LABELS_FILE);
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

    /// Lists the images of a table of labels, whose paths are relative to the table's directory.
    fn from_table(path: &Path) -> Result<Self> {
        let labels = labels::read(path)?;
        let classes = sort_classes(labels.values().map(String::as_str).collect());
        let index: BTreeMap<_, _> = classes.iter().map(String::as_str).zip(0..).collect();
        let indices = labels.values().map(|label| index[label.as_str()]).collect();
        let root = path.parent().map(Path::to_owned).unwrap_or_default();
        let images = Images::from_files(root, labels.into_keys().collect())?;
        Ok(Self { images, labels: indices, classes })
    }

    /// Returns an error if there are fewer than two classes. Validation images need only one.
    pub(super) fn check(self) -> Result<Self> {
        if self.classes.len() < 2 {
            let class = self.classes.first().map_or("none", String::as_str);
            let reason = format!("all images are of one class, {class}; {EXPECTED}");
            return Err(Error::file(self.images.path(), reason));
        }
        Ok(self)
    }
}
