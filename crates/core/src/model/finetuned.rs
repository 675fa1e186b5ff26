//! A fine-tuned model: an encoder with a head, and the files of a model directory.

use std::collections::HashMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use tch::{Device, Tensor, nn};

use crate::io::checkpoint::{assign, filter_by_prefix, read_tensors, write_weights};
use crate::io::toml::{read_toml, write_toml};
use crate::model::encoder::{self, Encoder, EncoderConfig};
use crate::model::head::{Head, HeadConfig, Pool, Scored, loss};
use crate::{Batch, EncoderOutput, Error, FeatureEncoder, LabelledBatch, Precision, Result};

/// File name of the head's weights in a model directory.
pub const HEAD_WEIGHTS: &str = "head.safetensors";
/// File name of the head's settings in a model directory.
pub const HEAD_CONFIG: &str = "head.toml";
/// File name of the mask token in a model directory (data2vec 1.0).
pub const MASK_TOKEN: &str = "mask_token.safetensors";

/// An encoder and a head, as produced by fine-tuning.
#[derive(Debug)]
pub struct FinetunedModel<F: FeatureEncoder> {
    encoder: Encoder<F>,
    head: Head,
    config: EncoderConfig<F::Config>,
    head_config: HeadConfig,
}

impl<F: FeatureEncoder> FinetunedModel<F> {
    /// Creates the variables below `path / "encoder"` and `path / "head"`.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if a setting is invalid.
    pub fn new(
        path: &nn::Path,
        config: EncoderConfig<F::Config>,
        head_config: HeadConfig,
    ) -> Result<Self> {
        let encoder =
            Encoder::<F>::new(&(path / "encoder"), &config.features, &config.transformer)?;
        if head_config.pool == Pool::Prefix && encoder.features().prefix().is_none() {
            let reason = format!("`{}` features have no prefix token; use \"mean\"", F::NAME);
            return Err(Error::config("head.pool", reason));
        }
        let head = Head::new(&(path / "head"), &head_config, config.transformer.dim)?;
        Ok(Self { encoder, head, config, head_config })
    }

    /// Loads a fine-tuned model from the directory `dir`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, belongs to another feature encoder, or
    /// lacks a tensor, and if the directory has no head.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config = encoder::read_config::<F>(dir)?;
        let head_config = read_head(dir)?;
        let vars = nn::VarStore::new(device);
        let model = Self::new(&vars.root(), config, head_config)?;
        let (encoder, head): (HashMap<_, _>, HashMap<_, _>) =
            vars.variables().into_iter().partition(|(name, _)| name.starts_with("encoder."));
        for (file, vars) in [(encoder::ENCODER_WEIGHTS, encoder), (HEAD_WEIGHTS, head)] {
            let path = dir.join(file);
            assign(&path, &vars, &read_tensors(&path)?)?;
        }
        for (_, mut tensor) in vars.variables() {
            let _ = tensor.requires_grad_(false);
        }
        Ok(model)
    }

    /// Sets the precision of inference, see [`Encoder::with_precision`]; scores are always f32.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { encoder: self.encoder.with_precision(precision), ..self }
    }

    /// Computes scores, `(B, T, C)` for CTC, else `(B, C)`, and the features that they are based
    /// on.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the batch does not fit the feature encoder.
    pub fn forward(&self, batch: &Batch) -> Result<(Tensor, EncoderOutput)> {
        let hidden = self.encoder.forward(batch)?;
        let device = batch.inputs.device();
        let scores = self.encoder.infer(device, || Ok(self.head.forward(&hidden, false)))?;
        Ok((scores, hidden))
    }

    /// Computes the scores and the loss of a batch.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the batch does not fit the feature encoder or the head.
    pub fn score(&self, batch: &LabelledBatch) -> Result<Scored> {
        let (scores, hidden) = self.forward(&batch.batch)?;
        let loss = loss(&scores, &hidden.lengths, &batch.targets)?;
        Ok(Scored { loss, scores, lengths: hidden.lengths })
    }

    /// Returns the encoder.
    pub fn encoder(&self) -> &Encoder<F> {
        &self.encoder
    }

    /// Returns the encoder, to change its training settings.
    pub fn encoder_mut(&mut self) -> &mut Encoder<F> {
        &mut self.encoder
    }

    /// Returns the head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Returns the settings of the encoder.
    pub fn config(&self) -> &EncoderConfig<F::Config> {
        &self.config
    }

    /// Returns the settings of the head.
    pub fn head_config(&self) -> &HeadConfig {
        &self.head_config
    }

    /// Returns the labels of the outputs, in order.
    pub fn labels(&self) -> &[String] {
        &self.head_config.labels
    }

    /// Pairs the labels with `probabilities` (in the order of the outputs) and sorts them, most
    /// probable first; ties keep the order of the outputs.
    pub fn rank_labels(&self, probabilities: Vec<f64>) -> Vec<(String, f64)> {
        let mut ranked: Vec<_> = self.labels().iter().cloned().zip(probabilities).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked
    }
}

/// Reads the settings of the head in the model directory `dir`.
///
/// # Errors
/// Returns [`Error::File`] if the directory has no head or its settings are invalid.
pub fn read_head(dir: &Path) -> Result<HeadConfig> {
    let path = dir.join(HEAD_CONFIG);
    if !path.exists() && dir.join(encoder::ENCODER_CONFIG).exists() {
        let reason = format!("holds an encoder without a head ({HEAD_CONFIG}); fine-tune it first");
        return Err(Error::file(dir, reason));
    }
    let config: HeadConfig = read_toml(&path)?;
    config.validate().map_err(|e| Error::file(&path, e.to_string()))?;
    Ok(config)
}

/// Reads the mask token `(D)` in the model directory `dir`; `None` if there is none.
///
/// # Errors
/// Returns an error if the file exists and is invalid.
pub fn read_mask_token(dir: &Path) -> Result<Option<Tensor>> {
    let path = dir.join(MASK_TOKEN);
    if !path.exists() {
        return Ok(None);
    }
    let token = read_tensors(&path)?.remove("mask_token");
    token.map(Some).ok_or_else(|| Error::file(&path, "has no tensor `mask_token`"))
}

/// Writes a model directory; each file is written atomically.
///
/// `vars` holds the encoder's variables under `encoder.` and the head's under `head.`; others are
/// ignored.
///
/// # Errors
/// Returns [`Error::Io`] if a file cannot be written.
pub fn save_model<C: serde::Serialize + DeserializeOwned>(
    dir: &Path,
    vars: &HashMap<String, Tensor>,
    config: &EncoderConfig<C>,
    head: Option<&HeadConfig>,
    mask_token: Option<&Tensor>,
) -> Result<()> {
    encoder::export(dir, vars, config)?;
    if let Some(head) = head {
        let tensors = filter_by_prefix(vars, "head.");
        write_weights(&dir.join(HEAD_WEIGHTS), &tensors)?;
        write_toml(&dir.join(HEAD_CONFIG), head)?;
    }
    if let Some(token) = mask_token {
        let tensors = HashMap::from([("mask_token".to_owned(), token.shallow_clone())]);
        write_weights(&dir.join(MASK_TOKEN), &tensors)?;
    }
    Ok(())
}
