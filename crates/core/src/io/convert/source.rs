//! Checkpoint files of other programs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tch::Tensor;

use crate::io::checkpoint::read_tensors;
use crate::{Error, Result, io::pickle};

/// Key of averaged weights beside the state dict.
const AVERAGED: &str = "model_ema";
/// Prefix of averaged weights in [`Source::tensors`].
const TEACHER: &str = "_ema.";

/// File names of weights in a Hugging Face directory, by priority.
pub const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Suffix of the index of sharded weights.
pub const INDEX: &str = ".index.json";

/// The content of a checkpoint.
#[derive(Debug)]
pub struct Source {
    /// Path of the file of tensors.
    pub path: PathBuf,
    /// All tensors by name; averaged weights that are stored separately have the prefix `_ema.`.
    pub tensors: BTreeMap<String, Tensor>,
    /// Configuration (`config.json`, or `cfg` or `args` in the checkpoint); null if there is none.
    pub config: Json,
    /// Metadata of a safetensors file.
    pub metadata: HashMap<String, String>,
    /// Directory of the checkpoint, in which accompanying files are searched.
    pub dir: PathBuf,
}

/// A tensor by which a layout is detected, under one of several prefixes.
#[derive(Clone, Copy, Debug)]
pub struct Marker<L> {
    /// The detected layout.
    pub layout: L,
    /// Name of the tensor.
    pub name: &'static str,
    /// Possible prefixes of the names of the encoder.
    pub prefixes: &'static [&'static str],
}

impl Source {
    /// Reads a Hugging Face directory (`config.json` with `model.safetensors` or
    /// `pytorch_model.bin`, possibly sharded), a `torch.save` file, or a safetensors file with an
    /// optional `config.json` beside it.
    ///
    /// # Errors
    /// Returns an error if `path` has none of these formats or a file is invalid.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !meta.is_dir() {
            return Self::file(path);
        }
        let files = WEIGHTS.map(|name| path.join(name));
        if let Some(file) = files.iter().find(|file| file.is_file()) {
            return Self::file(file);
        }
        let indices = WEIGHTS.map(|name| path.join(format!("{name}{INDEX}")));
        match indices.iter().find(|index| index.is_file()) {
            Some(index) => Self::shards(index),
            None => {
                let reason = format!("contains neither {}", WEIGHTS.join(" nor "));
                Err(Error::file(path, reason))
            }
        }
    }

    /// Reads all shards that the file `index` lists.
    fn shards(index: &Path) -> Result<Self> {
        let dir = index.parent().unwrap_or(Path::new("")).to_owned();
        let mut tensors = BTreeMap::new();
        for shard in shard_names(index)? {
            tensors.extend(Self::file(&dir.join(shard))?.tensors);
        }
        let config = json(&dir.join("config.json"))?;
        Ok(Self { path: index.to_owned(), tensors, config, metadata: HashMap::new(), dir })
    }

    fn file(path: &Path) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let sidecar = json(&dir.join("config.json"))?;
        let mut metadata = HashMap::new();
        let (tensors, config) = match is_safetensors(path)? {
            true => {
                let tensors = read_tensors(path)?;
                metadata = read_metadata(path)?;
                (tensors, Json::Null)
            }
            false => {
                let saved = pickle::read(path)?;
                let mut tensors = saved.tensors(saved.state_dict())?;
                if let Some(averaged) = saved.root().get(AVERAGED).filter(|value| value.is_dict()) {
                    let averaged = saved.tensors(averaged)?.into_iter();
                    tensors.extend(averaged.map(|(name, t)| (format!("{TEACHER}{name}"), t)));
                }
                let configs = ["cfg", "args"].iter().filter_map(|key| saved.root().get(key));
                let config = configs.map(|value| value.to_json()).find(Json::is_object);
                (tensors, config.unwrap_or_default())
            }
        };
        let config = if config.is_null() { sidecar } else { config };
        Ok(Self { path: path.to_owned(), tensors, config, metadata, dir })
    }

    /// Returns the layout and the prefix of the first of `markers` whose tensor exists.
    pub fn detect_layout<L: Copy>(&self, markers: &[Marker<L>]) -> Option<(L, &'static str)> {
        markers.iter().find_map(|marker| {
            let has =
                |prefix: &&str| self.tensors.contains_key(&format!("{prefix}{}", marker.name));
            marker.prefixes.iter().copied().find(|p| has(p)).map(|p| (marker.layout, p))
        })
    }

    /// Replaces the trained weights by the averaged ones.
    ///
    /// `target` maps the name of an averaged weight, without `prefix`, to that of the trained
    /// weight.
    ///
    /// # Errors
    /// Returns [`Error::File`] if there are no averaged weights.
    pub fn use_teacher(&mut self, prefix: &str, target: impl Fn(&str) -> String) -> Result<()> {
        let averaged = self.tensors.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(prefix)?.strip_prefix(TEACHER)?;
            Some((target(name), tensor.shallow_clone()))
        });
        let averaged: Vec<(String, Tensor)> = averaged.collect();
        if averaged.is_empty() {
            let reason = "contains no averaged weights; import it without --teacher";
            return Err(Error::file(&self.path, reason));
        }
        self.tensors.extend(averaged);
        Ok(())
    }

    /// Returns an error about an unsupported value in the configuration.
    pub fn unsupported(&self, key: &str, value: &str) -> Error {
        let reason = format!("its configuration has {key} = {value}, which is not supported");
        Error::file(&self.path, reason)
    }

    /// Returns the size of the tensor `name`.
    ///
    /// # Errors
    /// Returns [`Error::Tensor`] if it is missing or does not have `D` dimensions.
    pub fn size<const D: usize>(&self, name: &str) -> Result<[i64; D]> {
        let size = self.tensors.get(name).ok_or_else(|| self.missing(name, |_| true))?.size();
        let wrong =
            |size: Vec<i64>| self.bad(name, format!("has shape {size:?}, not {D} dimensions"));
        size.try_into().map_err(wrong)
    }

    /// Counts the consecutive indices from 0 for which the tensor `name(index)` exists.
    pub fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.tensors.contains_key(&name(i))).count()
    }

    /// Returns the number of attention heads: `heads`, or one per 64 channels as in all published
    /// sizes.
    ///
    /// # Errors
    /// Returns [`Error::File`] without `heads` if `dim` is not a multiple of 64.
    pub fn heads(&self, heads: Option<i64>, dim: i64) -> Result<i64> {
        match heads {
            Some(heads) => Ok(heads),
            None if dim % 64 == 0 => Ok(dim / 64),
            None => {
                let reason = format!(
                    "does not contain the number of attention heads (width {dim}); add --heads"
                );
                Err(Error::file(&self.path, reason))
            }
        }
    }

    /// Reads the JSON file `name` beside the checkpoint; null if it does not exist.
    ///
    /// # Errors
    /// Returns [`Error::File`] if it is invalid.
    pub fn json(&self, name: &str) -> Result<Json> {
        json(&self.dir.join(name))
    }

    pub(super) fn bad(&self, name: &str, reason: String) -> Error {
        Error::Tensor { path: self.path.clone(), name: name.to_owned(), reason }
    }

    /// Returns an error about a missing tensor that lists the most similar names.
    pub(super) fn missing(&self, name: &str, is_candidate: impl Fn(&str) -> bool) -> Error {
        const MAX_SHOWN: usize = 3;
        let keys = self.tensors.keys().filter(|key| is_candidate(key));
        let mut similar: Vec<(usize, &String)> =
            keys.map(|key| (strsim::levenshtein(key, name), key)).collect();
        similar.sort();
        let similar: Vec<String> =
            similar.iter().take(MAX_SHOWN).map(|(_, key)| format!("`{key}`")).collect();
        let hint = match similar.is_empty() {
            true => "no unused tensor is left".to_owned(),
            false => format!("the most similar names are {}", similar.join(", ")),
        };
        self.bad(name, format!("is missing; {hint}"))
    }
}

