//! Reads ZIP archives by ranges, so that members of a large remote wheel can be fetched without the
//! rest.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::DeflateDecoder;

/// Length of the end-of-directory record without its comment.
const END_LEN: u64 = 22;
/// Length of the longest comment.
const MAX_COMMENT: u64 = 65_535;

/// Random access to bytes: a local file, or a remote file that is read by HTTP ranges.
pub trait ReadRange {
    /// Returns the total size.
    fn len(&self) -> u64;
    /// Reads exactly the bytes of `range`.
    fn read_range(&mut self, range: Range<u64>) -> Result<Vec<u8>>;
}

/// [`ReadRange`] of a local file.
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

impl ReadRange for LocalFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_range(&mut self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
        self.file.seek(SeekFrom::Start(range.start))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Directory entry of a file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Path with `/` separators; a directory's own entry ends with `/`.
    pub name: String,
    /// Size of the decompressed content.
    pub size: u64,
    /// CRC-32 of the decompressed content.
    pub crc32: u32,
    /// Bytes from its local header to that of the next member.
    pub span: Range<u64>,
    /// Unix file type and permissions; 0 if unknown.
    pub mode: u32,
    compressed: u64,
    method: u16,
}

/// Reads the directory of an archive; returns its members sorted by offset.
pub fn directory(source: &mut dyn ReadRange) -> Result<Vec<Member>> {
    let len = source.len();
    ensure!(len >= END_LEN, "not a ZIP archive: {len} bytes");
    let tail_start = len.saturating_sub(END_LEN + MAX_COMMENT);
    let tail = source.read_range(tail_start..len)?;
    // Searched from the end. The comment must reach the end of the file, so it cannot hide another
    // record.
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
        "ZIP64 archives (over 4 GB) are not supported"
    );
    ensure!(
        start + size <= tail_start + end as u64,
        "invalid ZIP archive: its directory lies outside the file"
    );
    let bytes = if start >= tail_start {
        let from = usize::try_from(start - tail_start)?;
        tail[from..from + usize::try_from(size)?].to_vec()
    } else {
        source.read_range(start..start + size)?
    };
    let mut members = parse_directory(&bytes, start).context("invalid ZIP archive")?;
    ensure!(
        members.len() == entries,
        "invalid ZIP archive: {} of {entries} entries",
        members.len()
    );
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
        ensure!(bytes.len() >= len, "truncated directory entry");
        let name = String::from_utf8(bytes[HEADER..HEADER + name_len].to_vec())
            .context("a member's name is not UTF-8")?;
        let offset = u64::from(u32_at(bytes, 42));
        ensure!(offset < start, "{name} lies outside the file");
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
    /// Returns a reader of the decompressed content, given a reader of the bytes of `span`. The
    /// caller must check the size and the hash or [`Member::crc32`].
    pub fn open<R: Read>(&self, mut span: R) -> Result<impl Read + use<R>> {
        let broken = || format!("invalid ZIP archive at {}", self.name);
        let mut header = [0; 30];
        span.read_exact(&mut header).with_context(broken)?;
        ensure!(header.starts_with(b"PK\x03\x04"), broken());
        let skip = u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        ensure!(30 + skip + self.compressed <= self.span.end - self.span.start, broken());
        std::io::copy(&mut span.by_ref().take(skip), &mut std::io::sink())?;
        let data = span.take(self.compressed);
        let plain: Decoder<R> = match self.method {
            0 => Decoder::Stored(data),
            8 => Decoder::Deflated(DeflateDecoder::new(data)),
            method => bail!("{}: unsupported compression method {method}", self.name),
        };
        // One extra byte reveals content that is too long; the limit stops decompression bombs.
        Ok(plain.take(self.size + 1))
    }
}

enum Decoder<R> {
    Stored(std::io::Take<R>),
    Deflated(DeflateDecoder<std::io::Take<R>>),
}

impl<R: Read> Read for Decoder<R> {
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
