//! Which step of fine-tuning an exported model is from.

use std::path::Path;

use anyhow::{Result, ensure};
use data2vec_core::io::toml::{read_toml, write_toml};
use serde::{Deserialize, Serialize};

/// File in the directory of a fine-tuned model.
pub const FILE: &str = "selection.toml";

/// The evaluation that selected a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Completed steps; 0: the head is untrained.
    pub step: u64,
    /// Metric that was best at that step; absent if nothing was held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Its value on held-out examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
}

impl Selection {
    /// Writes it to the model in the directory `dir`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        Ok(write_toml(&dir.join(FILE), self)?)
    }

    /// Reads that of the model in the directory `dir`; `None` for models of other programs.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(read_toml(&path)?))
    }

    /// Returns `cer = 0.9700`, or "" if nothing was held out.
    pub fn metric(&self) -> String {
        let metric = self.metric.as_ref().zip(self.value);
        metric.map_or_else(String::new, |(name, value)| format!("{name} = {value:.4}"))
    }
}

/// Checks that the head of the model in the directory `dir` was trained.
///
/// # Errors
/// If no later step of fine-tuning was better than step 0.
pub fn check_trained(dir: &Path) -> Result<()> {
    let Some(selection) = Selection::read(dir)? else { return Ok(()) };
    ensure!(
        selection.step > 0,
        "{}: holds an untrained head: no step of fine-tuning was better than step 0 ({}); train longer, or add --untrained-head to use it all the same",
        dir.display(),
        selection.metric()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrained_heads_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        check_trained(dir.path()).expect("a model of another program");
        let mut selection = Selection { step: 0, metric: Some("cer".into()), value: Some(0.97) };
        selection.write(dir.path()).expect("written");
        let error = check_trained(dir.path()).expect_err("untrained").to_string();
        assert!(error.contains("cer = 0.9700") && error.contains("--untrained-head"), "{error}");
        selection.step = 20;
        selection.write(dir.path()).expect("written");
        check_trained(dir.path()).expect("a trained head");
        assert_eq!(Selection::read(dir.path()).expect("a file"), Some(selection));
    }
}
