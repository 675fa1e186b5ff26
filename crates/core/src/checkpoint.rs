//! Tensors in files, and checkpoints that are whole or not there.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Version of the checkpoint layout; raised when old ones can no longer be read.
const FORMAT: u32 = 1;
const MANIFEST: &str = "checkpoint.json";
/// Prefix of files and folders that are being written or removed; never read.
const UNFINISHED: &str = ".unfinished-";

/// Writes named tensors to a safetensors file and flushes it to the disk.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::File`] for tensors of an exotic type.
pub fn write_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    write_tensors_with(path, tensors, &HashMap::new())
}

/// The same with `facts` in the file's head.
pub(crate) fn write_tensors_with(
    path: &Path,
    tensors: &HashMap<String, Tensor>,
    facts: &HashMap<String, String>,
) -> Result<()> {
    let mut data = BTreeMap::new();
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let dtype = to_dtype(tensor.kind())
            .ok_or_else(|| Error::file(path, format!("`{name}` has kind {:?}", tensor.kind())))?;
        let mut bytes = vec![0_u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        data.insert(name.clone(), (dtype, shape, bytes));
    }
    let mut views = BTreeMap::new();
    for (name, (dtype, shape, bytes)) in &data {
        let view = TensorView::new(*dtype, shape.clone(), bytes)
            .map_err(|e| Error::file(path, e.to_string()))?;
        views.insert(name.clone(), view);
    }
    let facts = (!facts.is_empty()).then(|| facts.clone());
    safetensors::serialize_to_file(views, facts, path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => Error::io(path, e),
        e => Error::file(path, e.to_string()),
    })?;
    sync(path)
}

/// Reads all tensors of a safetensors file.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::File`] if it is cut short or not safetensors.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let broken = |e: String| Error::file(path, format!("not a whole safetensors file ({e})"));
    let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let kind = to_kind(view.dtype())
            .ok_or_else(|| Error::file(path, format!("`{name}` has type {:?}", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        tensors.insert(name.to_owned(), Tensor::f_from_data_size(view.data(), &shape, kind)?);
    }
    Ok(tensors)
}

const TYPES: [(Kind, Dtype); 9] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

fn to_dtype(kind: Kind) -> Option<Dtype> {
    TYPES.iter().find(|(k, _)| *k == kind).map(|&(_, dtype)| dtype)
}

fn to_kind(dtype: Dtype) -> Option<Kind> {
    TYPES.iter().find(|(_, d)| *d == dtype).map(|&(kind, _)| kind)
}

/// Copies `tensors`, read from `path`, into the variables of the same names. Others in the file are
/// left alone.
///
/// # Errors
/// [`Error::Tensor`] if a variable is missing in the file or has another shape there; then none
/// has been changed.
pub fn assign(
    path: &Path,
    vars: &HashMap<String, Tensor>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let bad = |name: &str, reason: String| {
        Err(Error::Tensor { path: path.to_owned(), name: name.to_owned(), reason })
    };
    for (name, var) in vars {
        match tensors.get(name) {
            None => return bad(name, "is missing".into()),
            Some(tensor) if tensor.size() != var.size() => {
                let reason = format!("has shape {:?}, not {:?}", tensor.size(), var.size());
                return bad(name, reason);
            }
            Some(_) => {}
        }
    }
    tch::no_grad(|| {
        for (name, var) in vars {
            var.shallow_clone().copy_(&tensors[name]);
        }
    });
    Ok(())
}

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
    /// Checkpoints in `dir`, which is created; the last `keep` (at least 1) are kept.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be made or read.
    pub fn new(dir: impl Into<PathBuf>, keep: usize) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        let checkpoints = Self { dir, keep: keep.max(1) };
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
        for old in self.steps()?.into_iter().filter(|&s| s <= position.step).skip(self.keep) {
            remove_whole(&self.dir, &self.path(old))?;
        }
        Ok(target)
    }

    /// The newest checkpoint that is undamaged, and which newer ones are not.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn newest(&self) -> Result<Newest> {
        let mut newest = Newest::default();
        for step in self.steps()? {
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
}

/// Writes the manifest: after it, the folder is complete.
fn seal(dir: &Path, position: Position) -> Result<()> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, record(&path)?);
    }
    let manifest = Manifest { format: FORMAT, position, files };
    let path = dir.join(MANIFEST);
    let text =
        serde_json::to_vec_pretty(&manifest).map_err(|e| Error::file(&path, e.to_string()))?;
    fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
    sync(&path)?;
    sync(dir)
}

/// Compares a checkpoint's files with its manifest.
fn verify(dir: &Path) -> Result<Position> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string()))?;
    if manifest.format != FORMAT {
        let reason = format!("has layout {}, this program reads {FORMAT}", manifest.format);
        return Err(Error::file(&path, reason));
    }
    for (name, expected) in &manifest.files {
        let path = dir.join(name);
        let found = record(&path)?;
        if found.bytes != expected.bytes {
            let reason = format!("has {} bytes, {} were written", found.bytes, expected.bytes);
            return Err(Error::file(&path, reason));
        }
        if found != *expected {
            return Err(Error::file(&path, "was changed after it was written"));
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
    let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(FileRecord { bytes, sha256 })
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
