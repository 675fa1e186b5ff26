//! Safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::View;
use safetensors::tensor::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::hex;
use crate::io::file::replace_file;
use crate::{Error, Result};

/// Writes named tensors to a safetensors file, atomically.
///
/// # Errors
/// Returns [`Error::Io`] if the file cannot be written and [`Error::File`] for unsupported types.
pub fn write_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    write_tensors_with_metadata(path, tensors, &HashMap::new())
}

/// Writes named tensors, atomically, with `metadata` in the header of the safetensors file.
pub(crate) fn write_tensors_with_metadata(
    path: &Path,
    tensors: &HashMap<String, Tensor>,
    metadata: &HashMap<String, String>,
) -> Result<()> {
    let mut data = BTreeMap::new();
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let dtype = to_dtype(tensor.kind())
            .ok_or_else(|| Error::file(path, format!("`{name}` has kind {:?}", tensor.kind())))?;
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        data.insert(name, TensorView { tensor, dtype, shape });
    }
    let metadata = (!metadata.is_empty()).then(|| metadata.clone());
    replace_file(path, |temp| {
        safetensors::serialize_to_file(data, metadata, temp).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io(path, e),
            e => Error::file(path, e.to_string()),
        })
    })
}

/// Writes the weights of a model with their SHA-256 digest in the header of the safetensors file, so
/// that [`read_tensors`] notices damage. Checkpoints have manifests instead.
///
/// # Errors
/// As [`write_tensors`].
pub(crate) fn write_weights(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    let mut digest = WeightDigest::default();
    let sorted: BTreeMap<&String, &Tensor> = tensors.iter().collect();
    for (name, tensor) in sorted {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0_u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        digest.add(name, &tensor.size(), &bytes);
    }
    let metadata = HashMap::from([(DIGEST.to_owned(), digest.finish())]);
    write_tensors_with_metadata(path, tensors, &metadata)
}

/// Key of the digest in the header of a file of weights.
const DIGEST: &str = "data2vec.sha256";

/// Digest of names, shapes and values of tensors, added in the order of their names.
#[derive(Default)]
struct WeightDigest(Sha256);

impl WeightDigest {
    fn add(&mut self, name: &str, shape: &[i64], bytes: &[u8]) {
        self.0.update(format!("{name}\0{shape:?}\0"));
        self.0.update(bytes);
    }

    fn finish(self) -> String {
        hex(self.0.finalize())
    }
}

/// Reads all tensors of a safetensors file. A digest in its header is checked.
///
/// # Errors
/// Returns [`Error::Io`] if the file cannot be read and [`Error::File`] if it is truncated, damaged
/// or not a safetensors file.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let invalid = |e: String| Error::file(path, format!("not a complete safetensors file ({e})"));
    let file = SafeTensors::deserialize(&bytes).map_err(|e| invalid(e.to_string()))?;
    let header = SafeTensors::read_metadata(&bytes).map_err(|e| invalid(e.to_string()))?.1;
    let expected = header.metadata().as_ref().and_then(|metadata| metadata.get(DIGEST));
    let mut digest = expected.map(|_| WeightDigest::default());
    let mut views: Vec<_> = file.iter().collect();
    views.sort_by(|a, b| a.0.cmp(b.0));
    let mut tensors = BTreeMap::new();
    for (name, view) in views {
        let kind = to_kind(view.dtype())
            .ok_or_else(|| Error::file(path, format!("`{name}` has type {:?}", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        if let Some(digest) = &mut digest {
            digest.add(name, &shape, view.data());
        }
        tensors.insert(name.to_owned(), Tensor::f_from_data_size(view.data(), &shape, kind)?);
    }
    if let Some((digest, expected)) = digest.zip(expected)
        && digest.finish() != *expected
    {
        let reason = "was changed after it was written (SHA-256 of the weights differs); restore it, or export it again";
        return Err(Error::file(path, reason));
    }
    Ok(tensors)
}

/// A contiguous CPU tensor; bytes are copied when written, one tensor at a time.
struct TensorView {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for TensorView {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0_u8; self.data_len()];
        self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
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

/// Copies `tensors`, read from `path`, into the variables of the same names; ignores other tensors.
///
/// # Errors
/// Returns [`Error::Tensor`] if a variable has no tensor or one of another shape; then no variable
/// is changed.
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

/// Returns the variables whose names start with `prefix`.
pub(crate) fn filter_by_prefix(
    vars: &HashMap<String, Tensor>,
    prefix: &str,
) -> HashMap<String, Tensor> {
    let matching = vars.iter().filter(|(name, _)| name.starts_with(prefix));
    matching.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_weights_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("weights.safetensors");
        let options = (Kind::Float, Device::Cpu);
        let tensors = HashMap::from([
            ("b".to_owned(), Tensor::randn([3, 4], options).tr()),
            ("a".to_owned(), Tensor::randn([5], options)),
        ]);
        write_weights(&path, &tensors).expect("written");
        let read = read_tensors(&path).expect("intact");
        assert!(read["b"].equal(&tensors["b"]) && read["a"].equal(&tensors["a"]));
        let intact = fs::read(&path).expect("bytes");
        for index in [intact.len() - 1, intact.len() - 60] {
            let mut bytes = intact.clone();
            bytes[index] ^= 1;
            fs::write(&path, bytes).expect("written");
            let error = read_tensors(&path).expect_err("damaged").to_string();
            assert!(error.contains("was changed after it was written"), "{error}");
        }
        // Files of other programs have no digest.
        write_tensors(&path, &tensors).expect("written");
        assert_eq!(read_tensors(&path).expect("tensors").len(), 2);
    }
}
