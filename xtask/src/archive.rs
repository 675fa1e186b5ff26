//! Walks through `.tar`, `.tar.gz`, `.tar.xz`, `.tar.zst`, `.deb`, `.zip`, `.whl` and `.tgz` files, whatever their names.
//!
//! An archive comes from far away: nothing in it decides where a file is written (see [`safe_path`]), links and device files
//! are never made, and it can unpack to no more than [`Limits`] allow.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::CrcWriter;
use flate2::read::MultiGzDecoder;

use crate::zip;

/// What an archive may unpack to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All unpacked bytes together.
    pub bytes: u64,
    /// Files, folders and links together.
    pub entries: u64,
}

impl Limits {
    /// Far above what real data compress to, far below what fills a disk unseen.
    pub fn for_archive(len: u64) -> Self {
        Self { bytes: len.saturating_mul(64).saturating_add(64 << 20), entries: 2_000_000 }
    }
}

/// Something in an archive, as [`walk`] hands it out.
pub struct Entry<'a> {
    /// Without a leading `./`.
    pub path: &'a str,
    /// True for a file, false for links, devices and pipes. Folders are not handed out.
    pub is_file: bool,
    /// The content of a file.
    pub content: &'a mut dyn Read,
}

/// Calls `visit` for every entry of the archive but its folders.
pub fn walk(
    path: &Path,
    limits: Limits,
    visit: &mut dyn FnMut(Entry<'_>) -> Result<()>,
) -> Result<()> {
    let open = || format!("cannot read {}", path.display());
    let mut file = BufReader::with_capacity(1 << 17, File::open(path).with_context(open)?);
    let mut walker = Walker { limits, entries: 0, visit };
    let magic = peek(&mut file).with_context(open)?;
    let result = match &magic {
        magic if magic.starts_with(b"PK\x03\x04") => walker.zip(path),
        magic if magic.starts_with(b"!<arch>\n") => walker.deb(file),
        magic => plain(magic, file).and_then(|plain| walker.tar(plain)),
    };
    result.with_context(|| format!("cannot unpack {}", path.display()))
}

/// The first bytes; the reader stays at the start.
fn peek(file: &mut (impl Read + Seek)) -> io::Result<Vec<u8>> {
    let mut magic = Vec::new();
    file.take(8).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(magic)
}

/// Takes off the compression that the first bytes tell of.
fn plain<'a>(magic: &[u8], reader: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    // What a stream's header may claim for its window: enough for every level of xz and zstd.
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
        let mut archive = tar::Archive::new(Bounded { inner: reader, left: self.limits.bytes });
        for entry in archive.entries()? {
            let mut entry = entry?;
            self.count()?;
            let kind = entry.header().entry_type();
            if kind.is_dir() || kind.is_pax_global_extensions() {
                continue;
            }
            let path = String::from_utf8(entry.path_bytes().into_owned())
                .context("a name is not UTF-8")?;
            let path = path.trim_start_matches("./");
            (self.visit)(Entry { path, is_file: kind.is_file(), content: &mut entry })?;
        }
        Ok(())
    }

    /// A Debian package: an `ar` archive with a `data.tar` in it.
    fn deb(&mut self, mut file: impl Read + Seek) -> Result<()> {
        file.seek(SeekFrom::Start(8))?;
        loop {
            let mut header = [0; 60];
            file.read_exact(&mut header).context("no data.tar in the package")?;
            ensure!(header.ends_with(b"`\n"), "not a Debian package");
            let name = std::str::from_utf8(&header[..16])?.trim_end().trim_end_matches('/');
            let len: i64 = std::str::from_utf8(&header[48..58])?.trim_end().parse()?;
            if name.starts_with("data.tar") {
                let mut member = file.take(len.try_into()?);
                let mut magic = Vec::new();
                member.by_ref().take(8).read_to_end(&mut magic)?;
                let start = magic.clone();
                return self.tar(plain(&magic, io::Cursor::new(start).chain(member))?);
            }
            // Members start at even places.
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
            ensure!(bytes <= self.limits.bytes, too_much());
            if member.name.ends_with('/') {
                continue;
            }
            file.seek(SeekFrom::Start(member.span.start))?;
            let span = (&mut file).take(member.span.end - member.span.start);
            let mut content = Checked {
                inner: member.open(span)?,
                crc: CrcWriter::new(io::sink()),
                member: &member,
            };
            // A file type of 0 is an archive made elsewhere than on Unix.
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

fn too_much() -> &'static str {
    "it unpacks to far more than its size promises"
}

/// Fails once more came out than may.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other(too_much()))?;
        Ok(n)
    }
}

/// Fails at the end of a ZIP member that is not what the directory says.
struct Checked<'m, R> {
    inner: R,
    crc: CrcWriter<io::Sink>,
    member: &'m zip::Member,
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        io::Write::write_all(&mut self.crc, &buffer[..n])?;
        let so_far = u64::from(self.crc.crc().amount());
        // `amount` counts modulo 2³².
        let whole = so_far == self.member.size & u64::from(u32::MAX);
        if n == 0 && !buffer.is_empty() && (!whole || self.crc.crc().sum() != self.member.crc32) {
            return Err(io::Error::other(format!("{} is damaged", self.member.name)));
        }
        Ok(n)
    }
}

/// `dir` joined with a path that an archive or the catalog gives, if that stays below `dir`.
pub fn safe_path(dir: &Path, path: &str) -> Result<PathBuf> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    // A backslash or a drive's colon means something on other systems only; no data set needs them.
    if path.is_empty() || !plain || path.contains(['\\', ':', '\0']) {
        bail!("{path:?} does not name a file below the folder it is unpacked in");
    }
    Ok(dir.join(relative))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
