//! Where images come from: a folder of files, or an IDX file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data2vec_core::random::hash;
use data2vec_core::{Error, Result};

use crate::feature::PatchEncoderConfig;
use crate::folder::Folder;
use crate::idx::{self, Idx};
use crate::pixels::Pixels;

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
}

impl Images {
    /// Lists the images at `path`: a folder with images anywhere below it, one image file, an IDX
    /// file (gzipped or not), or a folder with one (`train-images-idx3-ubyte` is chosen).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if `path` cannot be read or holds no image.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let is_dir = fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir();
        let idx = match is_dir {
            true => idx::find(path)?,
            false => idx::is_idx(path).then(|| path.to_owned()),
        };
        let store = match idx {
            Some(idx) => Store::Idx(Idx::read(&idx)?),
            None => Store::Folder(Folder::list(path)?),
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
        }
    }

    /// What to call an image in a message.
    pub fn name(&self, at: usize) -> String {
        match &self.store {
            Store::Folder(folder) => folder.root.join(&folder.files[at]).display().to_string(),
            Store::Idx(idx) => format!("{}, image {at}", idx.path.display()),
        }
    }

    /// An image's class, if it has one: the folder right below the root that holds it, or its label in
    /// the file beside the IDX file.
    pub fn label(&self, at: usize) -> Option<usize> {
        match &self.store {
            Store::Folder(folder) => folder.label(at),
            Store::Idx(idx) => idx.label(at),
        }
    }

    /// Names of the classes; in IDX files, their numbers.
    pub fn classes(&self) -> Vec<String> {
        match &self.store {
            Store::Folder(folder) => folder.classes.clone(),
            Store::Idx(idx) => (0..idx.classes()).map(|class| class.to_string()).collect(),
        }
    }

    /// What could not be looked into, and why.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        match &self.store {
            Store::Folder(folder) => &folder.skipped,
            Store::Idx(_) => &[],
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
