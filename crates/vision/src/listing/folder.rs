//! Folders of images.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::{Error, Result};

use crate::pixels::EXTENSIONS;

/// Image files below a root.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) root: PathBuf,
    /// Relative to the root, in the order of their names.
    pub(crate) files: Vec<PathBuf>,
    /// What could not be looked into, and why.
    pub(crate) skipped: Vec<(PathBuf, String)>,
    /// Names of the folders right below the root that hold images, sorted.
    pub(crate) classes: Vec<String>,
}

impl Folder {
    /// All images below the folder `root`, or the one image that it is. Links are followed, each
    /// folder is entered once; hidden files and folders are left out.
    pub(crate) fn list(root: &Path) -> Result<Self> {
        let meta = fs::metadata(root).map_err(|e| Error::io(root, e))?;
        let mut found = Self {
            root: root.to_owned(),
            files: Vec::new(),
            skipped: Vec::new(),
            classes: Vec::new(),
        };
        if !meta.is_dir() {
            let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
                return Err(Error::file(root, "is neither a folder nor a file"));
            };
            (found.root, found.files) = (parent.to_owned(), vec![name.into()]);
            return Ok(found);
        }
        let mut entered = HashSet::new();
        found.walk(Path::new(""), &mut entered)?;
        let classes: BTreeSet<String> = found.files.iter().filter_map(|file| class(file)).collect();
        found.classes = classes.into_iter().collect();
        Ok(found)
    }

    /// Checks that there is an image.
    pub(crate) fn check(&self) -> Result<()> {
        if self.files.is_empty() {
            let mut reason = format!("no image in it (looked for {})", EXTENSIONS.join(", "));
            if let Some((path, why)) = self.skipped.first() {
                reason.push_str(&format!("; {}: {why}", path.display()));
            }
            return Err(Error::file(&self.root, reason));
        }
        Ok(())
    }

    fn walk(&mut self, below: &Path, entered: &mut HashSet<PathBuf>) -> Result<()> {
        let path = self.root.join(below);
        let names = fs::canonicalize(&path).and_then(|real| {
            if !entered.insert(real) {
                return Ok(Vec::new()); // a link back
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
            // Only links cost another look: a data set has millions of files.
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

    /// Which of the classes an image belongs to.
    pub(crate) fn label(&self, index: usize) -> Option<usize> {
        self.classes.binary_search(&class(&self.files[index])?).ok()
    }
}

/// The folder right below the root.
pub(crate) fn class(file: &Path) -> Option<String> {
    let mut parts = file.components();
    let first = parts.next()?;
    parts.next()?; // the file itself, or folders in between
    Some(first.as_os_str().to_string_lossy().into_owned())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}
