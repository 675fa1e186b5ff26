//! What an export writes.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};
use tch::Tensor;

use crate::checkpoint::{replace, write_tensors_with};
use crate::head::{HeadConfig, HeadTask};
use crate::{Error, Result};

/// File of tensors in an exported folder.
pub const EXPORTED_WEIGHTS: &str = "model.safetensors";

/// A model as other programs want it.
#[derive(Debug, Default)]
pub struct Exported {
    /// For [`EXPORTED_WEIGHTS`].
    pub tensors: HashMap<String, Tensor>,
    /// For that file's head.
    pub facts: HashMap<String, String>,
    /// JSON files beside it, by name.
    pub files: Vec<(&'static str, Json)>,
    /// What is worth knowing, a line each.
    pub notes: Vec<String>,
}

impl Exported {
    /// Writes the folder `dir`; each file is whole or not there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let mut facts = self.facts.clone();
        facts.insert("format".into(), "pt".into()); // transformers asks whose tensors they are
        replace(dir, EXPORTED_WEIGHTS, &|path| write_tensors_with(path, &self.tensors, &facts))?;
        self.files.iter().try_for_each(|(name, json)| {
            replace(dir, name, &|path| {
                std::fs::write(path, format!("{json:#}\n")).map_err(|e| Error::io(path, e))
            })
        })
    }
}

/// What a head's outputs mean, for a `config.json` of Hugging Face.
pub fn label_settings(head: &HeadConfig) -> Map<String, Json> {
    let named = head.labels.iter().enumerate();
    let names: Map<String, Json> =
        named.clone().map(|(i, label)| (i.to_string(), json!(label))).collect();
    let numbers: Map<String, Json> = named.map(|(i, label)| (label.clone(), json!(i))).collect();
    let problem = match head.task {
        HeadTask::Regression => "regression",
        HeadTask::Classification | HeadTask::Ctc => "single_label_classification",
    };
    let all = [
        ("id2label", json!(names)),
        ("label2id", json!(numbers)),
        ("problem_type", json!(problem)),
    ];
    all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
