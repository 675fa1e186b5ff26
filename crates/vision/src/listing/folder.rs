//! Image files in a directory tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::io::walk::{Walk, walk};
use data2vec_core::{Error, Result};

use crate::pixels::EXTENSIONS;

/// Image files below a root directory.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    /// Paths relative to the root, sorted.
    pub(super) files: Vec<PathBuf>,
    /// Unreadable files and directories, with the reason.
    pub(super) skipped: Vec<(PathBuf, String)>,
    /// Names of the top-level directories that contain images, sorted.
    pub(super) classes: Vec<String>,
}

impl Folder {
    /// Lists all images below the directory `root`, or the single image file `root`.
    ///
    /// Follows symbolic links and enters each directory once; ignores hidden files and
    /// directories.
    pub(super) fn list(root: &Path) -> Result<Self> {
        let meta = fs::metadata(root).map_err(|e| Error::io(root, e))?;
        let mut found = Self {
            root: root.to_owned(),
            files: Vec::new(),
            skipped: Vec::new(),
            classes: Vec::new(),
        };
        if !meta.is_dir() {
            let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
                return Err(Error::file(root, "is neither a directory nor a file"));
            };
            (found.root, found.files) = (parent.to_owned(), vec![name.into()]);
            return Ok(found);
        }
        let Walk { files, skipped } = walk(root, is_image)?;
        (found.files, found.skipped) = (files, skipped);
        let classes: BTreeSet<String> =
            found.files.iter().filter_map(|file| top_directory(file)).collect();
        found.classes = classes.into_iter().collect();
        Ok(found)
    }

    /// Returns an error if there are no images.
    pub(super) fn check(&self) -> Result<()> {
        if self.files.is_empty() {
            let mut reason = format!("no image in it (looked for {})", EXTENSIONS.join(", "));
            if let Some((path, why)) = self.skipped.first() {
                reason.push_str(&format!("; {}: {why}", path.display()));
            }
            return Err(Error::file(&self.root, reason));
        }
        Ok(())
    }

    /// Returns the class of an image as an index into `classes`.
    pub(super) fn label(&self, index: usize) -> Option<usize> {
        self.classes.binary_search(&top_directory(&self.files[index])?).ok()
    }
}

/// Returns the first directory of a relative path; `None` for a file at the root.
pub(super) fn top_directory(file: &Path) -> Option<String> {
    let mut parts = file.components();
    let first = parts.next()?;
    parts.next()?;
    Some(first.as_os_str().to_string_lossy().into_owned())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}
