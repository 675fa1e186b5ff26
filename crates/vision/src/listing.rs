//! Where images come from: a folder of files, an IDX file, or shards.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data2vec_core::random::hash;
use data2vec_core::{Error, Result};
use data2vec_source::{has_shards, is_of_shards};

use crate::feature::PatchEncoderConfig;
use crate::folder::Folder;
use crate::idx::{self, Idx};
use crate::labelled::table_in;
use crate::pixels::Pixels;
use crate::shards::Shards;

/// Images as they are stored, numbered.
#[derive(Debug)]
pub struct Images {
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// Files below a folder.
    Folder(Folder),
    /// One file with all of them.
    Idx(Idx),
    /// Examples of shards.
    Shards(Box<Shards>),
}

impl Images {
    /// Lists the images at `path`: a folder with images anywhere below it, one image file, an IDX
    /// file (gzipped or not), a folder with one (`train-images-idx3-ubyte` is chosen), or shards
    /// ([`data2vec_source`]) and a folder with shards and no images. What is remembered of shards is kept in
    /// `cache`, or without one in the user's own folder for such.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] or [`Error::Data`] if `path` cannot be read or holds no image.
    pub fn open(path: impl AsRef<Path>, cache: Option<&Path>) -> Result<Self> {
        let path = path.as_ref();
        let shards = || Self::of(Store::Shards(Box::new(Shards::open(path, cache)?)));
        if is_of_shards(path) {
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
        Self::of(store)
    }

    /// The files that a folder was found to have.
    pub(crate) fn of_folder(folder: Folder) -> Result<Self> {
        Self::of(Store::Folder(folder))
    }

    fn of(store: Store) -> Result<Self> {
        let images = Self { store };
        match u32::try_from(images.len()) {
            Ok(_) => Ok(images),
            Err(_) => Err(Error::file(images.path(), "has more than 2^32 images: split it")),
        }
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Folder(folder) => folder.files.len(),
            Store::Idx(idx) => idx.len(),
            Store::Shards(shards) => shards.files.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers of all images.
    pub(crate) fn all(&self) -> Arc<[u32]> {
        (0..self.len() as u32).collect()
    }

    /// The folder or the file.
    pub(crate) fn path(&self) -> &Path {
        match &self.store {
            Store::Folder(folder) => &folder.root,
            Store::Idx(idx) => &idx.path,
            Store::Shards(shards) => shards.files.place(),
        }
    }

    /// An image as it is stored.
    ///
    /// # Errors
    /// As [`Pixels::read`].
    pub fn read(&self, at: usize) -> Result<Pixels> {
        match &self.store {
            Store::Folder(folder) => Pixels::read(folder.root.join(&folder.files[at])),
            Store::Idx(idx) => idx.image(at),
            Store::Shards(shards) => {
                let bytes = shards.files.read(at).map_err(Error::data)?;
                Pixels::read_from(&bytes, shards.files.place().join(shards.files.path(at)))
            }
        }
    }

    /// What to call an image in a message.
    pub fn name(&self, at: usize) -> String {
        match &self.store {
            Store::Folder(folder) => folder.root.join(&folder.files[at]).display().to_string(),
            Store::Idx(idx) => format!("{}, image {at}", idx.path.display()),
            Store::Shards(shards) => {
                shards.files.place().join(shards.files.path(at)).display().to_string()
            }
        }
    }

    /// An image's class, if it has one: the folder right below the root that holds it, its label in the file
    /// beside the IDX file, or what its example in a shard says.
    ///
    /// # Errors
    /// [`Error::Data`] if a shard cannot be read.
    pub fn label(&self, at: usize) -> Result<Option<usize>> {
        Ok(match &self.store {
            Store::Folder(folder) => folder.label(at),
            Store::Idx(idx) => idx.label(at),
            Store::Shards(shards) => shards.labels()?.of[at].map(|label| label as usize),
        })
    }

    /// Names of the classes; in IDX files, their numbers.
    ///
    /// # Errors
    /// [`Error::Data`] if a shard cannot be read.
    pub fn classes(&self) -> Result<Vec<String>> {
        Ok(match &self.store {
            Store::Folder(folder) => folder.classes.clone(),
            Store::Idx(idx) => (0..idx.classes()).map(|class| class.to_string()).collect(),
            Store::Shards(shards) => shards.labels()?.classes.clone(),
        })
    }

    /// The class of each image by name, where it is known: as [`label`](Self::label), or in a folder with a
    /// `labels.tsv` what that says.
    ///
    /// # Errors
    /// If the table, or a shard, cannot be read.
    pub fn names_of_classes(&self) -> Result<Vec<Option<String>>> {
        if let Store::Folder(folder) = &self.store
            && let Some(table) = table_in(&folder.root)?
        {
            return Ok(folder.files.iter().map(|file| table.get(file).cloned()).collect());
        }
        let classes = self.classes()?;
        let name = |at| Ok(self.label(at)?.and_then(|label| classes.get(label).cloned()));
        (0..self.len()).map(name).collect()
    }

    /// An image's relative path, and its file as it is stored; of those in IDX files, a PNG that is named by
    /// its number.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn file(&self, at: usize) -> Result<(PathBuf, Vec<u8>)> {
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

    /// Has what these images need fetched, if it is far away.
    pub(crate) fn prefetch(&self, at: impl Iterator<Item = usize>) {
        if let Store::Shards(shards) = &self.store {
            shards.files.prefetch(at);
        }
    }

    /// What could not be looked into, and why.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        match &self.store {
            Store::Folder(folder) => &folder.skipped,
            Store::Idx(_) => &[],
            Store::Shards(shards) => &shards.skipped,
        }
    }

    /// A number that stays the image's when others come and go.
    pub(crate) fn identity(&self, at: usize) -> u64 {
        match &self.store {
            Store::Folder(folder) => {
                // The same folder splits the same on every system.
                let path = folder.files[at].to_string_lossy().replace('\\', "/");
                hash(path.as_bytes())
            }
            Store::Idx(_) => at as u64,
            Store::Shards(shards) => hash(shards.files.path(at).as_bytes()),
        }
    }
}

/// Checks that images on disk can be what the encoder wants.
pub(crate) fn check(features: &PatchEncoderConfig) -> Result<()> {
    features.validate()?;
    if ![1, 3].contains(&features.channels) {
        let reason = format!("images on disk have 1 or 3, not {}", features.channels);
        return Err(Error::config("features.channels", reason));
    }
    Ok(())
}
