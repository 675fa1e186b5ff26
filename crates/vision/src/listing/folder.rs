//! Image files in a directory tree.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

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
        let mut entered = HashSet::new();
        found.walk(Path::new(""), &mut entered)?;
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

    /// Lists the directory `below`, a path relative to the root, recursively.
    fn walk(&mut self, below: &Path, entered: &mut HashSet<PathBuf>) -> Result<()> {
        let path = self.root.join(below);
        let names = fs::canonicalize(&path).and_then(|real| {
            if !entered.insert(real) {
                return Ok(Vec::new()); // a link to a directory already listed
            }
            let mut names = Vec::new();
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                if !hidden {
                    names.push((entry.file_name(), entry.file_type()?));
                }
            }
            names.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(names)
        });
        let names = match names {
            Ok(names) => names,
            Err(source) if below.as_os_str().is_empty() => return Err(Error::io(path, source)),
            Err(source) => {
                self.skipped.push((path, source.to_string()));
                return Ok(());
            }
        };
        for (name, kind) in names {
            let relative = below.join(name);
            let path = self.root.join(&relative);
            // Only links need a second system call; a dataset has millions of files.
            let is_dir = if kind.is_symlink() {
                match fs::metadata(&path) {
                    Ok(meta) => meta.is_dir(),
                    Err(_) if !is_image(&relative) => continue,
                    Err(source) => {
                        self.skipped.push((path, source.to_string()));
                        continue;
                    }
                }
            } else {
                kind.is_dir()
            };
            if is_dir {
                self.walk(&relative, entered)?;
            } else if is_image(&relative) {
                self.files.push(relative);
            }
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
