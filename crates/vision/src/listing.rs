//! Finds the images at a path: a directory of files, an IDX file, or shards.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data2vec_core::random::hash;
use data2vec_core::{Error, Result};
use data2vec_source::{has_shards, is_shard_path};

use crate::idx::{self, Idx};
use crate::labels;
use crate::pixels::Pixels;

mod folder;
mod shards;

use folder::Folder;
use shards::Shards;

/// An indexed list of stored images.
#[derive(Debug)]
pub struct Images {
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// Files in a directory tree.
    Folder(Folder),
    /// One IDX file.
    Idx(Idx),
    /// Examples in shards.
    Shards(Box<Shards>),
}

impl Images {
    /// Lists the images at `path`.
    ///
    /// `path` is one of: a directory with images anywhere below it, one image file, an IDX file
    /// (gzipped or not), a directory with IDX files (`train-images-idx3-ubyte` is chosen), shards
    /// ([`data2vec_source`]), or a directory with shards and no images. `cache` is the directory
    /// of the shard index; by default the user's cache directory.
    ///
    /// # Errors
    /// Returns [`Error::Io`], [`Error::File`] or [`Error::Data`] if `path` cannot be read or
    /// contains no image.
    pub fn open(path: impl AsRef<Path>, cache: Option<&Path>) -> Result<Self> {
        let path = path.as_ref();
        let shards = || Self::new(Store::Shards(Box::new(Shards::open(path, cache)?)));
        if is_shard_path(path) {
            return shards();
        }
        let is_dir = fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir();
        let idx = match is_dir {
            true => idx::find(path)?,
            false => idx::is_idx(path).then(|| path.to_owned()),
        };
        let store = match idx {
            Some(idx) => Store::Idx(Idx::read(&idx)?),
            None => {
                let folder = Folder::list(path)?;
                let is_empty = folder.files.is_empty() && folder.skipped.is_empty();
                if is_empty && is_dir && has_shards(path) {
                    return shards();
                }
                folder.check()?;
                Store::Folder(folder)
            }
        };
        Self::new(store)
    }

    /// Creates a list of the image `files`, relative to `root`, without looking for them.
    pub(crate) fn from_files(root: PathBuf, files: Vec<PathBuf>) -> Result<Self> {
        let folder = Folder { root, files, skipped: Vec::new(), classes: Vec::new() };
        Self::new(Store::Folder(folder))
    }

