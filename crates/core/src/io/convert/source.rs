//! Checkpoints as they lie on the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tch::Tensor;

use crate::checkpoint::read_tensors;
use crate::{Error, Result, pickle};

/// Names under which training programs keep averaged weights, beside the others or within them.
const AVERAGED: &str = "model_ema";
/// Prefix of averaged weights in [`Source::tensors`].
const TEACHER: &str = "_ema.";

/// Files of weights in a folder of Hugging Face; the first that is there is taken.
pub const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// What the name of the list has behind it where the weights lie in parts.
pub const INDEX: &str = ".index.json";

/// What was found in a checkpoint.
#[derive(Debug)]
pub struct Source {
    /// The file of tensors.
    pub path: PathBuf,
    /// All tensors by name; averaged weights that are kept apart have `_ema.` before theirs.
    pub tensors: BTreeMap<String, Tensor>,
    /// Its configuration, null if it has none: `config.json`, or a checkpoint's `cfg` or `args`.
    pub config: Json,
    /// Entries in the head of a safetensors file.
    pub facts: HashMap<String, String>,
    /// Where files that go with it would be.
    pub folder: PathBuf,
}

/// How a layout is told: by a tensor that all its checkpoints have, behind one of some prefixes.
#[derive(Clone, Copy, Debug)]
pub struct Marker<L> {
    /// The layout.
    pub layout: L,
    /// The tensor's name.
    pub name: &'static str,
    /// Prefixes of all names of the encoder.
    pub prefixes: &'static [&'static str],
}

impl Source {
    /// Reads a folder of Hugging Face (`config.json` and `model.safetensors` or `pytorch_model.bin`, whole or in
    /// parts that an index lists), a file of `torch.save`, or a safetensors file, which may have a `config.json`
    /// beside it.
    ///
    /// # Errors
    /// If nothing of that kind is there, or it is broken.
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
            Some(index) => Self::parts(index),
            None => {
                let reason = format!("holds neither {}", WEIGHTS.join(" nor "));
                Err(Error::file(path, reason))
            }
        }
    }

    /// All that the parts hold which the file `index` lists.
    fn parts(index: &Path) -> Result<Self> {
        let folder = index.parent().unwrap_or(Path::new("")).to_owned();
        let parts = parts(index)?;
        let mut tensors = BTreeMap::new();
        for part in &parts {
            tensors.extend(Self::file(&folder.join(part))?.tensors);
        }
        let config = json(&folder.join("config.json"))?;
        Ok(Self { path: index.to_owned(), tensors, config, facts: HashMap::new(), folder })
    }

    fn file(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let beside = json(&folder.join("config.json"))?;
        let mut facts = HashMap::new();
        let (tensors, config) = match is_safetensors(path)? {
            true => {
                let tensors = read_tensors(path)?;
                facts = read_facts(path)?;
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
        let config = if config.is_null() { beside } else { config };
        Ok(Self { path: path.to_owned(), tensors, config, facts, folder })
    }

    /// The first of `markers` whose tensor is there, and the prefix of the encoder's names.
    pub fn layout<L: Copy>(&self, markers: &[Marker<L>]) -> Option<(L, &'static str)> {
        markers.iter().find_map(|marker| {
            let has =
                |prefix: &&str| self.tensors.contains_key(&format!("{prefix}{}", marker.name));
            marker.prefixes.iter().copied().find(|p| has(p)).map(|p| (marker.layout, p))
        })
    }

    /// Puts averaged weights in the places of those that they are averages of. `place` names that of one
    /// whose name, behind `prefix`, is given.
    ///
    /// # Errors
    /// [`Error::File`] if there are none.
    pub fn use_teacher(&mut self, prefix: &str, place: impl Fn(&str) -> String) -> Result<()> {
        let averaged = self.tensors.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(prefix)?.strip_prefix(TEACHER)?;
            Some((place(name), tensor.shallow_clone()))
        });
        let averaged: Vec<(String, Tensor)> = averaged.collect();
        if averaged.is_empty() {
            let reason = "holds no averaged weights: import it without the teacher";
            return Err(Error::file(&self.path, reason));
        }
        self.tensors.extend(averaged);
        Ok(())
    }

    /// An error about the key of the configuration that says what cannot be had here.
    pub fn cannot(&self, key: &str, value: &str) -> Error {
        let reason = format!("its configuration has {key} = {value}, which this encoder cannot be");
        Error::file(&self.path, reason)
    }

    /// The size of the tensor `name`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is missing, or has not `D` dimensions.
    pub fn size<const D: usize>(&self, name: &str) -> Result<[i64; D]> {
        let size = self.tensors.get(name).ok_or_else(|| self.missing(name, |_| true))?.size();
        let wrong =
            |size: Vec<i64>| self.bad(name, format!("has shape {size:?}, not {D} dimensions"));
        size.try_into().map_err(wrong)
    }

    /// How many of the names that `name` makes of 0, 1, … are there, one after the other.
    pub fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.tensors.contains_key(&name(i))).count()
    }

    /// Attention heads: as told, or of 64 channels each, as in all published sizes.
    ///
    /// # Errors
    /// [`Error::File`] if neither is known.
    pub fn heads(&self, told: Option<i64>, dim: i64) -> Result<i64> {
        match told {
            Some(heads) => Ok(heads),
            None if dim % 64 == 0 => Ok(dim / 64),
            None => {
                let reason = format!(
                    "does not say how many attention heads its width of {dim} has: add --heads"
                );
                Err(Error::file(&self.path, reason))
            }
        }
    }

    /// The JSON file `name` beside it; null if there is none.
    ///
    /// # Errors
    /// [`Error::File`] if it is broken.
    pub fn json(&self, name: &str) -> Result<Json> {
        json(&self.folder.join(name))
    }

    pub(super) fn bad(&self, name: &str, reason: String) -> Error {
        Error::Tensor { path: self.path.clone(), name: name.to_owned(), reason }
    }

    /// An error that names the nearest of the tensors that could be meant.
    pub(super) fn missing(&self, name: &str, could_be: impl Fn(&str) -> bool) -> Error {
        const SHOWN: usize = 3;
        let keys = self.tensors.keys().filter(|key| could_be(key));
        let mut near: Vec<(usize, &String)> =
            keys.map(|key| (strsim::levenshtein(key, name), key)).collect();
        near.sort();
        let near: Vec<String> =
            near.iter().take(SHOWN).map(|(_, key)| format!("`{key}`")).collect();
        let near = match near.is_empty() {
            true => "all others are in their places".to_owned(),
            false => format!("the nearest there are {}", near.join(", ")),
        };
        self.bad(name, format!("is missing; {near}"))
    }
}

