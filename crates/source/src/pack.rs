//! Writes tar shards, deterministically: the same examples give the same bytes.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Tar block size.
const BLOCK: u64 = 512;

/// Writes examples to shards `NAME-000000.tar`, `NAME-000001.tar`, … in a new directory.
///
/// The directory appears only when it is complete; an unfinished earlier attempt is replaced.
pub struct Packer {
    folder: PathBuf,
    draft: PathBuf,
    name: String,
    /// Maximum bytes per shard, unless a single example is larger.
    max_bytes: u64,
    shards: usize,
    bytes: u64,
    open: Option<(PathBuf, u64, tar::Builder<BufWriter<File>>)>,
}

/// Summary of the written shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Number of shards.
    pub shards: usize,
    /// Total bytes.
    pub bytes: u64,
}

impl fmt::Debug for Packer {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} shards in {}", self.shards, self.draft.display())
    }
}

impl Packer {
    /// Creates a writer of shards named `name`, of up to `max_bytes` each, in the directory
    /// `folder`.
    ///
    /// # Errors
    /// [`Error::Shard`] if `folder` exists and is not empty; [`Error::Io`].
    pub fn create(folder: &Path, name: &str, max_bytes: u64) -> Result<Self> {
        let is_taken = match fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io(folder, error)),
        };
        if is_taken {
            let reason = "is not empty; remove it, or name another directory";
            return Err(Error::shard(folder.display().to_string(), reason));
        }
        let mut draft = folder.as_os_str().to_owned();
        draft.push(".unfinished");
        let draft = PathBuf::from(draft);
        match fs::remove_dir_all(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(&draft, error));
            }
            _ => {}
        }
        fs::create_dir_all(&draft).map_err(|e| Error::io(&draft, e))?;
        let (folder, name) = (folder.to_owned(), name.to_owned());
        Ok(Self { folder, draft, name, max_bytes, shards: 0, bytes: 0, open: None })
    }

    /// Adds an example with its key and the names and contents of its fields.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, key: &str, fields: &[(&str, &[u8])]) -> Result<()> {
        let size: u64 = fields.iter().map(|(_, bytes)| BLOCK + padded(bytes.len() as u64)).sum();
        if self.open.as_ref().is_some_and(|(_, bytes, _)| bytes + size + 2 * BLOCK > self.max_bytes)
        {
            self.close()?;
        }
        let (path, bytes, shard) = match &mut self.open {
            Some(open) => open,
            closed => {
                let path = self.draft.join(format!("{}-{:06}.tar", self.name, self.shards));
                let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
                closed.insert((path, 0, tar::Builder::new(BufWriter::with_capacity(1 << 20, file))))
            }
        };
        for (field, content) in fields {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            shard
                .append_data(&mut header, format!("{key}.{field}"), *content)
                .map_err(|e| Error::io(&*path, e))?;
        }
        *bytes += size;
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some((path, _, shard)) = self.open.take() else { return Ok(()) };
        let close = || {
            let mut out = shard.into_inner()?;
            out.flush()?;
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        self.bytes += close().map_err(|e| Error::io(&path, e))?;
        self.shards += 1;
        Ok(())
    }

    /// Finishes the last shard and moves the directory into place.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<Packed> {
        self.close()?;
        fs::rename(&self.draft, &self.folder).map_err(|e| Error::io(&self.folder, e))?;
        Ok(Packed { shards: self.shards, bytes: self.bytes })
    }
}

fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK) * BLOCK
}
