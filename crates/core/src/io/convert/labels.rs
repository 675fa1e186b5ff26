//! What a head's outputs mean.

use std::path::Path;

use serde_json::Value as Json;

use super::{ImportOptions, Settings, Source};
use crate::{Error, HeadTask, Result};

/// Names in a file, in order: lines, a JSON list, or a JSON object from names to numbers as Hugging Face's
/// `vocab.json`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::File`] if it is broken or numbers are missing or twice there.
pub fn read_labels(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let labels = if text.trim_start().starts_with(['{', '[']) {
        let json = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
        from_json(&json).ok_or_else(|| {
            let reason = "is neither a list of names nor an object from names to 0, 1, 2, …";
            Error::file(path, reason)
        })?
    } else {
        text.lines().map(str::to_owned).collect()
    };
    Ok(labels)
}

/// A list, an object from names to numbers, or one from numbers to names.
fn from_json(json: &Json) -> Option<Vec<String>> {
    let pairs: Vec<(usize, &str)> = match json {
        Json::Array(names) => names
            .iter()
            .enumerate()
            .map(|(i, name)| Some((i, name.as_str()?)))
            .collect::<Option<_>>(),
        Json::Object(entries) => entries
            .iter()
            .map(|(key, value)| match value {
                Json::String(name) => Some((key.parse().ok()?, name.as_str())),
                value => Some((value.as_u64()? as usize, key.as_str())),
            })
            .collect(),
        _ => None,
    }?;
    let mut names = vec![None; pairs.len()];
    for (at, name) in pairs {
        let place = names.get_mut(at)?;
        if place.replace(name.to_owned()).is_some() {
            return None;
        }
    }
    names.into_iter().collect()
}

/// Names of `outputs` classes: the user's, those of `id2label`, or numbers. And whether they are classes, or
/// the one output is a number.
///
/// # Errors
/// As [`read_labels`], and if there are more or fewer names than outputs.
pub fn classes(
    source: &Source,
    settings: &Settings<'_>,
    options: &ImportOptions,
    outputs: i64,
) -> Result<(HeadTask, Vec<String>)> {
    let regression = outputs == 1 || settings.text("problem_type") == Some("regression");
    let task = if regression { HeadTask::Regression } else { HeadTask::Classification };
    let named = settings.get("id2label").and_then(from_json);
    let labels = match (&options.labels, named) {
        (Some(path), _) => as_many(path, read_labels(path)?, outputs)?,
        (None, Some(names)) if names.len() as i64 == outputs => names,
        _ => (0..outputs).map(|i| i.to_string()).collect(),
    };
    match (task, outputs) {
        (HeadTask::Regression, 2..) => {
            let reason =
                format!("has a head of {outputs} numbers; heads here have one, or classes");
            Err(Error::file(&source.path, reason))
        }
        _ => Ok((task, labels)),
    }
}

/// `labels`, if there are `outputs` of them.
///
/// # Errors
/// [`Error::File`] otherwise.
pub fn as_many(path: &Path, labels: Vec<String>, outputs: i64) -> Result<Vec<String>> {
    match labels.len() as i64 == outputs {
        true => Ok(labels),
        false => {
            let reason = format!("has {} names, the head has {outputs} outputs", labels.len());
            Err(Error::file(path, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_in_json() {
        let of = |json: Json| from_json(&json).unwrap_or_default().join(" ");
        assert_eq!(of(json!(["a", "b"])), "a b");
        assert_eq!(of(json!({"b": 1, "a": 0})), "a b");
        assert_eq!(of(json!({"0": "a", "1": "b"})), "a b");
        for wrong in [json!({"a": 0, "b": 0}), json!({"a": 1}), json!(["a", 1]), json!(3)] {
            assert_eq!(of(wrong.clone()), "", "{wrong}");
        }
    }
}
