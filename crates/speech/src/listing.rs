//! Finds the recordings at a path: a directory, a manifest or table, a file, or shards.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use data2vec_core::io::walk::{Walk, walk};
use data2vec_core::{Error, Result};
use data2vec_source::{has_shards, is_shard_path};

use crate::audio::EXTENSIONS;
use crate::text_file::read_text;

pub(crate) mod durations;
pub(crate) mod store;

use store::Store;

/// Recordings found at a path.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Holds the recordings, in the order of `files`.
    pub(crate) store: Store,
    /// Path relative to the root of the store (or absolute), and the length in samples if a manifest
    /// has it.
    pub(crate) files: Vec<(PathBuf, Option<u64>)>,
    /// Paths that cannot be read, with the reason.
    pub(crate) skipped: Vec<(PathBuf, String)>,
}

/// Lists the recordings at `path`: a directory tree (LibriSpeech or any other), a fairseq manifest
/// or a table of labels (`.tsv`), one audio file, shards, or a directory with shards and no audio
/// files. `cache` is the directory of the shard index.
pub(crate) fn list(path: &Path, cache: Option<&Path>) -> Result<Listing> {
    if is_shard_path(path) {
        return shards(path, cache);
    }
    let meta = fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if meta.is_dir() {
        let listing = list_directory(path)?;
        let is_empty = listing.files.is_empty() && listing.skipped.is_empty();
        return if is_empty && has_shards(path) { shards(path, cache) } else { Ok(listing) };
    }
    if has_extension(path, &["tsv"]) {
        return if table_kind(path)?.is_some() { table(path) } else { manifest(path) };
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::file(path, "is neither a directory nor a file"));
    };
    let files = vec![(PathBuf::from(name), None)];
    Ok(Listing::in_directory(directory, files))
}

fn shards(path: &Path, cache: Option<&Path>) -> Result<Listing> {
    let shards = store::open_shards(path, cache)?;
    let files = (0..shards.len()).map(|at| (PathBuf::from(shards.path(at)), None)).collect();
    let missing = shards.missing().iter();
    let skipped = missing.map(|reason| (path.to_owned(), reason.clone())).collect();
    Ok(Listing { store: Store::Shards(Box::new(shards)), files, skipped })
}

impl Listing {
    fn in_directory(root: &Path, files: Vec<(PathBuf, Option<u64>)>) -> Self {
        Self { store: Store::Directory(root.to_owned()), files, skipped: Vec::new() }
    }
}

/// Lists all audio files below `root`; other files are transcripts, licences, covers.
fn list_directory(root: &Path) -> Result<Listing> {
    let Walk { files, skipped } = walk(root, |path| has_extension(path, &EXTENSIONS))?;
    let files = files.into_iter().map(|file| (file, None)).collect();
    Ok(Listing { skipped, ..Listing::in_directory(root, files) })
}

/// Kind of label in a `.tsv` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// `path<TAB>text`
    Text,
    /// `path<TAB>label`
    Label,
}

/// Returns the kind of a `.tsv` table; `None` if the first line is not the header of one.
pub(crate) fn table_kind(path: &Path) -> Result<Option<Table>> {
    let mut start = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut start))
        .map_err(|source| Error::io(path, source))?;
    let start = String::from_utf8_lossy(&start);
    Ok(match start.trim_start_matches('\u{feff}').lines().next() {
        Some("path\ttext") => Some(Table::Text),
        Some("path\tlabel") => Some(Table::Label),
        _ => None,
    })
}

/// Lists the files of a table; their paths are relative to it.
fn table(path: &Path) -> Result<Listing> {
    let text = read_text(path)?;
    let lines = text.lines().skip(1).filter(|line| !line.trim().is_empty());
    let file = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
    let files = lines.map(|line| (PathBuf::from(file(line).trim_start_matches("./")), None));
    Ok(Listing::in_directory(path.parent().unwrap_or(Path::new("")), files.collect()))
}

/// Lists the files of a fairseq manifest: the root on line 1, then `path<TAB>samples`.
fn manifest(path: &Path) -> Result<Listing> {
    let text = read_text(path)?;
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if first.trim().is_empty() || first.contains('\t') {
        let reason = "line 1: must be the directory that the paths below are relative to";
        return Err(Error::file(path, reason));
    }
    // `join` keeps an absolute root; a relative one is relative to the manifest.
    let root = path.parent().unwrap_or(Path::new("")).join(first.trim_end());
    let mut files = Vec::new();
    for (number, line) in (2..).zip(lines) {
        if line.trim().is_empty() {
            continue;
        }
        let entry = line.split_once('\t').and_then(|(file, samples)| {
            let samples: u64 = samples.trim().parse().ok()?;
            (!file.is_empty() && samples > 0).then(|| (PathBuf::from(file), Some(samples)))
        });
        let Some(entry) = entry else {
            let shown: String = line.chars().take(80).collect();
            let reason = format!("line {number}: must be `path<TAB>samples`, not {shown:?}");
            return Err(Error::file(path, reason));
        };
        files.push(entry);
    }
    Ok(Listing::in_directory(&root, files))
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    extensions.iter().any(|known| known.eq_ignore_ascii_case(extension))
}
