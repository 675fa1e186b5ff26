//! Inference with a pretrained encoder: text to features.

use std::path::Path;

use data2vec_core::data::batch::to_array;
use data2vec_core::{Batch, Encoder, EncoderConfig, Error, Precision, Result};
use ndarray::{Array2, Axis, concatenate, s};
use tch::{Device, Tensor};

use crate::config::TokenEncoderConfig;
use crate::dataset::collate;
use crate::feature::TokenEncoder;
use crate::tokenizer::Tokenizer;

/// A pretrained text encoder with its tokenizer, for inference.
#[derive(Debug)]
pub struct TextEncoder {
    encoder: Encoder<TokenEncoder>,
    config: EncoderConfig<TokenEncoderConfig>,
    tokenizer: Tokenizer,
    device: Device,
}

impl TextEncoder {
    /// Loads an exported encoder and its tokenizer from the directory `dir`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, belongs to another feature encoder, or the
    /// tokenizer is not that of the encoder.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        Self::with_tokenizer(dir, Tokenizer::load_for_encoder(dir)?, device)
    }

    /// Loads an exported encoder from the directory `dir`, to be used with `tokenizer`.
    ///
    /// # Errors
    /// Returns the errors of [`load`](Self::load).
    pub fn with_tokenizer(
        dir: impl AsRef<Path>,
        tokenizer: Tokenizer,
        device: Device,
    ) -> Result<Self> {
        let (encoder, config) = Encoder::load(dir, device)?;
        tokenizer.check(&config.features)?;
        Ok(Self { encoder, config, tokenizer, device })
    }

    /// Sets the precision of inference; features are always f32. bf16 is faster on hardware that
    /// supports it.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { encoder: self.encoder.with_precision(precision), ..self }
    }

    /// Returns the settings of the encoder.
    pub fn config(&self) -> &EncoderConfig<TokenEncoderConfig> {
        &self.config
    }

    /// Returns the number of transformer blocks.
    pub fn depth(&self) -> usize {
        self.config.transformer.depth
    }

    /// Returns the size of a feature vector (D).
    pub fn dim(&self) -> usize {
        self.config.transformer.dim as usize
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Encodes a text as pretraining does: `<s>`, then each line that is not blank, followed by
    /// `</s>`.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the tokenizer rejects the text.
    pub fn tokens(&self, text: &str) -> Result<Vec<i64>> {
        let special = self.tokenizer.special();
        let mut ids = vec![special.bos];
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            ids.extend(self.tokenizer.encode(line)?);
            ids.push(special.eos);
        }
        Ok(ids)
    }

    /// Returns the features `(T, D)` of the last block, one row for each of the text's
    /// [`tokens`](Self::tokens).
    ///
    /// A text longer than `max_tokens` is encoded in windows. Each window starts with `<s>`, whose
    /// features are returned for the first window only.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the tokenizer rejects the text.
    pub fn features(&self, text: &str) -> Result<Array2<f32>> {
        self.layers(text)?.pop().ok_or_else(|| Error::Input("the encoder has no blocks".into()))
    }

    /// Returns the features `(T, D)` of each block, first to last.
    ///
    /// # Errors
    /// Returns the errors of [`features`](Self::features).
    pub fn layers(&self, text: &str) -> Result<Vec<Array2<f32>>> {
        let mut windows: Vec<Vec<Array2<f32>>> = Vec::new();
        for ids in self.windows(text)? {
            let inputs = Tensor::from_slice(&ids).unsqueeze(0).to_device(self.device); // (1, T)
            let hidden = self.encoder.forward(&Batch::new(inputs)?)?;
            let layers = hidden.layers.iter().map(|layer| to_array(&layer.out.squeeze_dim(0)));
            windows.push(layers.collect::<Result<_>>()?);
        }
        (0..self.depth())
            .map(|block| join(windows.iter_mut().map(|w| std::mem::take(&mut w[block]))))
            .collect()
    }

    /// Returns the features `(T, D)` of each text, computed in padded batches of at most
    /// `texts.len()` rows.
    ///
    /// They equal those of [`features`](Self::features) up to rounding.
    ///
    /// # Errors
    /// Returns the errors of [`features`](Self::features).
    pub fn features_batch(&self, texts: &[&str]) -> Result<Vec<Array2<f32>>> {
        let windows: Vec<Vec<Vec<i64>>> =
            texts.iter().map(|text| self.windows(text)).collect::<Result<_>>()?;
        let counts: Vec<usize> = windows.iter().map(Vec::len).collect();
        let rows = windows.concat();
        let mut features = Vec::with_capacity(rows.len());
        for rows in rows.chunks(texts.len().max(1)) {
            let batch = collate(rows, self.tokenizer.special().pad)?.to_device(self.device);
            let x = self.encoder.forward(&batch)?.x; // (B, T, D)
            for (row, ids) in rows.iter().enumerate() {
                features.push(to_array(&x.get(row as i64).narrow(0, 0, ids.len() as i64))?);
            }
        }
        let mut features = features.into_iter();
        counts.into_iter().map(|count| join(features.by_ref().take(count))).collect()
    }

    /// Encodes a text and splits it into windows of at most `max_tokens`, each with `<s>`.
    fn windows(&self, text: &str) -> Result<Vec<Vec<i64>>> {
        let ids = self.tokens(text)?;
        let (bos, rest) = ids.split_at(1);
        if rest.is_empty() {
            return Ok(vec![ids]);
        }
        let room = (self.config.features.max_tokens - 1).max(1) as usize;
        Ok(rest.chunks(room).map(|window| [bos, window].concat()).collect())
    }
}

/// Joins the features of the windows of a text; drops `<s>` of all but the first.
fn join(windows: impl Iterator<Item = Array2<f32>>) -> Result<Array2<f32>> {
    let windows: Vec<Array2<f32>> = windows
        .enumerate()
        .map(|(i, window)| if i == 0 { window } else { window.slice_move(s![1.., ..]) })
        .collect();
    let views: Vec<_> = windows.iter().map(Array2::view).collect();
    concatenate(Axis(0), &views).map_err(|e| Error::Input(e.to_string()))
}
