//! Finds the files of a labelled corpus.

use std::path::{Path, PathBuf};

use data2vec_core::{Error, Result};
use data2vec_source::{has_shards, is_shard_path};

/// The files of a labelled corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledFiles {
    /// Training file.
    pub train: PathBuf,
    /// Validation files: none, one, or the two of MNLI.
    pub validation: Vec<PathBuf>,
}

impl LabelledFiles {
    /// Finds the files at `path`.
    ///
    /// `path` is one of: a file, which is used for training; a directory with `train.tsv` and
    /// optionally `dev.tsv` (or `dev_matched.tsv` and `dev_mismatched.tsv`, `valid.tsv`,
    /// `validation.tsv`), or with the same names as `.jsonl`, gzipped or not; a directory with one
    /// file of these types; shards, or a directory with shards only.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::File`] if nothing of these is at `path`.
    pub fn find(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e);
        if is_shard_path(path) || !std::fs::metadata(path).map_err(io)?.is_dir() {
            return Ok(Self { train: path.to_owned(), validation: Vec::new() });
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            if file.is_file() && FileKind::of(&file) != FileKind::Other {
                files.push(file);
            }
        }
        files.sort();
        let named = |name: &str| files.iter().find(|file| stem(file) == name).cloned();
        if let Some(train) = named("train") {
            let names = ["dev", "dev_matched", "dev_mismatched", "valid", "validation"];
            return Ok(Self { train, validation: names.into_iter().filter_map(named).collect() });
        }
        match &files[..] {
            [one] => Ok(Self { train: one.clone(), validation: Vec::new() }),
            [] if has_shards(path) => Ok(Self { train: path.to_owned(), validation: Vec::new() }),
            _ => {
                let reason = format!(
                    "holds neither train.tsv nor train.jsonl, but {} files of labelled texts \
                     (.tsv, .jsonl, or .gz of them); name one of them",
                    files.len()
                );
                Err(Error::file(path, reason))
            }
        }
    }
}

/// Format of a file, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// Tab-separated values; the first line names the columns.
    Table,
    /// JSON lines.
    Json,
    /// `ID<TAB>RATING<TAB>TEXT`, rated from -4 to 4 by twenty people each (Hutto and Gilbert 2014).
    Ratings,
    /// Any other file.
    Other,
}

impl FileKind {
    /// Returns the format that the name of a file implies.
    pub fn of(path: &Path) -> Self {
        let name = plain_name(path);
        match name.rsplit_once('.') {
            Some((_, "tsv")) => Self::Table,
            Some((_, "jsonl" | "ndjson")) => Self::Json,
            Some((stem, "txt")) if stem.ends_with("_groundtruth") => Self::Ratings,
            _ => Self::Other,
        }
    }
}

/// Returns the lower-case file name without `.gz`.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    name.strip_suffix(".gz").map_or(name.clone(), str::to_owned)
}

fn stem(path: &Path) -> String {
    let name = plain_name(path);
    name.split_once('.').map_or(name.clone(), |(stem, _)| stem.to_owned())
}
