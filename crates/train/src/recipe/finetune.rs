//! The recipe of a fine-tuning run.

use std::path::Path;

use anyhow::{Result, bail};
use data2vec_core::{
    AdamWConfig, Error, FinetuneConfig, FinetuneModality, HeadConfig, Schedule, Split,
};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::evaluator::Metric;
use crate::recipe::table;
use crate::recipe::train_config::TrainConfig;

/// Everything that defines a fine-tuning run, except where its encoder, data and results are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct FinetuneRecipe<M: FinetuneModality> {
    /// Name of the modality, as in "speech".
    pub modality: String,
    /// Seed of all randomness except the split.
    pub seed: u64,
    /// Seed of the split, so that runs with other seeds can be compared.
    pub split_seed: u64,
    /// Share of the examples in the test split, for `data2vec evaluate`; the run does not use it.
    pub test_share: f64,
    /// Share of the labels that is trained on, the same for each class; 1: all.
    pub label_share: f64,
    /// Metric on held-out examples that selects the best model.
    pub select: Metric,
    /// Length of the run, evaluations, checkpoints.
    pub train: TrainConfig,
    /// Preparation and augmentation of examples.
    pub data: M::LabelledData,
    /// Layer-wise learning rates, freezing, dropout of the encoder.
    pub tune: FinetuneConfig,
    /// Masks; absent: nothing is masked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mask: M::FinetuneMask,
    /// The head on the encoder.
    pub head: HeadConfig,
    /// AdamW.
    pub optimizer: AdamWConfig,
    /// Learning rate schedule.
    pub schedule: Schedule,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<M: FinetuneModality> FinetuneRecipe<M> {
    /// Parses and checks a recipe's table; `path` is for error messages.
    ///
    /// # Errors
    /// If a key is unknown, missing or invalid.
    pub fn from_table(path: &Path, table: Table) -> Result<Self> {
        if table.contains_key("model") && !table.contains_key("tune") {
            bail!(
                "{}: a pretraining recipe; `data2vec finetune` needs one with [tune] and [head], such as \
                 recipes/finetune-*.toml",
                path.display()
            );
        }
        table::parse(path, table, Self::validate)
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
        M::validate_finetuning(&self.data, self.head.task)?;
        M::finetune_masks(&self.mask)?;
        self.optimizer.validate()?;
        self.schedule.validate(self.train.steps)?;
        Ok(())
    }

    /// Returns how the examples are split.
    pub fn split(&self) -> Split {
        Split {
            test: self.test_share,
            held_out: self.train.held_out,
            labels: self.label_share,
            seed: self.split_seed,
            label_seed: self.seed,
        }
    }
}
