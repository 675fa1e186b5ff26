//! Bytes of a shard, read at any place from any thread.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::cache::Cache;
use crate::places::{Shard, is_remote};
use crate::remote::{Remote, Stores};
use crate::{Error, Result, gzip};

/// An open shard.
pub(crate) struct Blob {
    bytes: Bytes,
    len: u64,
}

enum Bytes {
    Here(File),
    There(Remote),
}

impl Blob {
    /// Opens a shard that is as it was when it was listed; one that is compressed as a whole is unpacked
    /// into the cache.
    pub fn open(shard: &Shard, stores: &Arc<Stores>, cache: &Arc<Cache>) -> Result<Arc<Self>> {
        let blob = match is_remote(&shard.place) {
            true => {
                let remote = Remote::open(shard, stores, cache)?;
                Arc::new(Self { len: remote.len(), bytes: Bytes::There(remote) })
            }
            false => Self::here(File::open(&shard.place), &shard.place)?,
        };
        if blob.len != shard.bytes {
            let (now, then) = (blob.len, shard.bytes);
            let reason =
                format!("has {now} bytes, had {then} when this run began: it is written to");
            return Err(Error::shard(&shard.name, reason));
        }
        match shard.gzip {
            true => Self::here(Ok(gzip::unpacked(shard, &blob, cache)?), cache.folder()),
            false => Ok(blob),
        }
    }

    fn here(file: io::Result<File>, path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let open = || {
            let file = file?;
            let len = file.metadata()?.len();
            Ok(Arc::new(Self { bytes: Bytes::Here(file), len }))
        };
        open().map_err(|error| Error::io(path, error))
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// What is read over a network, if it is.
    pub fn remote(&self) -> Option<&Remote> {
        match &self.bytes {
            Bytes::There(remote) => Some(remote),
            Bytes::Here(_) => None,
        }
    }

    /// Fills as much of `buffer` as the shard has from `at` on.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let (at, rest) = (at.saturating_add(filled as u64), &mut buffer[filled..]);
            let read = match &self.bytes {
                Bytes::Here(file) => file.read_at(rest, at),
                Bytes::There(remote) => remote.read_at(at, rest),
            };
            match read {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// `len` bytes from `at` on; memory is taken only for what the shard has.
    pub fn range(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let end = at.checked_add(len).filter(|&end| end <= self.len);
        let len = end.and_then(|_| usize::try_from(len).ok());
        let mut buffer = vec![0; len.ok_or(io::ErrorKind::UnexpectedEof)?];
        match self.read_at(at, &mut buffer)? == buffer.len() {
            true => Ok(buffer),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Reads a blob from `start` on; the position counts from there.
pub(crate) struct Cursor {
    blob: Arc<Blob>,
    start: u64,
    position: u64,
    /// Whether the last read found nothing left.
    pub at_end: bool,
}

impl Cursor {
    pub fn new(blob: &Arc<Blob>, start: u64) -> Self {
        Self { blob: Arc::clone(blob), start, position: 0, at_end: false }
    }

    /// Where in the blob the next byte is.
    pub fn place(&self) -> u64 {
        self.start.saturating_add(self.position)
    }
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.blob.read_at(self.place(), buffer)?;
        self.at_end = got == 0 && !buffer.is_empty();
        self.position += got as u64;
        Ok(got)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.blob.len.saturating_sub(self.start).checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