/// Detects safetensors: the length of a JSON object, then the object.
fn is_safetensors(path: &Path) -> Result<bool> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut start = [0; 9];
    match file.read_exact(&mut start) {
        Ok(()) => Ok(start[8] == b'{'),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Reads the metadata of a valid safetensors file.
fn read_metadata(path: &Path) -> Result<HashMap<String, String>> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| Error::io(path, e))?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length))
        .read_to_end(&mut header)
        .map_err(|e| Error::io(path, e))?;
    let header: Json =
        serde_json::from_slice(&header).map_err(|e| Error::file(path, e.to_string()))?;
    let entries = header["__metadata__"].as_object().into_iter().flatten();
    let string = |(name, value): (&String, &Json)| Some((name.clone(), value.as_str()?.to_owned()));
    Ok(entries.filter_map(string).collect())
}

/// Returns the distinct file names that an index of sharded weights lists.
///
/// # Errors
/// Returns [`Error::File`] if it lists none, or one in another directory.
pub fn shard_names(index: &Path) -> Result<BTreeSet<String>> {
    let map = json(index)?;
    let files = map["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let names: Option<BTreeSet<String>> = files.map(|f| f.as_str().map(str::to_owned)).collect();
    let names = names.filter(|names| !names.is_empty()).ok_or_else(|| {
        Error::file(index, "lists no files; its `weight_map` must map tensor names to file names")
    })?;
    let is_plain = |name: &&String| Path::new(name).file_name() == Some(name.as_ref());
    match names.iter().find(|name| !is_plain(name)) {
        Some(name) => {
            Err(Error::file(index, format!("lists {name:?}, which is not in the same directory")))
        }
        None => Ok(names),
    }
}

/// Reads a JSON file; null if it does not exist.
fn json(path: &Path) -> Result<Json> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Json::Null),
        Err(e) => return Err(Error::io(path, e)),
    };
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, e.to_string()))
}

/// Returns a function from names of averaged weights in fairseq's data2vec 2.0 to the trained ones.
///
/// Some checkpoints average only the blocks; their names start with the index of the block.
pub fn ema_weight_name(prefix: &str) -> impl Fn(&str) -> String {
    move |name| match name.as_bytes().first() {
        Some(b'0'..=b'9') => format!("{prefix}blocks.{name}"),
        _ => format!("{prefix}{name}"),
    }
}
