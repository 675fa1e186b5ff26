//! Files of texts as they are stored, to be looked at one by one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use data2vec_core::{Error, HeadTask, Result};

use crate::{
    LabelledFiles, TextDataConfig,
    corpus::{Flaws, Listing, Reading, read},
    glue::{Kind, kind},
    tsv::{self, Skipped},
};

/// The files that [`TextDataset`](crate::TextDataset) reads, or tables of labelled texts.
#[derive(Debug)]
pub struct TextFiles {
    files: Vec<PathBuf>,
    reading: Reading,
    is_labelled: bool,
    skipped: Vec<(PathBuf, String)>,
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
        if is_table(&path.to_owned()) {
            let files = tables().unwrap_or_default();
            return Ok(Self { files, reading, is_labelled: true, skipped: Vec::new() });
        }
        match (Listing::of(path), tables()) {
            (Ok(listing), _) => {
                let files = listing.files.into_iter().map(|file| listing.root.join(file.path));
                let (files, skipped) = (files.collect(), listing.skipped);
                Ok(Self { files, reading, is_labelled: false, skipped })
            }
            (Err(_), Some(files)) => {
                Ok(Self { files, reading, is_labelled: true, skipped: Vec::new() })
            }
            (Err(error), None) => Err(error),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Where a file is.
    pub fn path(&self, index: usize) -> &Path {
        &self.files[index]
    }

    /// What could not be looked into, and why.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        &self.skipped
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if it cannot be read, or is not UTF-8 and that is refused.
    pub fn read(&self, index: usize) -> Result<TextFile> {
        let path = &self.files[index];
        if self.is_labelled { labelled(path) } else { self.texts(path) }
    }

    fn texts(&self, path: &Path) -> Result<TextFile> {
        let (mut file, mut flaws) = (TextFile::default(), Flaws::default());
        read(path, &self.reading, &AtomicU64::new(0), &mut flaws, &mut |piece| {
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