    fn new(store: Store) -> Result<Self> {
        let images = Self { store };
        match u32::try_from(images.len()) {
            Ok(_) => Ok(images),
            Err(_) => Err(Error::file(images.path(), "contains more than 2^32 images; split it")),
        }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Folder(folder) => folder.files.len(),
            Store::Idx(idx) => idx.len(),
            Store::Shards(shards) => shards.files.len(),
        }
    }

    /// Returns true if there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the indices of all images.
    pub(crate) fn indices(&self) -> Arc<[u32]> {
        (0..self.len() as u32).collect()
    }

    /// Returns the path of the directory, file or shards.
    pub(crate) fn path(&self) -> &Path {
        match &self.store {
            Store::Folder(folder) => &folder.root,
            Store::Idx(idx) => &idx.path,
            Store::Shards(shards) => shards.files.location(),
        }
    }

    /// Reads the image at index `at` in its stored size.
    ///
    /// # Errors
    /// Returns the errors of [`Pixels::read`].
    pub fn read(&self, at: usize) -> Result<Pixels> {
        match &self.store {
            Store::Folder(folder) => Pixels::read(folder.root.join(&folder.files[at])),
            Store::Idx(idx) => idx.image(at),
            Store::Shards(shards) => {
                let bytes = shards.files.read(at).map_err(Error::data)?;
                Pixels::read_from(&bytes, shards.files.location().join(shards.files.path(at)))
            }
        }
    }

    /// Returns the name of an image for messages: its path, or the IDX file and its index.
    pub fn name(&self, at: usize) -> String {
        match &self.store {
            Store::Folder(folder) => folder.root.join(&folder.files[at]).display().to_string(),
            Store::Idx(idx) => format!("{}, image {at}", idx.path.display()),
            Store::Shards(shards) => {
                shards.files.location().join(shards.files.path(at)).display().to_string()
            }
        }
    }

    /// Returns the class of an image as an index into [`classes`](Self::classes); `None` if it has
    /// none.
    ///
    /// The class is the top-level directory, the label in the file next to the IDX file, or the
    /// class field of the example in a shard.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if a shard cannot be read.
    pub fn label(&self, at: usize) -> Result<Option<usize>> {
        Ok(match &self.store {
            Store::Folder(folder) => folder.label(at),
            Store::Idx(idx) => idx.label(at),
            Store::Shards(shards) => shards.labels()?.indices[at].map(|label| label as usize),
        })
    }

    /// Returns the class names; classes of IDX files are named by their number.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if a shard cannot be read.
    pub fn classes(&self) -> Result<Vec<String>> {
        Ok(match &self.store {
            Store::Folder(folder) => folder.classes.clone(),
            Store::Idx(idx) => (0..idx.classes()).map(|class| class.to_string()).collect(),
            Store::Shards(shards) => shards.labels()?.classes.clone(),
        })
    }

    /// Returns the class name of each image, where known: from `labels.tsv` if the directory has
    /// one, else as [`label`](Self::label) does.
    ///
    /// # Errors
    /// Returns an error if `labels.tsv` or a shard cannot be read.
    pub fn class_names(&self) -> Result<Vec<Option<String>>> {
        if let Store::Folder(folder) = &self.store
            && let Some(table) = labels::read_in(&folder.root)?
        {
            return Ok(folder.files.iter().map(|file| table.get(file).cloned()).collect());
        }
        let classes = self.classes()?;
        let name = |at| Ok(self.label(at)?.and_then(|label| classes.get(label).cloned()));
        (0..self.len()).map(name).collect()
    }

    /// Reads the file of an image: returns its relative path and its bytes. Images in IDX files
    /// are encoded as PNG and named by their index.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::Data`] if the file cannot be read.
    pub fn read_file(&self, at: usize) -> Result<(PathBuf, Vec<u8>)> {
        match &self.store {
            Store::Folder(folder) => {
                let path = folder.root.join(&folder.files[at]);
                let content = fs::read(&path).map_err(|e| Error::io(path, e))?;
                Ok((folder.files[at].clone(), content))
            }
            Store::Idx(idx) => Ok((format!("{at:08}.png").into(), idx.image(at)?.to_png()?)),
            Store::Shards(shards) => {
                let content = shards.files.read(at).map_err(Error::data)?;
                Ok((shards.files.path(at).into(), content.to_vec()))
            }
        }
    }

    /// Starts fetching the images at these indices if they are remote.
    pub(crate) fn prefetch(&self, indices: impl Iterator<Item = usize>) {
        if let Store::Shards(shards) = &self.store {
            shards.files.prefetch(indices);
        }
    }

    /// Returns one line for each skipped file or directory: `path: reason`.
    pub fn skipped(&self) -> Vec<String> {
        match &self.store {
            Store::Folder(folder) => {
                let line = |(path, reason): &(PathBuf, _)| format!("{}: {reason}", path.display());
                folder.skipped.iter().map(line).collect()
            }
            Store::Idx(_) => Vec::new(),
            Store::Shards(shards) => shards.skipped(),
        }
    }

    /// Returns a key of the image that does not change when other images are added or removed.
    pub(crate) fn identity(&self, at: usize) -> u64 {
        match &self.store {
            Store::Folder(folder) => {
                // A directory splits the same way on every operating system.
                let path = folder.files[at].to_string_lossy().replace('\\', "/");
                hash(path.as_bytes())
            }
            Store::Idx(_) => at as u64,
            Store::Shards(shards) => hash(shards.files.path(at).as_bytes()),
        }
    }
}
