//! Reads the tensors of a `torch.save` file.

use std::collections::{BTreeMap, HashMap};

use tch::{Kind, Tensor};

use super::container::Storages;
use super::{MAX_DEPTH, MAX_VISITS, Node, Saved, Value, View, invalid};
use crate::{Error, Result};

/// Largest ratio of the total size of tensors to that of storages; tied weights share storages.
const MAX_OVERLAP: u64 = 4;
/// Largest length of a name in bytes.
const MAX_NAME: usize = 1 << 10;

impl Saved {
    /// Returns the state dict: the dict at `model`, `module` or `state_dict`, else the outermost
    /// value.
    pub fn state_dict(&self) -> Value<'_> {
        let keys = ["model", "module", "state_dict"];
        let inner = keys.iter().filter_map(|key| self.root().get(key));
        inner.into_iter().find(|value| value.is_dict()).unwrap_or_else(|| self.root())
    }

    /// Reads all tensors in the dict `value` and in nested dicts, whose names are joined by dots.
    ///
    /// # Errors
    /// Returns [`Error::Tensor`] if a tensor exceeds its storage or has an unsupported type, and
    /// [`Error::File`] if there are no tensors.
    pub fn tensors(&self, value: Value<'_>) -> Result<BTreeMap<String, Tensor>> {
        let (mut views, mut visits) = (BTreeMap::new(), 0);
        collect(value, "", 0, &mut visits, &mut views);
        if views.is_empty() {
            return Err(Error::file(&self.path, "contains no named tensors: no state dict"));
        }
        let mut lengths: HashMap<&str, u64> = HashMap::new();
        let mut total: u64 = 0;
        for (name, view) in &views {
            let bytes = extent(view).map_err(|reason| self.bad(name, reason))?;
            total = total.saturating_add(bytes);
            let storage_bytes = (view.storage.numel as u64).saturating_mul(width(view) as u64);
            lengths.insert(&view.storage.key, storage_bytes);
        }
        if total
            > lengths
                .values()
                .fold(0, |all: u64, &n| all.saturating_add(n))
                .saturating_mul(MAX_OVERLAP)
        {
            return Err(invalid(&self.path, "its tensors overlap too often"));
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

/// Collects the tensors in a dict and in nested dicts, by name.
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
            continue; // too long for the name of a tensor
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

/// Returns the size of a tensor in bytes; an error if it exceeds its storage.
fn extent(view: &View) -> std::result::Result<u64, String> {
    let View { storage, offset, size, stride } = view;
    if storage.kind.is_none() {
        return Err("has an unsupported type; re-save it as float32".into());
    }
    let capacity = storage.numel;
    let outside = || format!("has shape {size:?} and exceeds its storage of {capacity} elements");
    let negative = size.iter().chain(stride).chain([offset]).any(|&n| n < 0);
    let numel = size.iter().try_fold(1_i64, |all, &n| all.checked_mul(n));
    let numel = numel.filter(|&n| !negative && n <= capacity).ok_or_else(outside)?;
    let last = size
        .iter()
        .zip(stride)
        .try_fold(*offset, |last, (&n, &step)| last.checked_add((n - 1).max(0).checked_mul(step)?));
    if numel > 0 && last.is_none_or(|last| last >= capacity) {
        return Err(outside());
    }
    Ok((numel as u64).saturating_mul(width(view) as u64))
}
