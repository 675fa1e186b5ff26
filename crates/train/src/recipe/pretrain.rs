//! The recipe of a pretraining run.

use std::path::Path;

use anyhow::{Result, bail};
use data2vec_core::{
    AdamWConfig, Data2Vec, Data2VecConfig, DecoderConfig, EmaConfig, Error, FeatureEncoder,
    Features, Modality, ModelConfig, RegressionLoss, Schedule, StepConfig, TargetConfig,
    TrainState, TransformerConfig,
};
use serde::{Deserialize, Serialize};
use tch::Device;
use toml::Table;

use crate::recipe::table;
use crate::recipe::train_config::TrainConfig;

/// Everything that defines a pretraining run, except where its data and results are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct Recipe<M: Modality> {
    /// Name of the modality, as in "speech".
    pub modality: String,
    /// Seed of all randomness.
    pub seed: u64,
    /// Length of the run, evaluations, checkpoints.
    pub train: TrainConfig,
    /// Selection, cropping and mixing of examples.
    pub data: M::Data,
    /// Replace (1.0) or drop (2.0) masked tokens; copies; precision.
    pub model: ModelConfig,
    /// The feature encoder.
    pub features: Features<M>,
    /// The transformer.
    pub transformer: TransformerConfig,
    /// Masks.
    pub mask: M::Mask,
    /// Targets.
    pub target: TargetConfig,
    /// Loss.
    pub loss: RegressionLoss,
    /// Decoder.
    pub decoder: DecoderConfig,
    /// Exponential moving average of the teacher.
    pub ema: EmaConfig,
    /// AdamW.
    pub optimizer: AdamWConfig,
    /// Learning rate schedule.
    pub schedule: Schedule,
}

impl<M: Modality> Recipe<M> {
    /// Parses and checks a recipe's table; `path` is for error messages.
    ///
    /// # Errors
    /// If a key is unknown, missing or invalid.
    pub fn from_table(path: &Path, table: Table) -> Result<Self> {
        if table.contains_key("head") && !table.contains_key("decoder") {
            bail!(
                "{}: a fine-tuning recipe; run it with `data2vec finetune`, or choose one without [head]",
                path.display()
            );
        }
        table::parse(path, table, Self::validate)
    }

    fn validate(&self) -> Result<()> {
        let train = &self.train;
        train.validate()?;
        let noise_std = self.model.noise_std;
        if !(noise_std >= 0.0 && noise_std.is_finite()) {
            let reason = format!("{noise_std} is not a standard deviation");
            return Err(Error::config("model.noise_std", reason).into());
        }
        self.model().validate()?;
        M::Encoder::validate(&self.features, &self.transformer)?;
        M::validate(&self.data, &self.features)?;
        M::masking(&self.mask, &self.features)?;
        self.optimizer.validate()?;
        self.schedule.validate(train.steps)?;
        Ok(())
    }

    /// Returns the settings of the model.
    pub fn model(&self) -> Data2VecConfig<Features<M>> {
        Data2VecConfig {
            model: self.model.clone(),
            features: self.features.clone(),
            transformer: self.transformer.clone(),
            target: self.target.clone(),
            loss: self.loss.clone(),
            decoder: self.decoder.clone(),
            ema: self.ema.clone(),
        }
    }

    /// Builds a new model on `device`, before its first step.
    ///
    /// # Errors
    /// If a setting is invalid.
    pub fn state(&self, device: Device) -> Result<TrainState<M::Encoder>> {
        let masking = M::masking(&self.mask, &self.features)?;
        let model = Data2Vec::new(self.model(), masking, device, self.seed)?;
        let TrainConfig { steps, clip_norm, .. } = self.train;
        let step = StepConfig { steps, clip_norm, seed: self.seed };
        Ok(TrainState::new(model, &self.optimizer, self.schedule.clone(), step)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{changes, read};
    use data2vec_speech::Speech;
    use std::path::PathBuf;

    fn tiny() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../recipes/speech-tiny.toml")
    }

    fn read_with(overrides: &[&str]) -> Result<Recipe<Speech>> {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Recipe::from_table(&tiny(), read(&tiny(), None, &overrides)?)
    }

    #[test]
    fn applies_overrides() {
        let recipe = read_with(&[
            "transformer.depth=3",
            "target.top_k=3",
            "mask.kind=blocks",
            "train.batch=1.5",
        ]);
        let recipe = recipe.expect("possible values");
        assert_eq!((recipe.transformer.depth, recipe.train.batch), (3, 1.5));
    }

    #[test]
    fn errors_name_the_key() {
        for (wrong, message) in [
            ("transformer.dpeth=3", "unknown key `dpeth` in transformer; did you mean `depth`?"),
            ("transfromer.depth=3", "no section `transfromer`"),
            ("transformer.depth=deep", "in transformer.depth"),
            ("train.steps=0", "train.steps: must be at least 1"),
            ("train.held_out=1.5", "train.held_out"),
            ("features.conv_layers=[[8,9,4294967295],[8,9,4294967295]]", "features.conv_layers"),
            ("train.keep_every=0", "train.keep_every: must be at least 1"),
            ("train.keep_every=7", "train.keep_every: 7 is not a multiple of train.save_every"),
            ("nonsense", "not KEY=VALUE"),
        ] {
            let error = format!("{:#}", read_with(&[wrong]).unwrap_err());
            assert!(error.contains(message), "{wrong}: {error}");
        }
    }

    #[test]
    fn changes_ignore_keys_that_may_change() {
        let old = read(&tiny(), None, &[]).expect("a recipe");
        let new = read(&tiny(), Some(7), &["train.workers=9".into(), "seed=5".into()]);
        let changes = changes(&old, &new.expect("a recipe"));
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert!(changes[0].starts_with("seed: ") && changes[1].contains("train.steps: "));
    }
}
