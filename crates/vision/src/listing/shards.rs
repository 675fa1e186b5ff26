//! Images in shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use data2vec_core::{Error, Result};
use data2vec_source::Files;

use super::folder::top_directory;
use crate::labels::sort_classes;
use crate::pixels::EXTENSIONS;

/// Field names of images, besides the file extensions: column names.
const COLUMNS: [&str; 2] = ["image", "img"];
/// Field names of classes.
const CLASS_FIELDS: [&str; 5] = ["cls", "label", "class", "fine_label", "labels"];

/// Examples of shards that contain an image.
#[derive(Debug)]
pub(super) struct Shards {
    pub(super) files: Files,
    path: PathBuf,
    /// Read from the shards on first use.
    labels: OnceLock<Labels>,
}

/// Classes of images.
#[derive(Debug)]
pub(super) struct Labels {
    pub(super) classes: Vec<String>,
    /// Index into `classes` of each image, if known.
    pub(super) indices: Vec<Option<u32>>,
}

impl Shards {
    pub(super) fn open(path: &Path, cache: Option<&Path>) -> Result<Self> {
        let fields = [&EXTENSIONS[..], &COLUMNS].concat();
        let files = Files::open(path, cache, &fields).map_err(Error::data)?;
        Ok(Self { files, path: path.to_owned(), labels: OnceLock::new() })
    }

    /// Returns one line for each example without an image: `path: reason`.
    pub(super) fn skipped(&self) -> Vec<String> {
        let path = self.path.display();
        self.files.missing().iter().map(|reason| format!("{path}: {reason}")).collect()
    }

    /// Returns the class of each image: its class field, else the top-level directory of its key.
    pub(super) fn labels(&self) -> Result<&Labels> {
        if let Some(labels) = self.labels.get() {
            return Ok(labels);
        }
        let names = (0..self.files.len()).map(|at| self.class_name(at));
        let names: Vec<Option<String>> = names.collect::<Result<_>>()?;
        let classes = sort_classes(names.iter().flatten().map(String::as_str).collect());
        let index: BTreeMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let indices = names.iter().map(|name| index.get(name.as_deref()?).copied()).collect();
        Ok(self.labels.get_or_init(|| Labels { classes, indices }))
    }

    fn class_name(&self, at: usize) -> Result<Option<String>> {
        let field = self.files.field(at, &CLASS_FIELDS).map_err(Error::data)?;
        let field = field.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        Ok(field.or_else(|| top_directory(Path::new(&self.files.path(at)))))
    }
}
