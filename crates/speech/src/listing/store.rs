//! Where recordings are read from: files below a folder, or shards.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use data2vec_core::{Error, Result};
use data2vec_source::Files;

use crate::{
    LabelKind,
    audio::{self, AudioInfo, EXTENSIONS, MAX_SECONDS},
    resample::resampled_len,
};

/// What a recording in a shard may be called, besides the ends of audio files: a column.
const COLUMN: &str = "audio";
/// Fields that hold what is said.
const TEXTS: [&str; 5] = ["txt", "text", "transcript", "transcription", "sentence"];
/// Fields that hold a class.
const CLASSES: [&str; 3] = ["cls", "label", "class"];

/// Size in bytes and, in ns since 1970 or as a hash, the last change: when both are the same, so is the file.
pub(crate) type Stamp = (u64, u128);

/// Where recordings are read from.
#[derive(Debug)]
pub(crate) enum Store {
    /// Files below it.
    Folder(PathBuf),
    /// Examples of shards, numbered as they were listed.
    Shards(Box<Files>),
}

/// The recordings in the shards at `path`.
pub(crate) fn open_shards(path: &Path, cache: Option<&Path>) -> Result<Files> {
    let wanted = [&EXTENSIONS[..], &[COLUMN]].concat();
    Files::open(path, cache, &wanted).map_err(Error::data)
}

impl Store {
    /// What relative paths are relative to.
    pub fn root(&self) -> &Path {
        match self {
            Self::Folder(root) => root,
            Self::Shards(files) => files.place(),
        }
    }

    /// Decodes the recording `at` the relative `path`.
    pub fn decode(&self, at: usize, path: &Path) -> Result<(Vec<f32>, AudioInfo)> {
        let name = self.root().join(path);
        match self {
            Self::Folder(_) => audio::read_with_info(name),
            Self::Shards(_) => {
                audio::read_from_with_info(Cursor::new(self.bytes(at, path)?), &name)
            }
        }
    }

    /// Its length in samples at 16 kHz, without decoding it if that can be.
    pub fn samples(&self, at: usize, path: &Path) -> Result<u64> {
        let name = self.root().join(path);
        let Self::Shards(files) = self else { return Ok(audio::probe(name)?.samples) };
        let told = |name| files.told(at, &[name]).map_err(Error::data);
        match noted_samples(told("samples")?, told("sample_rate")?) {
            Some(samples) => Ok(samples),
            None => Ok(audio::probe_bytes(self.bytes(at, path)?, &name)?.samples),
        }
    }

    /// What tells whether it has changed.
    pub fn stamp(&self, at: usize, path: &Path) -> Option<Stamp> {
        match self {
            Self::Folder(root) => {
                let meta = fs::metadata(root.join(path)).ok()?;
                let changed = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
                Some((meta.len(), changed.as_nanos()))
            }
            Self::Shards(files) => {
                files.stamp(at).ok().map(|(size, stamp)| (size, u128::from(stamp)))
            }
        }
    }

    /// The file as it is stored.
    pub fn bytes(&self, at: usize, path: &Path) -> Result<Bytes> {
        match self {
            Self::Folder(root) => {
                let path = root.join(path);
                Ok(fs::read(&path).map_err(|source| Error::io(path, source))?.into())
            }
            Self::Shards(files) => files.read(at).map_err(Error::data),
        }
    }

    /// Has what these recordings need fetched, if it is far away.
    pub fn prefetch(&self, at: impl Iterator<Item = usize>) {
        if let Self::Shards(files) = self {
            files.prefetch(at);
        }
    }

    /// What the shard tells of it; nothing of files in a folder, which have their labels in other files.
    pub fn label(&self, at: usize, kind: LabelKind) -> Result<Option<String>> {
        let Self::Shards(files) = self else { return Ok(None) };
        let names = match kind {
            LabelKind::Text => &TEXTS[..],
            LabelKind::Class => &CLASSES[..],
        };
        files.told(at, names).map_err(Error::data)
    }
}

/// The length at 16 kHz of so many samples at that rate, if both are told and possible.
fn noted_samples(samples: Option<String>, rate: Option<String>) -> Option<u64> {
    let number = |text: Option<String>| text?.parse::<u64>().ok().filter(|&number| number > 0);
    let (samples, rate) = (number(samples)?, u32::try_from(number(rate)?).ok()?);
    let is_possible = samples / u64::from(rate) < MAX_SECONDS;
    is_possible.then(|| resampled_len(samples as usize, rate) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_are_noted_count_at_16_khz() {
        let of = |samples: &str, rate: &str| noted_samples(Some(samples.into()), Some(rate.into()));
        assert_eq!(of("16000", "16000"), Some(16_000));
        assert_eq!(of("8000", "8000"), Some(16_000));
        for (samples, rate) in
            [("", "16000"), ("5", "0"), ("0", "16000"), ("18446744073709551615", "8000")]
        {
            assert_eq!(of(samples, rate), None, "{samples}");
        }
        assert_eq!(noted_samples(Some("5".into()), None), None);
    }
}
