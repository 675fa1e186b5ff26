//! What a run's folder holds, read for the page.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use toml::Table;

use crate::doctor::Diagnosis;
use crate::metrics;
use crate::page::curves::{self, Curves};
use crate::page::exhibits::Exhibits;
use crate::{recipe, record};

/// The files of a run that a page is made of.
pub struct RunFiles {
    /// What the folder is called.
    pub name: String,
    pub recipe: Table,
    /// How the run came to be: names and values of `run.json`.
    pub record: Vec<(String, String)>,
    pub curves: Curves,
    /// How it is, and what was done to it.
    pub diagnosis: Diagnosis,
    pub exhibits: Exhibits,
}

impl RunFiles {
    /// Reads `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let recipe = recipe::of_run(folder)?;
        let path = folder.join(record::FILE);
        let mut record = Vec::new();
        // A run is recorded when it starts; a folder that was put together may lack it.
        if let Some(text) = crate::run::read(&path)? {
            let value = serde_json::from_str(&text);
            let value: Value = value.with_context(|| path.display().to_string())?;
            flatten(String::new(), &value, &mut record);
        }
        let place = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let name = place.file_name().unwrap_or(place.as_os_str()).to_string_lossy().into_owned();
        let lines = metrics::read(&folder.join("metrics.jsonl"))?;
        let curves = curves::curves(&lines);
        let diagnosis = Diagnosis::of(&lines, recipe::steps(&recipe));
        let exhibits = Exhibits::read(folder)?;
        Ok(Self { name, recipe, record, curves, diagnosis, exhibits })
    }

    /// Last step that anything is known of.
    pub fn step(&self) -> u64 {
        self.curves.values().filter_map(|points| points.last()).map(|p| p.0).max().unwrap_or(0)
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        recipe::steps(&self.recipe)
    }

    /// The newest value of a curve.
    pub fn last(&self, tag: &str) -> Option<f64> {
        Some(self.curves.get(tag)?.last()?.1)
    }

    /// The recipe's modality.
    pub fn modality(&self) -> &str {
        self.recipe.get("modality").and_then(toml::Value::as_str).unwrap_or_default()
    }

    /// A value of `run.json`.
    pub fn recorded(&self, name: &str) -> Option<&str> {
        self.record.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// `value` as names and values: objects in objects have names with dots, lists of words are a line.
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
