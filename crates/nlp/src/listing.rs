//! Finds the texts at a path: a directory tree, one file, or shards.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use data2vec_core::io::walk::{Walk, walk};
use data2vec_core::{Error, Result};
use data2vec_source::{Files, has_shards, is_shard_path};

mod reader;

pub use reader::read_text;
pub(crate) use reader::{Defects, Piece, ReadOptions, is_utf16};
use reader::{JSON, JSON_LINES, PLAIN, is_text};

/// The text files below a root directory, or in shards.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The directory or the shards to which paths are relative.
    pub root: PathBuf,
    pub files: Vec<ListedFile>,
    /// Unreadable files and directories, with the reason.
    skipped: Vec<(PathBuf, String)>,
    /// The shards that contain the files, in the same order; `None` for a directory.
    shards: Option<Files>,
}

/// A text file.
#[derive(Debug)]
pub(crate) struct ListedFile {
    /// Path relative to the root.
    pub path: PathBuf,
    /// Stored size.
    pub bytes: u64,
    /// Modification time in ns since 1970, or a hash of the shard's version.
    pub changed: u128,
}

impl Listing {
    /// Lists the texts at `path`: a directory, one file of any name, shards, or a directory with
    /// shards and no text except notes (`.md`). `cache` is the directory of the shard index.
    pub fn open(path: &Path, options: &ReadOptions, cache: Option<&Path>) -> Result<Self> {
        let shards = || Self::open_shards(path, options, cache);
        if is_shard_path(path) && !(is_text(path) && path.is_file()) {
            return shards();
        }
        let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if meta.is_dir() {
            let listing = Self::list_directory(path)?;
            // Shards often come with a README.
            let is_note = |file: &ListedFile| file.path.extension().is_some_and(|end| end == "md");
            if listing.files.iter().all(is_note) && listing.skipped.is_empty() && has_shards(path) {
                return shards();
            }
            return listing.check();
        }
        let (Some(dir), Some(name), true) = (path.parent(), path.file_name(), meta.is_file())
        else {
            return Err(Error::file(path, "is neither a directory nor a regular file"));
        };
        let files = vec![listed_file(name.into(), &meta)];
        Ok(Self { root: dir.to_owned(), files, ..Self::default() })
    }

    fn open_shards(path: &Path, options: &ReadOptions, cache: Option<&Path>) -> Result<Self> {
        let plain = [&PLAIN[..], &JSON_LINES].concat();
        let gzipped = plain.iter().map(|end| format!("{end}.gz"));
        let mut fields = vec![options.json_key.clone()];
        fields.extend(plain.iter().map(|end| (*end).to_owned()).chain(gzipped));
        fields.push(JSON.into());
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let shards = Files::open(path, cache, &fields).map_err(Error::data)?;
        let file = |at| {
            let (bytes, changed) = shards.stamp(at).map_err(Error::data)?;
            Ok(ListedFile { path: shards.path(at).into(), bytes, changed: changed.into() })
        };
        let files = (0..shards.len()).map(file).collect::<Result<_>>()?;
        let skipped = shards.missing().iter().map(|why| (path.to_owned(), why.clone())).collect();
        Ok(Self { root: path.to_owned(), files, skipped, shards: Some(shards) })
    }

    /// Returns the path of a file.
    pub fn path(&self, file: usize) -> PathBuf {
        self.root.join(&self.files[file].path)
    }

    /// Passes the lines of a file to `sink`, see [`reader::read`].
    pub fn read(
        &self,
        file: usize,
        options: &ReadOptions,
        consumed: &AtomicU64,
        defects: &mut Defects,
        sink: &mut dyn FnMut(Piece) -> bool,
    ) -> Result<bool> {
        let path = self.path(file);
        if self.shards.is_none() {
            return reader::read(&path, options, consumed, defects, sink);
        }
        let mut content = self.read_file(file)?;
        if self.files[file].path.extension().is_some_and(|end| end == JSON) {
            content = to_json_line(&content);
        }
        let size = content.len() as u64;
        reader::read_from(&path, Cursor::new(content), size, options, consumed, defects, sink)
    }

    /// Reads a file without decoding it.
    pub fn read_file(&self, file: usize) -> Result<Bytes> {
        match &self.shards {
            Some(shards) => shards.read(file).map_err(Error::data),
            None => {
                let path = self.path(file);
                Ok(fs::read(&path).map_err(|e| Error::io(path, e))?.into())
            }
        }
    }

    /// Lists all texts below `root`.
    fn list_directory(root: &Path) -> Result<Self> {
        let Walk { files, skipped } = walk(root, is_text)?;
        let mut listing = Self { root: root.to_owned(), skipped, ..Self::default() };
        for file in files {
            let path = root.join(&file);
            match fs::metadata(&path) {
                Ok(meta) if meta.is_file() => listing.files.push(listed_file(file, &meta)),
                // Reading a pipe without a writer would block forever.
                Ok(_) => listing.skipped.push((path, "is not a regular file".into())),
                Err(source) => listing.skipped.push((path, source.to_string())),
            }
        }
        Ok(listing)
    }

    fn check(self) -> Result<Self> {
        if self.files.is_empty() {
            let known = [&PLAIN[..], &JSON_LINES[..]].concat().join(", ");
            let reason = format!("no text in it (looked for {known}, and .gz of them)");
            return Err(Error::file(self.root, reason));
        }
        Ok(self)
    }

    /// Returns the stored size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Returns one line for each skipped file or directory: `path: reason`.
    pub fn skipped(&self) -> Vec<String> {
        let line = |(path, reason): &(PathBuf, _)| format!("{}: {reason}", path.display());
        self.skipped.iter().map(line).collect()
    }
}

/// Removes line feeds from a JSON object, so that it becomes a JSON line; keeps anything else.
fn to_json_line(object: &Bytes) -> Bytes {
    let parsed = serde_json::from_slice::<serde_json::Value>(object);
    parsed.map_or_else(|_| object.clone(), |parsed| parsed.to_string().into())
}

fn listed_file(path: PathBuf, meta: &fs::Metadata) -> ListedFile {
    let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    ListedFile { path, bytes: meta.len(), changed: changed.map_or(0, |time| time.as_nanos()) }
}
