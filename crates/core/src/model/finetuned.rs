//! A model folder: an encoder, and what fine-tuning made of it.

use std::collections::HashMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use tch::{Device, Tensor, nn};

use crate::checkpoint::{assign, read_tensors, replace, write_tensors};
use crate::encoder::{self, Encoder, EncoderConfig};
use crate::head::{Head, HeadConfig, Pool, Scored, loss};
use crate::{Batch, Error, FeatureEncoder, Hidden, LabelledBatch, Precision, Result};

/// File of a head's weights in a model's folder.
pub const HEAD_WEIGHTS: &str = "head.safetensors";
/// File of a head's settings in a model's folder.
pub const HEAD_CONFIG: &str = "head.toml";
/// File of what stands in the places of hidden tokens, in the folder of an encoder of 1.0.
pub const MASK_TOKEN: &str = "mask_token.safetensors";

/// An encoder and a head: what fine-tuning leaves behind.
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
    /// [`Error::Config`] if a setting is impossible.
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

    /// Reads the folder of a fine-tuned model.
    ///
    /// # Errors
    /// If a file is missing or broken, belongs to another feature encoder, or lacks a tensor; for a
    /// folder without a head, too.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config = encoder::read_config::<F>(dir)?;
        let head_config = read_head(dir)?;
        let vars = nn::VarStore::new(device);
        let tuned = Self::new(&vars.root(), config, head_config)?;
        let (encoder, head): (HashMap<_, _>, HashMap<_, _>) =
            vars.variables().into_iter().partition(|(name, _)| name.starts_with("encoder."));
        for (file, vars) in [(encoder::ENCODER_WEIGHTS, encoder), (HEAD_WEIGHTS, head)] {
            let path = dir.join(file);
            assign(&path, &vars, &read_tensors(&path)?)?;
        }
        for (_, mut tensor) in vars.variables() {
            let _ = tensor.requires_grad_(false);
        }
        Ok(tuned)
    }

    /// As [`Encoder::in_precision`]; scores are f32 in any.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { encoder: self.encoder.in_precision(precision), ..self }
    }

    /// `(B, T, C)` scores of every token for CTC, else `(B, C)`; and the features that they are made of.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder.
    pub fn forward(&self, batch: &Batch) -> Result<(Tensor, Hidden)> {
        let hidden = self.encoder.forward(batch)?;
        let device = batch.inputs.device();
        let scores = self.encoder.infer(device, || Ok(self.head.forward(&hidden, false)))?;
        Ok((scores, hidden))
    }

    /// The scores of a batch, and how wrong they are.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder, or has other targets.
    pub fn score(&self, batch: &LabelledBatch) -> Result<Scored> {
        let (scores, hidden) = self.forward(&batch.batch)?;
        let loss = loss(&scores, &hidden.lengths, &batch.targets)?;
        Ok(Scored { loss, scores, lengths: hidden.lengths })
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder<F> {
        &self.encoder
    }

    /// The encoder, for settings of how it is trained.
    pub fn encoder_mut(&mut self) -> &mut Encoder<F> {
        &mut self.encoder
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// What the encoder was built with.
    pub fn config(&self) -> &EncoderConfig<F::Config> {
        &self.config
    }

    /// What the head was built with.
    pub fn head_config(&self) -> &HeadConfig {
        &self.head_config
    }

    /// What the outputs mean, in order.
    pub fn labels(&self) -> &[String] {
        &self.head_config.labels
    }

    /// The labels with their `shares`, which come in the order of the outputs; the largest first, equal ones in
    /// that order.
    pub fn ranked(&self, shares: Vec<f64>) -> Vec<(String, f64)> {
        let mut ranked: Vec<_> = self.labels().iter().cloned().zip(shares).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked
    }
}

/// The settings of the head in a model's folder.
///
/// # Errors
/// [`Error::File`] if there is none, with the way to get one, or if it is broken.
pub fn read_head(dir: &Path) -> Result<HeadConfig> {
    let path = dir.join(HEAD_CONFIG);
    if !path.exists() && dir.join(encoder::ENCODER_CONFIG).exists() {
        let reason = format!("holds an encoder without a head ({HEAD_CONFIG}): fine-tune it first");
        return Err(Error::file(dir, reason));
    }
    let config: HeadConfig = encoder::read_toml(&path)?;
    config.validate().map_err(|e| Error::file(&path, e.to_string()))?;
    Ok(config)
}

/// What stands in the places of hidden tokens, `(D)`; `None` if the folder has none.
///
/// # Errors
/// If the file is there and broken.
pub fn read_mask_token(dir: &Path) -> Result<Option<Tensor>> {
    let path = dir.join(MASK_TOKEN);
    if !path.exists() {
        return Ok(None);
    }
    let token = read_tensors(&path)?.remove("mask_token");
    token.map(Some).ok_or_else(|| Error::file(&path, "has no tensor `mask_token`"))
}

/// Writes a model's folder: the share of `vars` whose names start with `encoder.`, and with a head that
/// whose names start with `head.`; each file is whole or not there.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written.
pub fn write_model<C: serde::Serialize + DeserializeOwned>(
    dir: &Path,
    vars: &HashMap<String, Tensor>,
    config: &EncoderConfig<C>,
    head: Option<&HeadConfig>,
    mask_token: Option<&Tensor>,
) -> Result<()> {
    encoder::export(dir, vars, config)?;
    if let Some(head) = head {
        let tensors = share(vars, "head.");
        replace(dir, HEAD_WEIGHTS, &|path| write_tensors(path, &tensors))?;
        encoder::write_toml(dir, HEAD_CONFIG, head)?;
    }
    if let Some(token) = mask_token {
        let tensors = HashMap::from([("mask_token".to_owned(), token.shallow_clone())]);
        replace(dir, MASK_TOKEN, &|path| write_tensors(path, &tensors))?;
    }
    Ok(())
}

/// Those of `vars` whose names start with `prefix`.
pub(crate) fn share(vars: &HashMap<String, Tensor>, prefix: &str) -> HashMap<String, Tensor> {
    let named = vars.iter().filter(|(name, _)| name.starts_with(prefix));
    named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}
