//! Labels of imported heads.

use std::path::Path;

use serde_json::Value as Json;

use super::{ImportOptions, Settings, Source};
use crate::{Error, HeadTask, Result};

/// Reads labels from a file: one per line, a JSON list, or a JSON object from labels to indices
/// such as Hugging Face's `vocab.json`.
///
/// # Errors
/// Returns [`Error::Io`] if the file cannot be read and [`Error::File`] if it is invalid or indices
/// are missing or duplicate.
pub fn read_labels(path: &Path) -> Result<Vec<String>> {
    let content = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let labels = if content.trim_start().starts_with(['{', '[']) {
        let json = serde_json::from_str(&content).map_err(|e| Error::file(path, e.to_string()))?;
        from_json(&json).ok_or_else(|| {
            let reason = "is neither a list of labels nor an object from labels to 0, 1, 2, …";
            Error::file(path, reason)
        })?
    } else {
        content.lines().map(str::to_owned).collect()
    };
    Ok(labels)
}

/// Parses a list, an object from labels to indices, or one from indices to labels.
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
    for (index, name) in pairs {
        if names.get_mut(index)?.replace(name.to_owned()).is_some() {
            return None;
        }
    }
    names.into_iter().collect()
}

/// Returns task and labels of a head with `outputs` outputs.
///
/// The task is regression or classification. Labels are those of the user's file, of `id2label`, or
/// indices.
///
/// # Errors
/// See [`read_labels`]; also returns [`Error::File`] if the number of labels is wrong or the head
/// regresses several values.
pub fn class_labels(
    source: &Source,
    settings: &Settings<'_>,
    options: &ImportOptions,
    outputs: i64,
) -> Result<(HeadTask, Vec<String>)> {
    let regression = outputs == 1 || settings.string("problem_type") == Some("regression");
    let task = if regression { HeadTask::Regression } else { HeadTask::Classification };
    let named = settings.get("id2label").and_then(from_json);
    let labels = match (&options.labels, named) {
        (Some(path), _) => check_label_count(path, read_labels(path)?, outputs)?,
        (None, Some(names)) if names.len() as i64 == outputs => names,
        _ => (0..outputs).map(|i| i.to_string()).collect(),
    };
    match (task, outputs) {
        (HeadTask::Regression, 2..) => {
            let reason = format!("has a regression head of {outputs} outputs; only 1 is supported");
            Err(Error::file(&source.path, reason))
        }
        _ => Ok((task, labels)),
    }
}

/// Returns `labels` if there are `outputs` of them.
///
/// # Errors
/// Returns [`Error::File`] otherwise.
pub fn check_label_count(path: &Path, labels: Vec<String>, outputs: i64) -> Result<Vec<String>> {
    match labels.len() as i64 == outputs {
        true => Ok(labels),
        false => {
            let reason = format!("has {} labels, but the head has {outputs} outputs", labels.len());
            Err(Error::file(path, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parses_labels_in_json() {
        let parse = |json: Json| from_json(&json).unwrap_or_default().join(" ");
        assert_eq!(parse(json!(["a", "b"])), "a b");
        assert_eq!(parse(json!({"b": 1, "a": 0})), "a b");
        assert_eq!(parse(json!({"0": "a", "1": "b"})), "a b");
        for wrong in [json!({"a": 0, "b": 0}), json!({"a": 1}), json!(["a", 1]), json!(3)] {
            assert_eq!(parse(wrong.clone()), "", "{wrong}");
        }
    }
}
