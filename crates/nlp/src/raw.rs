//! Text files as they are stored, for statistics and packing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use data2vec_core::{Error, HeadTask, Result};

use crate::config::TextDataConfig;
use crate::labelled::{FileKind, LabelledFiles, Skipped, read_table};
use crate::listing::{Defects, Listing, ReadOptions};

/// The files that [`TextDataset`](crate::TextDataset) reads, or tables of labelled texts.
#[derive(Debug)]
pub struct TextFiles {
    store: Store,
    options: ReadOptions,
}

#[derive(Debug)]
enum Store {
    Texts(Box<Listing>),
    /// Tables of labelled texts.
    Tables(Vec<PathBuf>),
}

/// Statistics of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextFileStats {
    /// Number of characters of each document; for a pair of texts, of both together.
    pub chars: Vec<u64>,
    /// Number of examples per label; empty without labels.
    pub labels: BTreeMap<String, u64>,
    /// Invalid lines, each with its number and reason.
    pub invalid: Vec<String>,
    /// Number of byte sequences that are not UTF-8 and were replaced by `U+FFFD`.
    pub replaced: u64,
}

impl TextFiles {
    /// Lists the texts at `path` as [`TextDataset::open`](crate::TextDataset::open) does with
    /// `config`; or the tables, if `path` is a table of labelled texts (`.tsv`) or a directory with
    /// such tables and no texts.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::File`] if `path` cannot be read or contains no text.
    pub fn open(path: impl AsRef<Path>, config: &TextDataConfig) -> Result<Self> {
        let (path, options) = (path.as_ref(), ReadOptions::new(config));
        let is_table = |file: &Path| FileKind::of(file) == FileKind::Table;
        let tables = || -> Option<Vec<PathBuf>> {
            let found = LabelledFiles::find(path).ok()?;
            let files: Vec<_> = [found.train].into_iter().chain(found.validation).collect();
            files.iter().all(|file| is_table(file)).then_some(files)
        };
        let store = match (is_table(path), tables()) {
            (true, Some(tables)) => Store::Tables(tables),
            (_, tables) => match (Listing::open(path, &options, None), tables) {
                (Err(_), Some(tables)) => Store::Tables(tables),
                (listing, _) => Store::Texts(Box::new(listing?)),
            },
        };
        Ok(Self { store, options })
    }

    /// Returns the number of files.
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Texts(listing) => listing.files.len(),
            Store::Tables(tables) => tables.len(),
        }
    }

    /// Returns true if there are no files.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the path of a file.
    pub fn path(&self, index: usize) -> PathBuf {
        match &self.store {
            Store::Texts(listing) => listing.path(index),
            Store::Tables(tables) => tables[index].clone(),
        }
    }

    /// Returns one line for each skipped file or directory: `path: reason`.
    pub fn skipped(&self) -> Vec<String> {
        match &self.store {
            Store::Texts(listing) => listing.skipped(),
            Store::Tables(_) => Vec::new(),
        }
    }

    /// Reads a file without decoding it: returns its relative path, its extension (with `.gz`) and
    /// its bytes.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::Data`] if the file cannot be read.
    pub fn read_file(&self, index: usize) -> Result<(&Path, String, Bytes)> {
        let (path, content) = match &self.store {
            Store::Texts(listing) => {
                (listing.files[index].path.as_path(), listing.read_file(index)?)
            }
            Store::Tables(tables) => {
                let path = tables[index].as_path();
                (path, fs::read(path).map_err(|e| Error::io(path, e))?.into())
            }
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (stem, end) = name.rsplit_once('.').unwrap_or((&name, ""));
        let inner = stem.rsplit_once('.').filter(|_| end.eq_ignore_ascii_case("gz"));
        let extension = inner.map_or(end.to_owned(), |(_, inner)| format!("{inner}.{end}"));
        Ok((path, extension, content))
    }

    /// Returns true if the files are tables of labelled texts.
    pub fn has_labels(&self) -> bool {
        matches!(self.store, Store::Tables(_))
    }

    /// Reads a file completely and computes its statistics.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::File`] if the file cannot be read, or is not UTF-8 and the
    /// settings refuse that.
    pub fn stats(&self, index: usize) -> Result<TextFileStats> {
        match &self.store {
            Store::Texts(listing) => self.text_stats(listing, index),
            Store::Tables(tables) => table_stats(&tables[index]),
        }
    }

    fn text_stats(&self, listing: &Listing, index: usize) -> Result<TextFileStats> {
        let (mut chars, mut defects) = (Vec::new(), Defects::default());
        listing.read(index, &self.options, &AtomicU64::new(0), &mut defects, &mut |piece| {
            let document = piece.document as usize;
            if chars.len() <= document {
                chars.resize(document + 1, 0);
            }
            chars[document] += piece.text.chars().count() as u64;
            true
        })?;
        let Defects { replaced, invalid } = defects;
        Ok(TextFileStats { chars, invalid, replaced, ..TextFileStats::default() })
    }
}

fn table_stats(path: &Path) -> Result<TextFileStats> {
    let mut skipped = Skipped::default();
    let records = match read_table(path, HeadTask::Classification, &mut skipped) {
        Err(Error::File { .. }) => {
            skipped = Skipped::default();
            read_table(path, HeadTask::Regression, &mut skipped)?
        }
        records => records?,
    };
    let mut stats = TextFileStats { invalid: skipped.list(), ..TextFileStats::default() };
    for record in records {
        stats.chars.push(record.texts.iter().map(|text| text.chars().count() as u64).sum());
        *stats.labels.entry(record.label).or_default() += 1;
    }
    Ok(stats)
}
