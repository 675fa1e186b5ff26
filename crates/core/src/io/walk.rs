//! Lists the files of a directory tree.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::error::{Error, Result};

/// Files below a directory.
#[derive(Debug, Default)]
pub struct Walk {
    /// Paths relative to the directory, in the order of sorted names.
    pub files: Vec<PathBuf>,
    /// Directories and wanted files that cannot be read, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Lists the files below `root` that `is_wanted` accepts by their relative path. Follows links,
/// enters each directory once, and ignores hidden files and directories (macOS leaves `._name.wav`
/// beside `name.wav`).
///
/// # Errors
/// Returns [`Error::Io`] if `root` itself cannot be read.
pub fn walk(root: &Path, is_wanted: impl Fn(&Path) -> bool) -> Result<Walk> {
    let (mut found, mut entered) = (Walk::default(), HashSet::new());
    let relative = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_owned();
    let entries = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    let entries = entries.filter_entry(|entry| {
        let hidden = entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
        let mut is_new =
            |dir: &Path| fs::canonicalize(dir).map_or(true, |real| entered.insert(real));
        !hidden && (!entry.file_type().is_dir() || is_new(entry.path()))
    });
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {}
            Ok(entry) => found.files.push(relative(entry.path())),
            Err(error) if error.loop_ancestor().is_some() => {} // entered already
            Err(error) if error.depth() == 0 => return Err(Error::io(root, error.into())),
            Err(error) => {
                let path = error.path().unwrap_or(root).to_owned();
                // Of dangling links, only those to wanted files matter.
                if path.is_dir() || is_wanted(&relative(&path)) {
                    let reason = error.io_error().map_or(error.to_string(), ToString::to_string);
                    found.skipped.push((path, reason));
                }
            }
        }
    }
    found.files.retain(|file| is_wanted(file));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_sorted_names_and_ignores_hidden_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        for file in ["b/2.a", "b/1.a", "a.a", "c.a", "b/x.b", ".d/3.a", "b/._1.a"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("written");
            fs::write(path, "").expect("written");
        }
        let found = walk(dir.path(), |path| path.extension() == Some("a".as_ref()));
        let files = ["a.a", "b/1.a", "b/2.a", "c.a"].map(PathBuf::from);
        assert_eq!(found.expect("a directory").files, files);
        assert!(walk(&dir.path().join("none"), |_| true).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn enters_linked_directories_once_and_reports_dangling_links() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).expect("written");
        fs::write(root.join("sub/1.a"), "").expect("written");
        symlink(&root, root.join("sub/loop")).expect("a link");
        symlink(root.join("sub"), root.join("twice")).expect("a link");
        symlink(root.join("gone"), root.join("2.a")).expect("a link");
        symlink(root.join("gone"), root.join("2.b")).expect("a link");
        let found = walk(&root, |path| path.extension() == Some("a".as_ref()));
        let Walk { files, skipped } = found.expect("a directory");
        assert_eq!(files, [PathBuf::from("sub/1.a")]);
        assert_eq!(skipped.iter().map(|(path, _)| path).collect::<Vec<_>>(), [&root.join("2.a")]);
    }
}
