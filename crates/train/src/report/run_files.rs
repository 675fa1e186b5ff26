//! Reads the files of a run for its report.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use toml::Table;

use crate::doctor::Diagnosis;
use crate::metrics;
use crate::report::curves::{self, Curves};
use crate::report::previews::PreviewExamples;
use crate::{recipe, record};

/// The files of a run that its report shows.
pub struct RunFiles {
    /// Name of the run directory.
    pub name: String,
    /// `recipe.toml`.
    pub recipe: Table,
    /// Names and values of `run.json`.
    pub record: Vec<(String, String)>,
    /// Curves of all metrics.
    pub curves: Curves,
    /// The doctor's verdict and its reasons.
    pub diagnosis: Diagnosis,
    /// Rendered examples.
    pub previews: PreviewExamples,
}

impl RunFiles {
    /// Reads the run directory `dir`.
    ///
    /// # Errors
    /// If `dir` is not a run directory, or a file is damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let recipe = recipe::read_run(dir)?;
        let path = dir.join(record::FILE);
        let mut record = Vec::new();
        // Run directories made by hand may lack the record.
        if let Some(text) = crate::run_dir::read(&path)? {
            let value = serde_json::from_str(&text);
            let value: Value = value.with_context(|| path.display().to_string())?;
            flatten(String::new(), &value, &mut record);
        }
        let path = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let lines = metrics::read(&dir.join("metrics.jsonl"))?;
        let curves = curves::curves(&lines);
        let diagnosis = Diagnosis::new(&lines, recipe::steps(&recipe));
        let previews = PreviewExamples::read(dir)?;
        Ok(Self { name, recipe, record, curves, diagnosis, previews })
    }

    /// Returns the last step with a metric.
    pub fn step(&self) -> u64 {
        self.curves.values().filter_map(|points| points.last()).map(|p| p.0).max().unwrap_or(0)
    }

    /// Returns the steps of the whole run.
    pub fn steps(&self) -> u64 {
        recipe::steps(&self.recipe)
    }

    /// Returns the newest value of a curve.
    pub fn last(&self, tag: &str) -> Option<f64> {
        Some(self.curves.get(tag)?.last()?.1)
    }

    /// Returns the recipe's modality.
    pub fn modality(&self) -> &str {
        self.recipe.get("modality").and_then(toml::Value::as_str).unwrap_or_default()
    }

    /// Returns a value of `run.json`.
    pub fn recorded(&self, name: &str) -> Option<&str> {
        self.record.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Flattens `value` to names and values. Nested names are joined by dots, lists of scalars by
/// spaces.
fn flatten(prefix: String, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(format!("{prefix}{dot}{name}"), value, rows);
            }
        }
        Value::Null => {}
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (number, item) in (1..).zip(items) {
                flatten(format!("{prefix}.{number}"), item, rows);
            }
        }
        Value::Array(items) => {
            let words: Vec<String> = items.iter().map(plain).collect();
            rows.push((prefix, words.join(" ")));
        }
        other => rows.push((prefix, plain(other))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
