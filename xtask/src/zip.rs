//! Reads ZIP archives piece by piece, so that a part of a large wheel can be had without the rest of it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::DeflateDecoder;

/// The end-of-directory record without its comment, and the longest comment.
const END_LEN: u64 = 22;
const MAX_COMMENT: u64 = 65_535;

/// Bytes that can be read from any place: a file, or a part of one that a server has.
pub trait Source {
    /// The size of the whole.
    fn len(&self) -> u64;
    /// Exactly these bytes.
    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>>;
}

/// A local file as a [`Source`].
#[derive(Debug)]
pub struct LocalFile {
    file: File,
    len: u64,
}

impl LocalFile {
    /// Opens `path` for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> std::io::Result<Self> {
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            Ok(Self { file, len })
        };
        open().with_context(|| format!("cannot read {}", path.display()))
    }
}

impl Source for LocalFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
        self.file.seek(SeekFrom::Start(range.start))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// A file inside an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// With `/` between folders; a folder's own entry ends in one.
    pub name: String,
    /// Of the plain content.
    pub size: u64,
    /// Of the plain content.
    pub crc32: u32,
    /// From its local header to the next member's: nothing of it lies outside.
    pub span: Range<u64>,
    /// Unix file type and permissions, 0 where the archive has none.
    pub mode: u32,
    compressed: u64,
    method: u16,
}

/// The members of an archive in the order of their place in it.
pub fn directory(source: &mut dyn Source) -> Result<Vec<Member>> {
    let len = source.len();
    ensure!(len >= END_LEN, "not a ZIP archive: {len} bytes");
    let tail_start = len.saturating_sub(END_LEN + MAX_COMMENT);
    let tail = source.read(tail_start..len)?;
    // The record is the last one, so it is looked for from the end; a comment may not hide another one.
    let end = (0..=tail.len() - END_LEN as usize)
        .rev()
        .find(|&at| {
            tail[at..].starts_with(b"PK\x05\x06")
                && at as u64 + END_LEN + u64::from(u16_at(&tail, at + 20)) == tail.len() as u64
        })
        .context("not a ZIP archive: no end-of-directory record")?;
    let entries = usize::from(u16_at(&tail, end + 10));
    let size = u64::from(u32_at(&tail, end + 12));
    let start = u64::from(u32_at(&tail, end + 16));
    ensure!(
        start != u64::from(u32::MAX) && entries != usize::from(u16::MAX),
        "ZIP archives over 4 GB are not supported"
    );
    ensure!(
        start + size <= tail_start + end as u64,
        "broken ZIP archive: its directory is not inside it"
    );
    let bytes = if start >= tail_start {
        let from = usize::try_from(start - tail_start)?;
        tail[from..from + usize::try_from(size)?].to_vec()
    } else {
        source.read(start..start + size)?
    };
    let mut members = parse_directory(&bytes, start).context("broken ZIP archive")?;
    ensure!(members.len() == entries, "broken ZIP archive: {} of {entries} entries", members.len());
    members.sort_by_key(|member| member.span.start);
    for i in 1..members.len() {
        members[i - 1].span.end = members[i].span.start;
    }
    Ok(members)
}

fn parse_directory(mut bytes: &[u8], start: u64) -> Result<Vec<Member>> {
    const HEADER: usize = 46;
    let mut members = Vec::new();
    while !bytes.is_empty() {
        ensure!(
            bytes.len() >= HEADER && bytes.starts_with(b"PK\x01\x02"),
            "unreadable directory entry"
        );
        let name_len = usize::from(u16_at(bytes, 28));
        let len =
            HEADER + name_len + usize::from(u16_at(bytes, 30)) + usize::from(u16_at(bytes, 32));
        ensure!(bytes.len() >= len, "directory entry cut off");
        let name = String::from_utf8(bytes[HEADER..HEADER + name_len].to_vec())
            .context("a name is not UTF-8")?;
        let offset = u64::from(u32_at(bytes, 42));
        ensure!(offset < start, "{name} lies outside the archive");
        ensure!(u16_at(bytes, 8) & 1 == 0, "{name} is encrypted");
        members.push(Member {
            name,
            size: u64::from(u32_at(bytes, 24)),
            crc32: u32_at(bytes, 16),
            span: offset..start,
            mode: u32_at(bytes, 38) >> 16,
            compressed: u64::from(u32_at(bytes, 20)),
            method: u16_at(bytes, 10),
        });
        bytes = &bytes[len..];
    }
    Ok(members)
}

impl Member {
    /// The plain content, given a reader of the bytes of `span`. The caller checks hash or [`Member::crc32`], and size.
    pub fn open<R: Read>(&self, mut span: R) -> Result<impl Read + use<R>> {
        let broken = || format!("broken ZIP archive at {}", self.name);
        let mut header = [0; 30];
        span.read_exact(&mut header).with_context(broken)?;
        ensure!(header.starts_with(b"PK\x03\x04"), broken());
        let skip = u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        ensure!(30 + skip + self.compressed <= self.span.end - self.span.start, broken());
        std::io::copy(&mut span.by_ref().take(skip), &mut std::io::sink())?;
        let data = span.take(self.compressed);
        let plain: Plain<R> = match self.method {
            0 => Plain::Stored(data),
            8 => Plain::Deflated(DeflateDecoder::new(data)),
            method => bail!("{} is packed by method {method}, which is not supported", self.name),
        };
        // One byte more than it should have would show, a bomb would not go off.
        Ok(plain.take(self.size + 1))
    }
}

enum Plain<R> {
    Stored(std::io::Take<R>),
    Deflated(DeflateDecoder<std::io::Take<R>>),
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Stored(reader) => reader.read(buffer),
            Self::Deflated(reader) => reader.read(buffer),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
#[path = "zip_tests.rs"]
pub mod tests;
