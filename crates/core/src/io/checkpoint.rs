//! Tensors in files, and checkpoints that are whole or not there.

mod snapshot;
mod tensors;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use snapshot::Snapshot;
pub(crate) use tensors::write_tensors_with;
pub use tensors::{assign, read_tensors, write_tensors};

use crate::{Error, Result};

/// Version of the checkpoint layout; raised when older programs could no longer read it.
const FORMAT: u32 = 2;
/// The layout before, whose manifest had no digest of its own.
const UNSEALED: u32 = 1;
const MANIFEST: &str = "checkpoint.json";
const CHANGED: &str = "was changed after it was written";
/// Prefix of files and folders that are being written or removed; never read.
const UNFINISHED: &str = ".unfinished-";

/// Has `write` fill a file beside `dir / name` and puts it in its place: it is whole or not there, and
/// whoever reads an earlier one is not disturbed.
pub(crate) fn replace(dir: &Path, name: &str, write: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    let (unfinished, path) = (dir.join(format!("{UNFINISHED}{name}")), dir.join(name));
    write(&unfinished)?;
    fs::rename(&unfinished, &path).map_err(|e| Error::io(&path, e))
}

/// Where a run stands: all that a checkpoint needs besides tensors.
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
    /// Of the manifest itself, without this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl Manifest {
    fn digest(&self) -> serde_json::Result<String> {
        // Members in the order of their declaration, files by name: the same text in every build.
        let text = serde_json::to_string(&(self.format, self.position, &self.files))?;
        Ok(hex(Sha256::digest(text)))
    }
}

#[derive(PartialEq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

/// The checkpoints of a run: folders `step-00001000` in one folder, each whole or not there.
#[derive(Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    keep_every: Option<u64>,
}

/// What [`Checkpoints::newest`] found.
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest checkpoint whose files are all as they were written.
    pub good: Option<(Position, PathBuf)>,
    /// Newer ones that are damaged, and how.
    pub damaged: Vec<(PathBuf, String)>,
}

impl Checkpoints {
    /// Checkpoints in `dir`, which is created; the last `keep` (at least 1) are kept, and for ever those
    /// of steps that are multiples of `keep_every`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be made or read.
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

    /// Steps that have a checkpoint, newest first; not verified.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let step = |name: String| name.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = self.names()?.into_iter().filter_map(step).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// Has `write` fill a new folder, seals it with digests, moves it into place in one step and
    /// removes old ones. A crash at any moment leaves the earlier checkpoints as they were.
    ///
    /// # Errors
    /// [`Error::Io`] or what `write` returns; nothing of the new checkpoint is left then.
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
            seal(&unfinished, position)?;
            remove_whole(&self.dir, &target)?; // of an earlier, damaged or abandoned try
            fs::rename(&unfinished, &target).map_err(|e| Error::io(&target, e))?;
            sync(&self.dir)
        })();
        if let Err(error) = result {
            let _ = fs::remove_dir_all(&unfinished); // the first error is the one to report
            return Err(error);
        }
        let for_ever = |step: u64| self.keep_every.is_some_and(|every| step.is_multiple_of(every));
        for old in self.steps()?.into_iter().filter(|&s| s <= position.step).skip(self.keep) {
            if !for_ever(old) {
                remove_whole(&self.dir, &self.path(old))?;
            }
        }
        Ok(target)
    }

    /// The newest checkpoint that is undamaged, and which newer ones are not.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn newest(&self) -> Result<Newest> {
        self.newest_up_to(u64::MAX)
    }

    /// The same of those of at most `last` steps.
    ///
    /// # Errors
    /// As [`newest`](Self::newest).
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
    /// [`Error::Io`] if one cannot be removed.
    pub fn remove_after(&self, last: u64) -> Result<()> {
        let mut later = self.steps()?.into_iter().filter(|&step| step > last);
        later.try_for_each(|step| remove_whole(&self.dir, &self.path(step)))
    }
}

/// Writes the manifest: after it, the folder is complete.
fn seal(dir: &Path, position: Position) -> Result<()> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, record(&path)?);
    }
    let mut manifest = Manifest { format: FORMAT, position, files, sha256: None };
    let path = dir.join(MANIFEST);
    let broken = |e: serde_json::Error| Error::file(&path, e.to_string());
    manifest.sha256 = Some(manifest.digest().map_err(broken)?);
    let text = serde_json::to_vec_pretty(&manifest).map_err(broken)?;
    fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
    sync(&path)?;
    sync(dir)
}

/// Compares a checkpoint's files with its manifest.
fn verify(dir: &Path) -> Result<Position> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let broken = |e: serde_json::Error| Error::file(&path, e.to_string());
    let manifest: Manifest = serde_json::from_slice(&text).map_err(broken)?;
    if ![FORMAT, UNSEALED].contains(&manifest.format) {
        let reason = format!("has layout {}, this program reads {FORMAT}", manifest.format);
        return Err(Error::file(&path, reason));
    }
    let digest = manifest.digest().map_err(broken)?;
    let digest = (manifest.format != UNSEALED).then_some(digest);
    if manifest.sha256 != digest {
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

/// A digest in hexadecimal digits.
pub fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Flushes a file, or the names in a folder, to the disk.
fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io(path, e))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Removes a checkpoint so that a crash half-way does not leave something that looks like one.
fn remove_whole(dir: &Path, path: &Path) -> Result<()> {
    let doomed = dir.join(format!("{UNFINISHED}removed"));
    remove(&doomed)?;
    match fs::rename(path, &doomed) {
        Ok(()) => remove(&doomed),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(path, e)),
    }
}
