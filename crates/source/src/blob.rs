//! Bytes of a shard, read at any place from any thread.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::places::Shard;
use crate::{Error, Result};

/// An open shard.
#[derive(Debug)]
pub(crate) struct Blob {
    file: File,
    len: u64,
}

impl Blob {
    /// Opens a shard that is as it was when it was listed.
    pub fn open(shard: &Shard) -> Result<Self> {
        let open = || {
            let file = File::open(&shard.path)?;
            let len = file.metadata()?.len();
            Ok(Self { file, len })
        };
        let blob: Self = open().map_err(|e| Error::io(&shard.path, e))?;
        if blob.len != shard.bytes {
            let (now, then) = (blob.len, shard.bytes);
            let reason =
                format!("has {now} bytes, had {then} when this run began: it is written to");
            return Err(Error::shard(&shard.name, reason));
        }
        Ok(blob)
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
pub(crate) struct Cursor<'a> {
    blob: &'a Blob,
    start: u64,
    position: u64,
    /// Whether the last read found nothing left.
    pub at_end: bool,
}

impl<'a> Cursor<'a> {
    pub fn new(blob: &'a Blob, start: u64) -> Self {
        Self { blob, start, position: 0, at_end: false }
    }

    /// Where in the blob the next byte is.
    pub fn place(&self) -> u64 {
        self.start.saturating_add(self.position)
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.blob.read_at(self.place(), buffer)?;
        self.at_end = got == 0 && !buffer.is_empty();
        self.position += got as u64;
        Ok(got)
    }
}

impl Seek for Cursor<'_> {
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
