//! The native layout in a single file, see [`Model::to_native`](super::Model::to_native).

use serde::de::DeserializeOwned;

use super::{ImportOptions, Imported, NameMap, Source};
use crate::{EncoderConfig, Error, FeatureEncoder, Result};

/// Metadata key of `encoder.toml`.
pub(super) const ENCODER: &str = "encoder";
/// Metadata key of `head.toml`.
pub(super) const HEAD: &str = "head";
/// Upper bound of the number of components of a variable name.
const MAX_COMPONENTS: usize = 8;

/// Imports a model of the encoder `F` in the native layout; `None` if `source` has another layout.
///
/// # Errors
/// Returns an error if settings or tensors are invalid, or an option contradicts the file.
pub fn import_native<F: FeatureEncoder>(
    source: &mut Source,
    options: &ImportOptions,
) -> Result<Option<Imported<F::Config>>> {
    let Some(settings) = metadata_entry::<toml::Table>(source, ENCODER)? else { return Ok(None) };
    if settings.get("encoder").and_then(toml::Value::as_str) != Some(F::NAME) {
        return Ok(None);
    }
    if options.teacher {
        source.use_teacher("", str::to_owned)?; // an error: there are no averaged weights
    }
    let config: EncoderConfig<F::Config> =
        settings.try_into().map_err(|e| invalid(source, ENCODER, &e))?;
    let EncoderConfig { features, transformer, .. } = config;
    if options.labels.is_some() || options.heads.is_some_and(|heads| heads != transformer.heads) {
        let reason = "contains its attention heads and labels; omit --heads and --labels";
        return Err(Error::file(&source.path, reason));
    }
    let rows: Vec<String> = (1..=MAX_COMPONENTS).map(|n| vec!["*"; n].join(".")).collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.as_str(), row.as_str())).collect();
    let names = NameMap::new("a model of data2vec").rows("", "", &rows);
    let head = metadata_entry(source, HEAD)?;
    let mut imported = super::import::<F>(source, &names, features, transformer, head)?;
    imported.description = "a model of data2vec in one file".into();
    Ok(Some(imported))
}

/// Parses an entry of the metadata, if it exists.
fn metadata_entry<T: DeserializeOwned>(source: &Source, name: &str) -> Result<Option<T>> {
    let entry = source.metadata.get(name);
    entry.map(|entry| toml::from_str(entry).map_err(|e| invalid(source, name, &e))).transpose()
}

fn invalid(source: &Source, name: &str, error: &toml::de::Error) -> Error {
    let reason = format!("the metadata entry `{name}` is invalid ({})", error.message());
    Error::file(&source.path, reason)
}
