//! Images in shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use data2vec_core::{Error, Result};
use data2vec_source::Files;

use crate::folder::class;
use crate::labelled::sorted;
use crate::pixels::EXTENSIONS;

/// What an image in a shard may be called, besides the ends of image files: columns.
const COLUMNS: [&str; 2] = ["image", "img"];
/// Fields that hold a class.
const CLASSES: [&str; 5] = ["cls", "label", "class", "fine_label", "labels"];

/// Examples of shards that have an image.
#[derive(Debug)]
pub(crate) struct Shards {
    pub(crate) files: Files,
    /// Examples that have none.
    pub(crate) skipped: Vec<(PathBuf, String)>,
    /// Looked up once, if anybody asks.
    labels: OnceLock<Labels>,
}

/// Classes of images.
#[derive(Debug)]
pub(crate) struct Labels {
    pub(crate) classes: Vec<String>,
    /// Numbers of them, by image.
    pub(crate) of: Vec<Option<u32>>,
}

impl Shards {
    pub(crate) fn open(path: &Path, cache: Option<&Path>) -> Result<Self> {
        let wanted = [&EXTENSIONS[..], &COLUMNS].concat();
        let files = Files::open(path, cache, &wanted).map_err(Error::data)?;
        let skipped = files.lacking().iter().map(|why| (path.to_owned(), why.clone())).collect();
        Ok(Self { files, skipped, labels: OnceLock::new() })
    }

    /// The class of each image: what its example says, else the folder that its key begins with.
    pub(crate) fn labels(&self) -> Result<&Labels> {
        if let Some(labels) = self.labels.get() {
            return Ok(labels);
        }
        let names = (0..self.files.len()).map(|at| self.name_of_class(at));
        let names: Vec<Option<String>> = names.collect::<Result<_>>()?;
        let classes = sorted(names.iter().flatten().map(String::as_str).collect::<BTreeSet<_>>());
        let number: BTreeMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let of = names.iter().map(|name| number.get(name.as_deref()?).copied()).collect();
        Ok(self.labels.get_or_init(|| Labels { classes, of }))
    }

    fn name_of_class(&self, at: usize) -> Result<Option<String>> {
        let told = self.files.told(at, &CLASSES).map_err(Error::data)?;
        let told = told.map(|name| name.trim().to_owned());
        let told = told.filter(|name| !name.is_empty());
        Ok(told.or_else(|| class(Path::new(&self.files.path(at)))))
    }
}
