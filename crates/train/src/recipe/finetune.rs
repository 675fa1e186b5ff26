//! A whole fine-tuning run in one TOML file.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use data2vec_core::{AdamWConfig, Error, HeadConfig, Schedule, TuneConfig};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::judge::Figure;
use crate::modality::Tunable;
use crate::recipe::{TrainConfig, explain};

/// Everything that defines a run but its encoder, its data and where its results go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct TuneRecipe<M: Tunable> {
    /// `speech`, ….
    pub modality: String,
    /// Of all randomness but the split.
    pub seed: u64,
    /// Of which examples are kept apart, so that runs with other seeds can be compared.
    pub split_seed: u64,
    /// Share of the examples that is kept for `data2vec evaluate`; nothing of the run depends on it.
    pub test_share: f64,
    /// Share of the labelled examples that is trained on, the same of each class; 1: all.
    pub label_share: f64,
    /// Figure of the held-out examples by which the best model is chosen.
    pub select: Figure,
    /// Length of the run and what happens when.
    pub train: TrainConfig,
    /// How examples become batches.
    pub data: M::LabelledData,
    /// How the encoder learns.
    pub tune: TuneConfig,
    /// What is hidden; absent: nothing.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mask: M::TuneMask,
    /// What is put on the encoder.
    pub head: HeadConfig,
    /// AdamW.
    pub optimizer: AdamWConfig,
    /// Learning rates.
    pub schedule: Schedule,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<M: Tunable> TuneRecipe<M> {
    /// From a recipe's table.
    pub fn from_table(path: &Path, table: Table) -> Result<Self> {
        if table.contains_key("model") && !table.contains_key("tune") {
            bail!(
                "{}: a recipe for pretraining; `data2vec finetune` wants one with [tune] and [head], as \
                 recipes/finetune-*.toml",
                path.display()
            );
        }
        let recipe: Self = Value::Table(table).try_into().map_err(|e: toml::de::Error| {
            anyhow!("{}: {}", path.display(), explain(&e.to_string()))
        })?;
        recipe.validate().with_context(|| path.display().to_string())?;
        Ok(recipe)
    }

    fn validate(&self) -> Result<()> {
        self.train.validate()?;
        for (key, share) in [("test_share", self.test_share), ("label_share", self.label_share)] {
            let possible = match key {
                "test_share" => (0.0..1.0).contains(&share),
                _ => share > 0.0 && share <= 1.0,
            };
            if !possible {
                return Err(Error::config(key, format!("{share} is not a possible share")).into());
            }
        }
        if !self.head.labels.is_empty() {
            return Err(
                Error::config("head.labels", "labels come from the data; leave it out").into()
            );
        }
        self.select.check(self.head.task)?;
        self.head.validate()?;
        self.tune.validate()?;
        M::check_tuning(&self.data, self.head.task)?;
        M::tune_masks(&self.mask)?;
        self.optimizer.validate()?;
        self.schedule.validate(self.train.steps)?;
        Ok(())
    }
}
