//! Our own layout in one file: what [`Model::plain`](super::Model::plain) makes.

use serde::de::DeserializeOwned;

use super::{ImportOptions, Imported, Source, Table};
use crate::{EncoderConfig, Error, FeatureEncoder, Result};

/// `encoder.toml`, in the head of the file of tensors.
pub(super) const ENCODER: &str = "encoder";
/// `head.toml`, the same way.
pub(super) const HEAD: &str = "head";
/// Most dots in a name of a variable, and more.
const DEPTH: usize = 8;

/// Takes back a model of the encoder `F`; `None` if it is none.
///
/// # Errors
/// If its settings are broken or a tensor is missing or misshapen; or for options about what it says itself.
pub fn import_own<F: FeatureEncoder>(
    source: &mut Source,
    options: &ImportOptions,
) -> Result<Option<Imported<F::Config>>> {
    let Some(settings) = fact::<toml::Table>(source, ENCODER)? else { return Ok(None) };
    if settings.get("encoder").and_then(toml::Value::as_str) != Some(F::NAME) {
        return Ok(None);
    }
    if options.teacher {
        source.use_teacher("", str::to_owned)?; // has none
    }
    let config: EncoderConfig<F::Config> =
        settings.try_into().map_err(|e| broken(source, ENCODER, &e))?;
    let EncoderConfig { features, transformer, .. } = config;
    if options.labels.is_some() || options.heads.is_some_and(|heads| heads != transformer.heads) {
        let reason = "tells its attention heads and its labels itself: leave out what says them";
        return Err(Error::file(&source.path, reason));
    }
    let rows: Vec<String> = (1..=DEPTH).map(|n| vec!["*"; n].join(".")).collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.as_str(), row.as_str())).collect();
    let table = Table::new("a model of data2vec").rows("", "", &rows);
    let head = fact(source, HEAD)?;
    let mut imported = super::import::<F>(source, &table, features, transformer, head)?;
    imported.what = "a model of data2vec in one file".into();
    Ok(Some(imported))
}

/// An entry of the file's head, if it is there.
fn fact<T: DeserializeOwned>(source: &Source, name: &str) -> Result<Option<T>> {
    let text = source.facts.get(name);
    text.map(|text| toml::from_str(text).map_err(|e| broken(source, name, &e))).transpose()
}

fn broken(source: &Source, name: &str, error: &toml::de::Error) -> Error {
    let reason = format!("the entry `{name}` of its head is broken ({})", error.message());
    Error::file(&source.path, reason)
}
