//! Where texts are: a folder tree, one file, or shards.

use std::{
    collections::HashSet,
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use data2vec_core::{Error, Result};
use data2vec_source::{Files, has_shards, is_of_shards};

use crate::corpus::{Flaws, JSON_LINES, OBJECT, Piece, Reading, TEXT, is_text, read, read_from};

/// Text files below a root.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// What relative paths are relative to.
    pub root: PathBuf,
    pub files: Vec<Listed>,
    /// What could not be looked into, and why.
    pub skipped: Vec<(PathBuf, String)>,
    /// What has the files, in this order, if it is not a folder.
    shards: Option<Files>,
}

#[derive(Debug)]
pub(crate) struct Listed {
    /// Relative to the root.
    pub path: PathBuf,
    pub bytes: u64,
    /// Time of the last change in ns since 1970, or a hash that tells it.
    pub changed: u128,
}

impl Listing {
    /// Text at `path`: a folder, one file of any name, or shards and a folder that has shards and no text but
    /// notes about them. What is remembered of shards is kept in `cache`.
    pub fn of(path: &Path, reading: &Reading, cache: Option<&Path>) -> Result<Self> {
        let shards = || Self::of_shards(path, reading, cache);
        if is_of_shards(path) && !(is_text(path) && path.is_file()) {
            return shards();
        }
        let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if meta.is_dir() {
            let listing = Self::walk(path)?;
            // A README lies beside many shards.
            let is_note = |file: &Listed| file.path.extension().is_some_and(|end| end == "md");
            if listing.files.iter().all(is_note) && listing.skipped.is_empty() && has_shards(path) {
                return shards();
            }
            return listing.check();
        }
        let (Some(folder), Some(name), true) = (path.parent(), path.file_name(), meta.is_file())
        else {
            return Err(Error::file(path, "is neither a folder nor a file"));
        };
        let files = vec![listed(name.into(), &meta)];
        Ok(Self { root: folder.to_owned(), files, ..Self::default() })
    }

    fn of_shards(path: &Path, reading: &Reading, cache: Option<&Path>) -> Result<Self> {
        let plain = [&TEXT[..], &JSON_LINES].concat();
        let gzipped = plain.iter().map(|end| format!("{end}.gz"));
        let mut wanted = vec![reading.json_key.clone()];
        wanted.extend(plain.iter().map(|end| (*end).to_owned()).chain(gzipped));
        wanted.push(OBJECT.into());
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let shards = Files::open(path, cache, &wanted).map_err(Error::data)?;
        let file = |at| {
            let (bytes, changed) = shards.stamp(at).map_err(Error::data)?;
            Ok(Listed { path: shards.path(at).into(), bytes, changed: changed.into() })
        };
        let files = (0..shards.len()).map(file).collect::<Result<_>>()?;
        let skipped = shards.lacking().iter().map(|why| (path.to_owned(), why.clone())).collect();
        Ok(Self { root: path.to_owned(), files, skipped, shards: Some(shards) })
    }

    /// Where a file is.
    pub fn path(&self, file: usize) -> PathBuf {
        self.root.join(&self.files[file].path)
    }

    /// Reads a file as [`read`] does.
    pub fn read(
        &self,
        file: usize,
        reading: &Reading,
        consumed: &AtomicU64,
        flaws: &mut Flaws,
        sink: &mut dyn FnMut(Piece) -> bool,
    ) -> Result<bool> {
        let path = self.path(file);
        if self.shards.is_none() {
            return read(&path, reading, consumed, flaws, sink);
        }
        let mut content = self.content(file)?;
        if self.files[file].path.extension().is_some_and(|end| end == OBJECT) {
            content = one_line(&content);
        }
        let size = content.len() as u64;
        read_from(&path, Cursor::new(content), size, reading, consumed, flaws, sink)
    }

    /// A file as it is stored.
    pub fn content(&self, file: usize) -> Result<Bytes> {
        match &self.shards {
            Some(shards) => shards.read(file).map_err(Error::data),
            None => {
                let path = self.path(file);
                Ok(fs::read(&path).map_err(|e| Error::io(path, e))?.into())
            }
        }
    }

    /// All text below `root`, in the order of the sorted names. Links are followed, each folder is
    /// entered once; hidden files and folders are left out.
    fn walk(root: &Path) -> Result<Self> {
        let mut found = Self { root: root.to_owned(), ..Self::default() };
        let mut entered = HashSet::new();
        let mut stack = vec![PathBuf::new()]; // relative to root; the next one is on top
        while let Some(relative) = stack.pop() {
            let path = root.join(&relative);
            let is_root = relative.as_os_str().is_empty();
            let looked = fs::metadata(&path).and_then(|meta| {
                if !meta.is_dir() {
                    if is_text(&relative) && meta.is_file() {
                        found.files.push(listed(relative.clone(), &meta));
                    } else if is_text(&relative) {
                        // A pipe that nobody writes to would be waited for.
                        found.skipped.push((path.clone(), "is no file".into()));
                    }
                } else if entered.insert(fs::canonicalize(&path)?) {
                    let mut names = Vec::new();
                    for entry in fs::read_dir(&path)? {
                        let name = entry?.file_name();
                        if !name.as_encoded_bytes().starts_with(b".") {
                            names.push(name);
                        }
                    }
                    names.sort();
                    stack.extend(names.into_iter().rev().map(|name| relative.join(name)));
                }
                Ok(())
            });
            match looked {
                Err(source) if is_root => return Err(Error::io(root, source)),
                Err(source) => found.skipped.push((path, source.to_string())),
                Ok(()) => {}
            }
        }
        Ok(found)
    }

    fn check(self) -> Result<Self> {
        if self.files.is_empty() {
            let known = [&TEXT[..], &JSON_LINES[..]].concat().join(", ");
            let reason = format!("no text in it (looked for {known}, and .gz of them)");
            return Err(Error::file(self.root, reason));
        }
        Ok(self)
    }

    /// Bytes of all files, as they are on the disk.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// An object without line feeds, so that it is a line; what is none is left as it is.
fn one_line(object: &Bytes) -> Bytes {
    let object_or = serde_json::from_slice::<serde_json::Value>(object);
    object_or.map_or_else(|_| object.clone(), |object| object.to_string().into())
}

fn listed(path: PathBuf, meta: &fs::Metadata) -> Listed {
    let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Listed { path, bytes: meta.len(), changed: changed.map_or(0, |time| time.as_nanos()) }
}
