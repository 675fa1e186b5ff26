//! Files of texts as they are stored, to be looked at one by one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use bytes::Bytes;
use data2vec_core::{Error, HeadTask, Result};

use crate::{
    LabelledFiles, TextDataConfig,
    corpus::{Flaws, Reading},
    glue::{Kind, kind},
    listing::Listing,
    tsv::{self, Skipped},
};

/// The files that [`TextDataset`](crate::TextDataset) reads, or tables of labelled texts.
#[derive(Debug)]
pub struct TextFiles {
    files: Kept,
    reading: Reading,
}

#[derive(Debug)]
enum Kept {
    /// Texts.
    Texts(Box<Listing>),
    /// Tables of labelled texts.
    Tables(Vec<PathBuf>),
}

/// What is in one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextFile {
    /// Letters of each document; of a pair of texts, those of both.
    pub documents: Vec<u64>,
    /// How many there are of each label, if there are labels.
    pub labels: BTreeMap<String, u64>,
    /// Lines of no use, each with its number and reason.
    pub unusable: Vec<String>,
    /// Places where bytes were not UTF-8 and `U+FFFD` stands now.
    pub replaced: u64,
}

impl TextFiles {
    /// Lists the texts at `path` as [`TextDataset::open`](crate::TextDataset::open) does with `config`; or a
    /// table of labelled texts, `.tsv`, and a folder with such tables and no texts.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if `path` cannot be read or holds no text.
    pub fn open(path: impl AsRef<Path>, config: &TextDataConfig) -> Result<Self> {
        let (path, reading) = (path.as_ref(), config.reading());
        let is_table = |file: &PathBuf| kind(file) == Kind::Table;
        let tables = || -> Option<Vec<PathBuf>> {
            let found = LabelledFiles::of(path).ok()?;
            let files: Vec<_> = [found.train].into_iter().chain(found.validation).collect();
            files.iter().all(is_table).then_some(files)
        };
        let files = match (is_table(&path.to_owned()), tables()) {
            (true, Some(tables)) => Kept::Tables(tables),
            (_, tables) => match (Listing::of(path, &reading, None), tables) {
                (Err(_), Some(tables)) => Kept::Tables(tables),
                (listing, _) => Kept::Texts(Box::new(listing?)),
            },
        };
        Ok(Self { files, reading })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.files {
            Kept::Texts(listing) => listing.files.len(),
            Kept::Tables(tables) => tables.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a file is.
    pub fn path(&self, index: usize) -> PathBuf {
        match &self.files {
            Kept::Texts(listing) => listing.path(index),
            Kept::Tables(tables) => tables[index].clone(),
        }
    }

    /// What could not be looked into, and why.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        match &self.files {
            Kept::Texts(listing) => &listing.skipped,
            Kept::Tables(_) => &[],
        }
    }

    /// A file's relative path, what its name ends in, and its content as it is stored.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn stored(&self, index: usize) -> Result<(&Path, String, Bytes)> {
        let (path, content) = match &self.files {
            Kept::Texts(listing) => (listing.files[index].path.as_path(), listing.content(index)?),
            Kept::Tables(tables) => {
                let path = tables[index].as_path();
                (path, fs::read(path).map_err(|e| Error::io(path, e))?.into())
            }
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (stem, end) = name.rsplit_once('.').unwrap_or((&name, ""));
        let inner = stem.rsplit_once('.').filter(|_| end.eq_ignore_ascii_case("gz"));
        let field = inner.map_or(end.to_owned(), |(_, inner)| format!("{inner}.{end}"));
        Ok((path, field, content))
    }

    /// Whether they are tables of labelled texts.
    pub fn are_tables(&self) -> bool {
        matches!(self.files, Kept::Tables(_))
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if it cannot be read, or is not UTF-8 and that is refused.
    pub fn read(&self, index: usize) -> Result<TextFile> {
        match &self.files {
            Kept::Texts(listing) => self.texts(listing, index),
            Kept::Tables(tables) => labelled(&tables[index]),
        }
    }

    fn texts(&self, listing: &Listing, index: usize) -> Result<TextFile> {
        let (mut file, mut flaws) = (TextFile::default(), Flaws::default());
        listing.read(index, &self.reading, &AtomicU64::new(0), &mut flaws, &mut |piece| {
            let document = piece.document as usize;
            if file.documents.len() <= document {
                file.documents.resize(document + 1, 0);
            }
            file.documents[document] += piece.text.chars().count() as u64;
            true
        })?;
        let Flaws { replaced, unusable } = flaws;
        Ok(TextFile { unusable, replaced, ..file })
    }
}

fn labelled(path: &Path) -> Result<TextFile> {
    let mut skipped = Skipped::default();
    let records = match tsv::read(path, HeadTask::Classification, &mut skipped) {
        Err(Error::File { .. }) => {
            skipped = Skipped::default();
            tsv::read(path, HeadTask::Regression, &mut skipped)?
        }
        records => records?,
    };
    let mut file = TextFile { unusable: skipped.list(), ..TextFile::default() };
    for record in records {
        let letters = record.texts.iter().map(|text| text.chars().count() as u64).sum();
        file.documents.push(letters);
        *file.labels.entry(record.label).or_default() += 1;
    }
    Ok(file)
}
