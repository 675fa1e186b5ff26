//! A pretrained encoder, from text to features.

use std::path::Path;

use data2vec_core::{Batch, Encoder, EncoderConfig, Error, Precision, Result};
use ndarray::{Array2, Axis, concatenate, s};
use tch::{Device, Kind, Tensor};

use crate::{TokenEncoder, TokenEncoderConfig, Tokenizer, tokenizer::FINGERPRINT_FILE};

impl Tokenizer {
    /// Reads the one in the folder of an exported encoder.
    ///
    /// # Errors
    /// As [`load`](Self::load), or [`Error::File`] if it is not the one that was exported with it.
    pub fn of_encoder(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let tokenizer = Self::load(dir)?;
        // Encoders from elsewhere come without one.
        let fingerprint = std::fs::read_to_string(dir.join(FINGERPRINT_FILE));
        if fingerprint.is_ok_and(|trained_with| trained_with.trim() != tokenizer.fingerprint()) {
            let reason = format!(
                "its tokenizer is another one than it was trained with; restore that, or remove \
                 {FINGERPRINT_FILE} to use this one all the same"
            );
            return Err(Error::file(dir, reason));
        }
        Ok(tokenizer)
    }
}

/// An exported text encoder with its tokenizer, ready for inference.
#[derive(Debug)]
pub struct TextEncoder {
    encoder: Encoder<TokenEncoder>,
    config: EncoderConfig<TokenEncoderConfig>,
    tokenizer: Tokenizer,
    device: Device,
}

impl TextEncoder {
    /// Reads the folder that pretraining exported: the encoder, and the tokenizer beside it.
    ///
    /// # Errors
    /// If a file is missing or broken, holds another kind of encoder, the two do not fit, or the
    /// tokenizer is not the one that was exported with it.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        Self::with_tokenizer(dir, Tokenizer::of_encoder(dir)?, device)
    }

    /// The same with a tokenizer from elsewhere.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn with_tokenizer(
        dir: impl AsRef<Path>,
        tokenizer: Tokenizer,
        device: Device,
    ) -> Result<Self> {
        let (encoder, config) = Encoder::load(dir, device)?;
        tokenizer.check(&config.features)?;
        Ok(Self { encoder, config, tokenizer, device })
    }

    /// Computes in `precision` from now on; features are f32 in any. bf16 is the faster one on hardware that has it.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { encoder: self.encoder.in_precision(precision), ..self }
    }

    /// What it was built with.
    pub fn config(&self) -> &EncoderConfig<TokenEncoderConfig> {
        &self.config
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.config.transformer.depth
    }

    /// Text to ids and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids of a text as in pretraining: `<s>`, and `</s>` after each line that has text in it.
    ///
    /// # Errors
    /// [`Error::Input`] if the tokenizer refuses the text.
    pub fn tokens(&self, text: &str) -> Result<Vec<i64>> {
        let special = self.tokenizer.special();
        let mut ids = vec![special.begin];
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            ids.extend(self.tokenizer.encode(line)?);
            ids.push(special.end);
        }
        Ok(ids)
    }

    /// `(T, D)`: the last block's features, one vector for each of the text's
    /// [`tokens`](Self::tokens).
    ///
    /// A text with more tokens than the encoder takes at once is encoded piece by piece; each begins
    /// with `<s>`, whose features are returned for the first alone.
    ///
    /// # Errors
    /// [`Error::Input`] if the tokenizer refuses the text.
    pub fn features(&self, text: &str) -> Result<Array2<f32>> {
        self.layers(text)?.pop().ok_or_else(|| Error::Input("an encoder without blocks".into()))
    }

    /// `(T, D)` of each block, first to last.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn layers(&self, text: &str) -> Result<Vec<Array2<f32>>> {
        let ids = self.tokens(text)?;
        let (begin, rest) = ids.split_at(1);
        let room = (self.config.features.max_tokens - 1).max(1) as usize;
        let mut pieces: Vec<Vec<Array2<f32>>> = Vec::new();
        for (i, piece) in rest.chunks(room).enumerate().chain(rest.is_empty().then_some((0, rest)))
        {
            let ids = [begin, piece].concat();
            let inputs = Tensor::from_slice(&ids).unsqueeze(0).to_device(self.device); // (1, T)
            let hidden = self.encoder.forward(&Batch::new(inputs)?)?;
            let layer = |out: &Tensor| {
                let out = to_array(&out.squeeze_dim(0))?;
                Ok(if i == 0 { out } else { out.slice_move(s![1.., ..]) })
            };
            pieces.push(hidden.layers.iter().map(|l| layer(&l.out)).collect::<Result<_>>()?);
        }
        let whole = |block: usize| {
            let views: Vec<_> = pieces.iter().map(|piece| piece[block].view()).collect();
            concatenate(Axis(0), &views).map_err(|e| Error::Input(e.to_string()))
        };
        (0..self.depth()).map(whole).collect()
    }
}

/// A tensor `(T, D)` as an array.
fn to_array(x: &Tensor) -> Result<Array2<f32>> {
    let (rows, columns) = x.size2()?;
    let values = Vec::<f32>::try_from(x.to_device(Device::Cpu).to_kind(Kind::Float).flatten(0, 1))?;
    Array2::from_shape_vec((rows as usize, columns as usize), values)
        .map_err(|e| Error::Input(e.to_string()))
}
