//! What a run's folder holds, read for the page.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use toml::Table;

use crate::metrics::{self, ActionLine, Line};
use crate::page::curves::{self, Curves};
use crate::page::exhibits::Exhibits;
use crate::recipe::toml_error;

/// The files of a run that a page is made of.
pub struct RunFiles {
    /// What the folder is called.
    pub name: String,
    pub recipe: Table,
    /// How the run came to be: names and values of `run.json`.
    pub record: Vec<(String, String)>,
    pub curves: Curves,
    /// What was done to it, marked in its curves.
    pub marks: Vec<ActionLine>,
    pub exhibits: Exhibits,
}

impl RunFiles {
    /// Reads `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("recipe.toml");
        ensure!(path.is_file(), "{} is no run: it has no recipe.toml", folder.display());
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let recipe =
            text.parse().map_err(|e| anyhow!("{}, {}", path.display(), toml_error(&text, &e)))?;
        let path = folder.join("run.json");
        let record = match fs::read_to_string(&path) {
            Ok(text) => {
                let value = serde_json::from_str(&text);
                let value: Value = value.with_context(|| path.display().to_string())?;
                let mut record = Vec::new();
                flatten(String::new(), &value, &mut record);
                record
            }
            // A run is recorded when it starts; a folder that was put together may lack it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let place = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let name = place.file_name().unwrap_or(place.as_os_str()).to_string_lossy().into_owned();
        let lines = metrics::read(&folder.join("metrics.jsonl"))?;
        let curves = curves::curves(&lines);
        let action = |line| match line {
            Line::Action(action) => Some(action),
            _ => None,
        };
        let marks = lines.into_iter().filter_map(action).collect();
        let exhibits = Exhibits::read(folder)?;
        Ok(Self { name, recipe, record, curves, marks, exhibits })
    }

    /// Last step that anything is known of.
    pub fn step(&self) -> u64 {
        self.curves.values().filter_map(|points| points.last()).map(|p| p.0).max().unwrap_or(0)
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        let steps = self.recipe.get("train").and_then(|train| train.get("steps"));
        steps.and_then(toml::Value::as_integer).map_or(0, |steps| steps.max(0) as u64)
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
