//! Writing tar shards, the same ones of the same examples.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Tar's units.
const BLOCK: u64 = 512;

/// Writes examples to shards `NAME-000000.tar`, `NAME-000001.tar`, … in a new folder. The folder appears
/// whole or not at all; what an earlier attempt left is made again.
pub struct Packer {
    folder: PathBuf,
    draft: PathBuf,
    name: String,
    /// Most bytes of a shard, unless one example takes more.
    most: u64,
    shards: usize,
    bytes: u64,
    open: Option<(PathBuf, u64, tar::Builder<BufWriter<File>>)>,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Number of shards.
    pub shards: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl fmt::Debug for Packer {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} shards in {}", self.shards, self.draft.display())
    }
}

impl Packer {
    /// Begins the folder `folder`, with shards called `name` of up to `most` bytes.
    ///
    /// # Errors
    /// [`Error::Shard`] if `folder` is there already and holds something; [`Error::Io`].
    pub fn create(folder: &Path, name: &str, most: u64) -> Result<Self> {
        let is_taken = match fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io(folder, error)),
        };
        if is_taken {
            let reason =
                "is not empty, and nothing in it is overwritten: remove it, or name another";
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
        Ok(Self { folder, draft, name, most, shards: 0, bytes: 0, open: None })
    }

    /// Adds an example: its key, and its fields' names and contents.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, key: &str, fields: &[(&str, &[u8])]) -> Result<()> {
        let size: u64 = fields.iter().map(|(_, bytes)| BLOCK + padded(bytes.len() as u64)).sum();
        if self.open.as_ref().is_some_and(|(_, bytes, _)| bytes + size + 2 * BLOCK > self.most) {
            self.close()?;
        }
        let (path, bytes, shard) = match &mut self.open {
            Some(open) => open,
            none => {
                let path = self.draft.join(format!("{}-{:06}.tar", self.name, self.shards));
                let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
                none.insert((path, 0, tar::Builder::new(BufWriter::with_capacity(1 << 20, file))))
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

    /// Ends the last shard, and has the folder appear.
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
