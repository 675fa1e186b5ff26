//! Random access to the bytes of a shard, from any thread.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::cache::Cache;
use crate::remote::{Remote, Stores};
use crate::shard::{Shard, is_remote};
use crate::{Error, Result, gzip};

/// An open shard.
pub(crate) struct Blob {
    bytes: Bytes,
    len: u64,
}

enum Bytes {
    Local(File),
    Remote(Remote),
}

impl Blob {
    /// Opens a shard; unpacks a compressed one into the cache.
    ///
    /// # Errors
    /// [`Error::Shard`] if its size differs from when it was listed, or it cannot be unpacked;
    /// [`Error::Io`] if it cannot be opened.
    pub fn open(shard: &Shard, stores: &Arc<Stores>, cache: &Arc<Cache>) -> Result<Arc<Self>> {
        let blob = match is_remote(&shard.location) {
            true => {
                let remote = Remote::open(shard, stores, cache)?;
                Arc::new(Self { len: remote.len(), bytes: Bytes::Remote(remote) })
            }
            false => Self::local(File::open(&shard.location), &shard.location)?,
        };
        if blob.len != shard.bytes {
            let (now, then) = (blob.len, shard.bytes);
            let reason =
                format!("has {now} bytes but had {then} when it was listed; is it being written?");
            return Err(Error::shard(&shard.name, reason));
        }
        match shard.gzip {
            true => {
                let file = gzip::unpack(shard, Cursor::new(&blob, 0), cache)?;
                Self::local(Ok(file), cache.folder())
            }
            false => Ok(blob),
        }
    }

    fn local(file: io::Result<File>, path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let open = || {
            let file = file?;
            let len = file.metadata()?.len();
            Ok(Arc::new(Self { bytes: Bytes::Local(file), len }))
        };
        open().map_err(|error| Error::io(path, error))
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns the remote shard if the bytes are read over the network.
    pub fn remote(&self) -> Option<&Remote> {
        match &self.bytes {
            Bytes::Remote(remote) => Some(remote),
            Bytes::Local(_) => None,
        }
    }

    /// Reads from `offset` until `buffer` is full or the shard ends; returns the bytes read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let (at, rest) = (offset.saturating_add(filled as u64), &mut buffer[filled..]);
            let read = match &self.bytes {
                Bytes::Local(file) => file.read_at(rest, at),
                Bytes::Remote(remote) => remote.read_at(at, rest),
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

    /// Reads exactly `len` bytes at `offset`; allocates nothing if the range exceeds the shard.
    pub fn read_range(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len);
        let len = end.and_then(|_| usize::try_from(len).ok());
        let mut buffer = vec![0; len.ok_or(io::ErrorKind::UnexpectedEof)?];
        match self.read_at(offset, &mut buffer)? == buffer.len() {
            true => Ok(buffer),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Sequential reader of a blob from `start` on; positions are relative to it.
pub(crate) struct Cursor {
    blob: Arc<Blob>,
    start: u64,
    position: u64,
    /// True if the last read reached the end of the blob.
    pub at_end: bool,
}

impl Cursor {
    pub fn new(blob: &Arc<Blob>, start: u64) -> Self {
        Self { blob: Arc::clone(blob), start, position: 0, at_end: false }
    }

    /// Returns the offset of the next byte in the blob.
    pub fn offset(&self) -> u64 {
        self.start.saturating_add(self.position)
    }
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.blob.read_at(self.offset(), buffer)?;
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
