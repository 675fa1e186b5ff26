//! Reads recordings from a directory or from shards.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use data2vec_core::{Error, Result};
use data2vec_source::Files;

use crate::audio::{self, AudioInfo, EXTENSIONS, MAX_SECONDS, SAMPLE_RATE};
use crate::resample::resampled_len;

/// Field name of recordings in shards, besides the file extensions: a column name.
const COLUMN: &str = "audio";

/// Size in bytes, and modification time in ns since 1970 or a hash. A file with an equal stamp is
/// taken as unchanged.
pub(crate) type Stamp = (u64, u128);

/// Storage of recordings.
#[derive(Debug)]
pub(crate) enum Store {
    /// Files below a directory.
    Directory(PathBuf),
    /// Examples of shards, in the order of the listing.
    Shards(Box<Files>),
}

/// Opens the shards at `path`.
pub(crate) fn open_shards(path: &Path, cache: Option<&Path>) -> Result<Files> {
    let fields = [&EXTENSIONS[..], &[COLUMN]].concat();
    Files::open(path, cache, &fields).map_err(Error::data)
}

impl Store {
    /// Returns the root of relative paths.
    pub(crate) fn root(&self) -> &Path {
        match self {
            Self::Directory(root) => root,
            Self::Shards(files) => files.location(),
        }
    }

    /// Decodes the recording at index `at` with the relative `path`.
    pub(crate) fn decode(&self, at: usize, path: &Path) -> Result<(Vec<f32>, AudioInfo)> {
        let name = self.root().join(path);
        match self {
            Self::Directory(_) => audio::read_with_info(name),
            Self::Shards(_) => {
                audio::read_from_with_info(Cursor::new(self.bytes(at, path)?), &name)
            }
        }
    }

    /// Returns the length in samples at 16 kHz, without decoding if the header or the fields
    /// `samples` and `sample_rate` of a shard have it.
    pub(crate) fn samples(&self, at: usize, path: &Path) -> Result<u64> {
        let name = self.root().join(path);
        let Self::Shards(_) = self else { return Ok(audio::probe(name)?.samples) };
        match stored_length(self.field(at, &["samples"])?, self.field(at, &["sample_rate"])?) {
            Some(samples) => Ok(samples),
            None => Ok(audio::probe_bytes(self.bytes(at, path)?, &name)?.samples),
        }
    }

    /// Returns the stamp that changes when the recording does.
    pub(crate) fn stamp(&self, at: usize, path: &Path) -> Option<Stamp> {
        match self {
            Self::Directory(root) => {
                let meta = fs::metadata(root.join(path)).ok()?;
                let changed = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
                Some((meta.len(), changed.as_nanos()))
            }
            Self::Shards(files) => {
                files.stamp(at).ok().map(|(size, stamp)| (size, u128::from(stamp)))
            }
        }
    }

    /// Reads a recording without decoding it.
    pub(crate) fn bytes(&self, at: usize, path: &Path) -> Result<Bytes> {
        match self {
            Self::Directory(root) => {
                let path = root.join(path);
                Ok(fs::read(&path).map_err(|source| Error::io(path, source))?.into())
            }
            Self::Shards(files) => files.read(at).map_err(Error::data),
        }
    }

    /// Starts to fetch recordings of remote shards.
    pub(crate) fn prefetch(&self, at: impl Iterator<Item = usize>) {
        if let Self::Shards(files) = self {
            files.prefetch(at);
        }
    }

    /// Returns the first of the fields `names` that the example has in its shard; `None` in a
    /// directory.
    pub(crate) fn field(&self, at: usize, names: &[&str]) -> Result<Option<String>> {
        match self {
            Self::Directory(_) => Ok(None),
            Self::Shards(files) => files.field(at, names).map_err(Error::data),
        }
    }
}

/// Returns the length at 16 kHz of `samples` at `rate` Hz, if both are there and valid.
fn stored_length(samples: Option<String>, rate: Option<String>) -> Option<u64> {
    let number = |text: Option<String>| text?.parse::<u64>().ok().filter(|&number| number > 0);
    let (samples, rate) = (number(samples)?, u32::try_from(number(rate)?).ok()?);
    let is_valid = samples / u64::from(rate) < MAX_SECONDS;
    is_valid.then(|| resampled_len(samples as usize, rate, SAMPLE_RATE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_stored_lengths_to_16_khz() {
        let length =
            |samples: &str, rate: &str| stored_length(Some(samples.into()), Some(rate.into()));
        assert_eq!(length("16000", "16000"), Some(16_000));
        assert_eq!(length("8000", "8000"), Some(16_000));
        for (samples, rate) in
            [("", "16000"), ("5", "0"), ("0", "16000"), ("18446744073709551615", "8000")]
        {
            assert_eq!(length(samples, rate), None, "{samples}");
        }
        assert_eq!(stored_length(Some("5".into()), None), None);
    }
}
