//! Bytes of a shard, read at any place from any thread.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::cache::Cache;
use crate::places::Shard;
use crate::{Error, Result, gzip};

/// An open shard.
#[derive(Debug)]
pub(crate) struct Blob {
    file: File,
    len: u64,
}

impl Blob {
    /// Opens a shard that is as it was when it was listed; one that is compressed as a whole is unpacked
    /// into the cache.
    pub fn open(shard: &Shard, cache: &Cache) -> Result<Arc<Self>> {
        let open = || {
            let file = File::open(&shard.path)?;
            let len = file.metadata()?.len();
            Ok((file, len))
        };
        let (file, len) = open().map_err(|e| Error::io(&shard.path, e))?;
        if len != shard.bytes {
            let then = shard.bytes;
            let reason =
                format!("has {len} bytes, had {then} when this run began: it is written to");
            return Err(Error::shard(&shard.name, reason));
        }
        if !shard.gzip {
            return Ok(Arc::new(Self { file, len }));
        }
        let file = gzip::unpacked(shard, file, cache)?;
        let len = file.metadata().map_err(|e| Error::io(cache.folder(), e))?.len();
        Ok(Arc::new(Self { file, len }))
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills as much of `buffer` as the shard has from `at` on.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], at.saturating_add(filled as u64)) {
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
#[derive(Debug)]
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
