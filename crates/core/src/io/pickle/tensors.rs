//! Tensors of a file: their values are read here.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tch::{Kind, Tensor};

use super::container::Storages;
use super::{MAX_DEPTH, MAX_VISITS, Node, Saved, Value, View, broken};
use crate::{Error, Result};

/// Bytes that the tensors of a file may have together, over those of the storages that they share:
/// averaged and tied weights may lie in the same place.
const MAX_SHARING: u64 = 4;
/// Bytes of a name.
const MAX_NAME: usize = 1 << 10;

/// All tensors of the state dict in `path`: what is at `model`, `module` or `state_dict`, or the outermost
/// dict itself. Dicts within it are flattened, names joined by dots.
///
/// # Errors
/// As [`read`](super::read) and [`Saved::tensors`].
pub fn tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let saved = super::read(path)?;
    saved.tensors(saved.state_dict())
}

impl Saved {
    /// The state dict in it, by the names that training programs give it.
    pub fn state_dict(&self) -> Value<'_> {
        let named = ["model", "module", "state_dict"];
        let inner = named.iter().filter_map(|name| self.root().get(name));
        inner.into_iter().find(|value| value.is_dict()).unwrap_or_else(|| self.root())
    }

    /// All tensors in the dict `value`, and in dicts within it, names joined by dots.
    ///
    /// # Errors
    /// [`Error::Tensor`] for one that reaches beyond its storage, or has a type that is not read here;
    /// [`Error::File`] if there are none.
    pub fn tensors(&self, value: Value<'_>) -> Result<BTreeMap<String, Tensor>> {
        let (mut views, mut visits) = (BTreeMap::new(), 0);
        collect(value, "", 0, &mut visits, &mut views);
        if views.is_empty() {
            return Err(Error::file(&self.path, "holds no tensors by name: no state dict"));
        }
        let mut lengths: HashMap<&str, u64> = HashMap::new();
        let mut total: u64 = 0;
        for (name, view) in &views {
            let bytes = extent(view).map_err(|reason| self.bad(name, reason))?;
            total = total.saturating_add(bytes);
            let whole = (view.storage.numel as u64).saturating_mul(width(view) as u64);
            lengths.insert(&view.storage.key, whole);
        }
        if total
            > lengths
                .values()
                .fold(0, |all: u64, &n| all.saturating_add(n))
                .saturating_mul(MAX_SHARING)
        {
            return Err(broken(&self.path, "its tensors overlap again and again"));
        }
        let mut storages = Storages::open(&self.path, &self.container)?;
        let mut read: HashMap<&str, Tensor> = HashMap::new();
        let mut tensors = BTreeMap::new();
        for (name, view) in &views {
            let key = view.storage.key.as_str();
            let kind = view.storage.kind.unwrap_or(Kind::Uint8);
            let storage = match read.get(key) {
                Some(storage) if storage.kind() == kind => storage.shallow_clone(),
                _ => {
                    let bytes = storages.read(key, lengths[key])?;
                    let numel = bytes.len() as i64 / width(view) as i64;
                    let storage = Tensor::f_from_data_size(&bytes, &[numel], kind)?;
                    read.insert(key, storage.shallow_clone());
                    storage
                }
            };
            let tensor = storage.f_as_strided(&view.size, &view.stride, view.offset)?;
            tensors.insert(name.clone(), tensor);
        }
        Ok(tensors)
    }

    fn bad(&self, name: &str, reason: String) -> Error {
        Error::Tensor { path: self.path.clone(), name: name.to_owned(), reason }
    }
}

fn collect<'a>(
    value: Value<'a>,
    prefix: &str,
    depth: usize,
    visits: &mut usize,
    views: &mut BTreeMap<String, &'a View>,
) {
    for (key, value) in value.entries() {
        *visits += 1;
        if *visits > MAX_VISITS {
            return;
        }
        let name = format!("{prefix}{key}");
        if name.len() > MAX_NAME {
            continue; // no name of a tensor
        }
        match value.node() {
            Node::Tensor(view) => drop(views.insert(name, view)),
            Node::Dict(_) if depth < MAX_DEPTH => {
                collect(value, &format!("{name}."), depth + 1, visits, views);
            }
            _ => {}
        }
    }
}

fn width(view: &View) -> usize {
    view.storage.kind.unwrap_or(Kind::Uint8).elt_size_in_bytes()
}

/// Bytes of the tensor's own values, or why they cannot be.
fn extent(view: &View) -> std::result::Result<u64, String> {
    let View { storage, offset, size, stride } = view;
    if storage.kind.is_none() {
        return Err("is of a type that is not read here; re-save it as float32".into());
    }
    let whole = storage.numel;
    let outside =
        || format!("has shape {size:?} and reaches beyond its storage of {whole} numbers");
    let bad = size.iter().chain(stride).chain([offset]).any(|&n| n < 0);
    let numel = size.iter().try_fold(1_i64, |all, &n| all.checked_mul(n));
    let numel = numel.filter(|&n| !bad && n <= whole).ok_or_else(outside)?;
    let last = size
        .iter()
        .zip(stride)
        .try_fold(*offset, |last, (&n, &step)| last.checked_add((n - 1).max(0).checked_mul(step)?));
    if numel > 0 && last.is_none_or(|last| last >= whole) {
        return Err(outside());
    }
    Ok((numel as u64).saturating_mul(width(view) as u64))
}
