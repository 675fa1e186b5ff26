//! Models in the layouts of other programs.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};
use tch::Tensor;

use crate::io::checkpoint::write_tensors_with_metadata;
use crate::io::file::write_file;
use crate::model::head::{HeadConfig, HeadTask};
use crate::{Error, Result};

/// File name of the tensors in an exported directory.
pub const EXPORTED_WEIGHTS: &str = "model.safetensors";

/// A model in the layout of another program.
#[derive(Debug, Default)]
pub struct ExportedModel {
    /// Tensors of [`EXPORTED_WEIGHTS`].
    pub tensors: HashMap<String, Tensor>,
    /// Metadata of [`EXPORTED_WEIGHTS`].
    pub metadata: HashMap<String, String>,
    /// Further JSON files, by name.
    pub files: Vec<(&'static str, Json)>,
    /// Notes for the user, one line each.
    pub notes: Vec<String>,
}

impl ExportedModel {
    /// Writes the directory `dir`; each file is written atomically.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let mut metadata = self.metadata.clone();
        metadata.insert("format".into(), "pt".into()); // required by transformers
        write_tensors_with_metadata(&dir.join(EXPORTED_WEIGHTS), &self.tensors, &metadata)?;
        self.files
            .iter()
            .try_for_each(|(name, json)| write_file(&dir.join(name), format!("{json:#}\n")))
    }
}

/// Returns the entries of a Hugging Face `config.json` that describe the labels of a head.
pub fn label_config(head: &HeadConfig) -> Map<String, Json> {
    let labels = head.labels.iter().enumerate();
    let id_to_label: Map<String, Json> =
        labels.clone().map(|(i, label)| (i.to_string(), json!(label))).collect();
    let label_to_id: Map<String, Json> =
        labels.map(|(i, label)| (label.clone(), json!(i))).collect();
    let problem = match head.task {
        HeadTask::Regression => "regression",
        HeadTask::Classification | HeadTask::Ctc => "single_label_classification",
    };
    let all = [
        ("id2label", json!(id_to_label)),
        ("label2id", json!(label_to_id)),
        ("problem_type", json!(problem)),
    ];
    all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
