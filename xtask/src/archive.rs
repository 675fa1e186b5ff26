//! Reads `.tar`, `.tar.gz`, `.tar.xz`, `.tar.zst`, `.deb`, `.zip` and `.whl` archives; detects the
//! format by content.
//!
//! Archives are untrusted: callers write files only to a [`safe_path`], never create links or
//! device files, and [`Limits`] bound the size of the content.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::CrcWriter;
use flate2::read::MultiGzDecoder;

use crate::zip;

/// Limits on the content of an archive.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Total bytes after decompression.
    pub bytes: u64,
    /// Number of entries: files, directories and links.
    pub entries: u64,
}

impl Limits {
    /// Returns limits for an archive of `len` bytes: above the compression ratio of real data,
    /// below what fills a disk.
    pub fn for_archive(len: u64) -> Self {
        Self { bytes: len.saturating_mul(64).saturating_add(64 << 20), entries: 2_000_000 }
    }
}

/// An entry of an archive, passed to the callback of [`walk`].
pub struct Entry<'a> {
    /// Path without a leading `./`.
    pub path: &'a str,
    /// True for a regular file; false for a link, device or pipe.
    pub is_file: bool,
    /// Content of a regular file.
    pub content: &'a mut dyn Read,
}

/// Calls `visit` for every entry of the archive except directories.
pub fn walk(
    path: &Path,
    limits: Limits,
    visit: &mut dyn FnMut(Entry<'_>) -> Result<()>,
) -> Result<()> {
    let cannot_read = || format!("cannot read {}", path.display());
    let mut file = BufReader::with_capacity(1 << 17, File::open(path).with_context(cannot_read)?);
    let mut walker = Walker { limits, entries: 0, visit };
    let magic = peek(&mut file).with_context(cannot_read)?;
    let result = match &magic {
        magic if magic.starts_with(b"PK\x03\x04") => walker.zip(path),
        magic if magic.starts_with(b"!<arch>\n") => walker.deb(file),
        magic => decompress(magic, file).and_then(|tar| walker.tar(tar)),
    };
    result.with_context(|| format!("cannot extract {}", path.display()))
}

/// Returns the first 8 bytes and rewinds the reader.
fn peek(file: &mut (impl Read + Seek)) -> io::Result<Vec<u8>> {
    let mut magic = Vec::new();
    file.take(8).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(magic)
}

/// Decompresses a stream; `magic`, its first bytes, selects the format.
fn decompress<'a>(magic: &[u8], reader: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    // Largest window that a header may request: enough for every level of xz and zstd.
    const MAX_WINDOW: u64 = 1 << 27;
    Ok(if magic.starts_with(b"\x1f\x8b") {
        Box::new(MultiGzDecoder::new(reader))
    } else if magic.starts_with(b"\xfd7zXZ\0") {
        Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, (2 * MAX_WINDOW / 1024) as u32))
    } else if magic.starts_with(b"\x28\xb5\x2f\xfd") {
        Box::new(ruzstd::decoding::StreamingDecoder::new_with_max_window_size(reader, MAX_WINDOW)?)
    } else {
        Box::new(reader)
    })
}

struct Walker<'v> {
    limits: Limits,
    entries: u64,
    visit: &'v mut dyn FnMut(Entry<'_>) -> Result<()>,
}

impl Walker<'_> {
    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        ensure!(self.entries <= self.limits.entries, "more than {} entries", self.limits.entries);
        Ok(())
    }

    fn tar(&mut self, reader: impl Read) -> Result<()> {
        let mut archive =
            tar::Archive::new(LimitedReader { inner: reader, left: self.limits.bytes });
        for entry in archive.entries()? {
            let mut entry = entry?;
            self.count()?;
            let kind = entry.header().entry_type();
            if kind.is_dir() || kind.is_pax_global_extensions() {
                continue;
            }
            let path = String::from_utf8(entry.path_bytes().into_owned())
                .context("an entry's name is not UTF-8")?;
            let path = path.trim_start_matches("./");
            (self.visit)(Entry { path, is_file: kind.is_file(), content: &mut entry })?;
        }
        Ok(())
    }

    /// Reads a Debian package: an `ar` archive that contains `data.tar`.
    fn deb(&mut self, mut file: impl Read + Seek) -> Result<()> {
        file.seek(SeekFrom::Start(8))?;
        loop {
            let mut header = [0; 60];
            file.read_exact(&mut header).context("the package contains no data.tar")?;
            ensure!(header.ends_with(b"`\n"), "not a Debian package");
            let name = std::str::from_utf8(&header[..16])?.trim_end().trim_end_matches('/');
            let len: i64 = std::str::from_utf8(&header[48..58])?.trim_end().parse()?;
            if name.starts_with("data.tar") {
                let mut member = file.take(len.try_into()?);
                let mut magic = Vec::new();
                member.by_ref().take(8).read_to_end(&mut magic)?;
                let start = magic.clone();
                return self.tar(decompress(&magic, io::Cursor::new(start).chain(member))?);
            }
            // Members start at even offsets.
            file.seek_relative(len + (len & 1))?;
        }
    }

    fn zip(&mut self, path: &Path) -> Result<()> {
        let members = zip::directory(&mut zip::LocalFile::open(path)?)?;
        let mut file = BufReader::new(File::open(path)?);
        let mut bytes: u64 = 0;
        for member in members {
            self.count()?;
            bytes = bytes.saturating_add(member.size);
            ensure!(bytes <= self.limits.bytes, TOO_LARGE);
            if member.name.ends_with('/') {
                continue;
            }
            file.seek(SeekFrom::Start(member.span.start))?;
            let span = (&mut file).take(member.span.end - member.span.start);
            let mut content = VerifiedReader {
                inner: member.open(span)?,
                crc: CrcWriter::new(io::sink()),
                member: &member,
            };
            // Archives not made on Unix have a file type of 0.
            let is_file = matches!(member.mode & 0o170_000, 0 | 0o100_000);
            (self.visit)(Entry {
                path: member.name.trim_start_matches("./"),
                is_file,
                content: &mut content,
            })?;
        }
        Ok(())
    }
}

const TOO_LARGE: &str = "decompresses to far more than its size suggests";

/// Reader that fails after `left` bytes.
struct LimitedReader<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other(TOO_LARGE))?;
        Ok(n)
    }
}

/// Reader of a ZIP member that fails at its end if size or CRC-32 differ from the directory.
struct VerifiedReader<'m, R> {
    inner: R,
    crc: CrcWriter<io::Sink>,
    member: &'m zip::Member,
}

impl<R: Read> Read for VerifiedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        io::Write::write_all(&mut self.crc, &buffer[..n])?;
        let read = u64::from(self.crc.crc().amount());
        // `amount` counts modulo 2³².
        let complete = read == self.member.size & u64::from(u32::MAX);
        if n == 0 && !buffer.is_empty() && (!complete || self.crc.crc().sum() != self.member.crc32)
        {
            return Err(io::Error::other(format!("{} is corrupt", self.member.name)));
        }
        Ok(n)
    }
}

/// Joins `dir` and the relative path of an archive or the catalog.
///
/// # Errors
/// If the result would not be below `dir`.
pub fn safe_path(dir: &Path, path: &str) -> Result<PathBuf> {
    let relative = Path::new(path);
    let is_safe = relative.components().all(|part| matches!(part, Component::Normal(_)));
    // Backslashes and colons are special on Windows; no data set needs them.
    if path.is_empty() || !is_safe || path.contains(['\\', ':', '\0']) {
        bail!("unsafe path {path:?}: not below the target directory");
    }
    Ok(dir.join(relative))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