/// safetensors begin with the length of a JSON object, and with that.
fn is_safetensors(path: &Path) -> Result<bool> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut start = [0; 9];
    match file.read_exact(&mut start) {
        Ok(()) => Ok(start[8] == b'{'),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Entries in the head of a safetensors file that has been read before.
fn read_facts(path: &Path) -> Result<HashMap<String, String>> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| Error::io(path, e))?;
    let mut head = Vec::new();
    file.take(u64::from_le_bytes(length)).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    let head: Json = serde_json::from_slice(&head).map_err(|e| Error::file(path, e.to_string()))?;
    let entries = head["__metadata__"].as_object().into_iter().flatten();
    let text = |(name, value): (&String, &Json)| Some((name.clone(), value.as_str()?.to_owned()));
    Ok(entries.filter_map(text).collect())
}

/// The names of the files that an index lists, each once; in its own folder alone.
///
/// # Errors
/// [`Error::File`] if it lists none, or one of another folder.
pub fn parts(index: &Path) -> Result<BTreeSet<String>> {
    let map = json(index)?;
    let files = map["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let names: Option<BTreeSet<String>> = files.map(|f| f.as_str().map(str::to_owned)).collect();
    let names = names.filter(|names| !names.is_empty()).ok_or_else(|| {
        Error::file(index, "lists no files: its `weight_map` is not one of names and files")
    })?;
    let is_plain = |name: &&String| Path::new(name).file_name() == Some(name.as_ref());
    match names.iter().find(|name| !is_plain(name)) {
        Some(name) => {
            Err(Error::file(index, format!("lists {name:?}, which is no file beside it")))
        }
        None => Ok(names),
    }
}

fn json(path: &Path) -> Result<Json> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Json::Null),
        Err(e) => return Err(Error::io(path, e)),
    };
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, e.to_string()))
}

/// Where fairseq's 2.0 has the weights of which averages are called `name`: some averages are of the blocks
/// alone, and begin with a number.
pub fn teachers_place(prefix: &str) -> impl Fn(&str) -> String {
    move |name| match name.as_bytes().first() {
        Some(b'0'..=b'9') => format!("{prefix}blocks.{name}"),
        _ => format!("{prefix}{name}"),
    }
}
