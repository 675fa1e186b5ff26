//! Where images come from: a folder of files, or an IDX file.

use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::random::hash;
use data2vec_core::{Error, Result};

use crate::feature::PatchEncoderConfig;
use crate::folder::Folder;
use crate::idx::{self, Idx};
use crate::pixels::Pixels;

/// Images on disk, numbered.
#[derive(Debug)]
pub(crate) enum Source {
    /// Files below a folder.
    Folder(Folder),
    /// One file with all of them.
    Idx(Idx),
}

impl Source {
    /// Lists the images at `path`: a folder with images anywhere below it, one image file, an IDX
    /// file (gzipped or not), or a folder with one (`train-images-idx3-ubyte` is chosen).
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let is_dir = fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir();
        let idx = match is_dir {
            true => idx::find(path)?,
            false => idx::is_idx(path).then(|| path.to_owned()),
        };
        let source = match idx {
            Some(idx) => Self::Idx(Idx::read(&idx)?),
            None => Self::Folder(Folder::list(path)?),
        };
        source.count()?;
        Ok(source)
    }

    /// How many images there are.
    pub(crate) fn count(&self) -> Result<u32> {
        let count = match self {
            Self::Folder(folder) => folder.files.len(),
            Self::Idx(idx) => idx.len(),
        };
        u32::try_from(count)
            .map_err(|_| Error::file(self.path(), "has more than 2^32 images: split it"))
    }

    /// The folder or the file.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => &folder.root,
            Self::Idx(idx) => &idx.path,
        }
    }

    /// An image as it is on disk, with `channels` channels.
    pub(crate) fn read(&self, at: u32, channels: i64) -> Result<Pixels> {
        let pixels = match self {
            Self::Folder(folder) => Pixels::read(folder.root.join(&folder.files[at as usize]))?,
            Self::Idx(idx) => idx.image(at as usize)?,
        };
        pixels.with_channels(channels as usize)
    }

    /// What to call an image in a message.
    pub(crate) fn name(&self, at: u32) -> String {
        match self {
            Self::Folder(folder) => {
                folder.root.join(&folder.files[at as usize]).display().to_string()
            }
            Self::Idx(idx) => format!("{}, image {at}", idx.path.display()),
        }
    }

    /// An image's class, if it has one: the folder right below the root that holds it, or its label in
    /// the file beside the IDX file.
    pub(crate) fn label(&self, at: u32) -> Option<usize> {
        match self {
            Self::Folder(folder) => folder.label(at as usize),
            Self::Idx(idx) => idx.label(at as usize),
        }
    }

    /// Names of the classes; in IDX files, their numbers.
    pub(crate) fn classes(&self) -> Vec<String> {
        match self {
            Self::Folder(folder) => folder.classes.clone(),
            Self::Idx(idx) => (0..idx.classes()).map(|class| class.to_string()).collect(),
        }
    }

    /// What could not be looked into, and why.
    pub(crate) fn skipped(&self) -> &[(PathBuf, String)] {
        match self {
            Self::Folder(folder) => &folder.skipped,
            Self::Idx(_) => &[],
        }
    }

    /// A number that stays the image's when others come and go.
    pub(crate) fn identity(&self, at: u32) -> u64 {
        match self {
            Self::Folder(folder) => {
                // The same folder splits the same on every system.
                let path = folder.files[at as usize].to_string_lossy().replace('\\', "/");
                hash(path.as_bytes())
            }
            Self::Idx(_) => u64::from(at),
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
