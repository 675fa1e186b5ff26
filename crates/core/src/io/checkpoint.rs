//! Checkpoints: atomically written directories with a SHA-256 manifest, and files of named tensors.

mod snapshot;
mod tensors;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use snapshot::Snapshot;
pub(crate) use tensors::filter_by_prefix;
pub use tensors::{assign, read_tensors, write_tensors};
pub(crate) use tensors::{write_tensors_with_metadata, write_weights};

use crate::io::file::UNFINISHED;
use crate::{Error, Result};

/// Version of the checkpoint layout.
const FORMAT: u32 = 2;
const MANIFEST: &str = "checkpoint.json";
const CHANGED: &str = "was changed after it was written";

/// Position of a run in its training, saved with the tensors of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Completed optimizer steps.
    pub step: u64,
    /// Number of the next batch of data.
    pub next_batch: u64,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    position: Position,
    files: BTreeMap<String, FileRecord>,
    /// Digest of the other fields of the manifest.
    sha256: String,
}

impl Manifest {
    /// Computes the digest of all fields but `sha256`.
    fn digest(&self) -> serde_json::Result<String> {
        // Fields in declaration order and files sorted by name: the same text in every build.
        let json = serde_json::to_string(&(self.format, self.position, &self.files))?;
        Ok(hex(Sha256::digest(json)))
    }
}

#[derive(PartialEq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

/// The checkpoints of a run: directories `step-00001000` in one directory, each written atomically.
#[derive(Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    keep_every: Option<u64>,
}

/// Result of [`Checkpoints::newest_up_to`].
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest undamaged checkpoint.
    pub good: Option<(Position, PathBuf)>,
    /// Newer checkpoints that are damaged, each with the reason.
    pub damaged: Vec<(PathBuf, String)>,
}

impl Checkpoints {
    /// Opens or creates the directory `dir` of checkpoints and removes unfinished ones.
    ///
    /// Saving keeps the last `keep` (at least 1) checkpoints and those at multiples of
    /// `keep_every`.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the directory cannot be created or read.
    pub fn new(dir: impl Into<PathBuf>, keep: usize, keep_every: Option<u64>) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        let checkpoints = Self { dir, keep: keep.max(1), keep_every };
        for name in checkpoints.names()? {
            if name.starts_with(UNFINISHED) {
                remove(&checkpoints.dir.join(name))?;
            }
        }
        Ok(checkpoints)
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&self.dir, e))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// Returns the steps of all checkpoints, newest first, without verifying them.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the directory cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let step = |name: String| name.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = self.names()?.into_iter().filter_map(step).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// Writes a checkpoint atomically and removes old ones.
    ///
    /// `write` fills a temporary directory, which gets a SHA-256 manifest and is then renamed. A
    /// crash at any moment leaves the earlier checkpoints intact.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or the error of `write`, after removing the temporary directory.
    pub fn save(
        &self,
        position: Position,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let unfinished = self.dir.join(format!("{UNFINISHED}{}", position.step));
        let target = self.path(position.step);
        let result = (|| {
            remove(&unfinished)?;
            fs::create_dir(&unfinished).map_err(|e| Error::io(&unfinished, e))?;
            write(&unfinished)?;
            write_manifest(&unfinished, position)?;
            remove_atomically(&self.dir, &target)?; // left by a damaged or abandoned run
            fs::rename(&unfinished, &target).map_err(|e| Error::io(&target, e))?;
            sync(&self.dir)
        })();
        if let Err(error) = result {
            let _ = fs::remove_dir_all(&unfinished); // the first error matters
            return Err(error);
        }
        let is_permanent =
            |step: u64| self.keep_every.is_some_and(|every| step.is_multiple_of(every));
        for old in self.steps()?.into_iter().filter(|&s| s <= position.step).skip(self.keep) {
            if !is_permanent(old) {
                remove_atomically(&self.dir, &self.path(old))?;
            }
        }
        Ok(target)
    }

    /// Finds the newest undamaged checkpoint of at most `last` steps, and the damaged ones after
    /// it.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the directory cannot be read.
    pub fn newest_up_to(&self, last: u64) -> Result<Newest> {
        let mut newest = Newest::default();
        for step in self.steps()?.into_iter().filter(|&step| step <= last) {
            let path = self.path(step);
            match verify(&path) {
                Ok(position) => {
                    newest.good = Some((position, path));
                    break;
                }
                Err(error) => newest.damaged.push((path, error.to_string())),
            }
        }
        Ok(newest)
    }

    /// Removes the checkpoints of more than `last` steps, newest first.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if one cannot be removed.
    pub fn remove_after(&self, last: u64) -> Result<()> {
        let mut later = self.steps()?.into_iter().filter(|&step| step > last);
        later.try_for_each(|step| remove_atomically(&self.dir, &self.path(step)))
    }
}

/// Writes the manifest, which completes a checkpoint directory.
fn write_manifest(dir: &Path, position: Position) -> Result<()> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, record(&path)?);
    }
    let mut manifest = Manifest { format: FORMAT, position, files, sha256: String::new() };
    let path = dir.join(MANIFEST);
    let json_error = |e: serde_json::Error| Error::file(&path, e.to_string());
    manifest.sha256 = manifest.digest().map_err(json_error)?;
    let json = serde_json::to_vec_pretty(&manifest).map_err(json_error)?;
    fs::write(&path, json).map_err(|e| Error::io(&path, e))?;
    sync(&path)?;
    sync(dir)
}

/// Verifies the files of a checkpoint against its manifest and returns its position.
fn verify(dir: &Path) -> Result<Position> {
    let path = dir.join(MANIFEST);
    let json = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let json_error = |e: serde_json::Error| Error::file(&path, e.to_string());
    let manifest: Manifest = serde_json::from_slice(&json).map_err(json_error)?;
    if manifest.format != FORMAT {
        let reason = format!("has layout {}, this program reads {FORMAT}", manifest.format);
        return Err(Error::file(&path, reason));
    }
    if manifest.sha256 != manifest.digest().map_err(json_error)? {
        return Err(Error::file(&path, CHANGED));
    }
    for (name, expected) in &manifest.files {
        let path = dir.join(name);
        let found = record(&path)?;
        if found.bytes != expected.bytes {
            let reason = format!("has {} bytes, {} were written", found.bytes, expected.bytes);
            return Err(Error::file(&path, reason));
        }
        if found != *expected {
            return Err(Error::file(&path, CHANGED));
        }
    }
    Ok(manifest.position)
}

/// Returns size and digest of a file.
fn record(path: &Path) -> Result<FileRecord> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::io(path, e))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok(FileRecord { bytes, sha256: hex(hash.finalize()) })
}

/// Returns the SHA-256 of a file in hexadecimal digits.
///
/// # Errors
/// Returns [`Error::Io`] if it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    Ok(record(path)?.sha256)
}

/// Formats a digest in hexadecimal digits.
pub fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Flushes a file or directory to disk.
fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io(path, e))
}

/// Removes a directory if it exists.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Removes a checkpoint if it exists; a crash meanwhile leaves no partial checkpoint.
fn remove_atomically(dir: &Path, path: &Path) -> Result<()> {
    let doomed = dir.join(format!("{UNFINISHED}removed"));
    remove(&doomed)?;
    match fs::rename(path, &doomed) {
        Ok(()) => remove(&doomed),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(path, e)),
    }
}
