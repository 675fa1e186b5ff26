//! Settings of the feature encoder and of the data. The defaults are data2vec 2.0 Base.

use std::path::PathBuf;

use data2vec_core::{Error, Result, TransformerConfig};
use serde::{Deserialize, Serialize};

use crate::audio::{MAX_SECONDS, SAMPLE_RATE};
use crate::transcripts::Case;

/// Upper bound of the receptive field of one token in samples: days of audio.
const MAX_RECEPTIVE_FIELD: f64 = (1_u64 << 32) as f64;

/// Normalization in the convolutional feature encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConvNorm {
    /// Layer norm over channels after every convolution: all data2vec models.
    Layer,
    /// Normalization of each channel over time, after the first convolution only: wav2vec 2.0
    /// Base.
    Group,
}

/// Settings of a [`WaveEncoder`](crate::WaveEncoder).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaveEncoderConfig {
    /// Normalizes each recording to zero mean and unit variance before it is cropped and encoded.
    pub normalize: bool,
    /// Channels, kernel size and stride of each convolution over the waveform.
    pub conv_layers: Vec<[i64; 3]>,
    /// Normalization of the convolutions.
    pub conv_norm: ConvNorm,
    /// Number of convolutions of the positional encoder; 0 for none.
    pub pos_layers: usize,
    /// Kernel size of the positional convolutions.
    pub pos_kernel: i64,
    /// Groups of the positional convolutions; divides the transformer's width.
    pub pos_groups: i64,
    /// ALiBi (Press et al. 2022): an attention bias that falls linearly with distance, with a
    /// learned scale per head.
    pub alibi: bool,
    /// Released behaviour that departs from the papers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compat: Vec<WaveCompat>,
}

/// Released behaviour that departs from the papers' intent, for exact reproduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaveCompat {
    /// Padding is zeroed before the first positional convolution only, so that its output leaks
    /// into the last real frames and the amount of padding changes them (data2vec 1.0 in fairseq
    /// and in Hugging Face's transformers).
    PaddingLeaks,
}

impl Default for WaveEncoderConfig {
    fn default() -> Self {
        let mut conv_layers = vec![[512, 10, 5]];
        conv_layers.extend([[512, 3, 2]; 4]);
        conv_layers.extend([[512, 2, 2]; 2]);
        Self {
            normalize: true,
            conv_layers,
            conv_norm: ConvNorm::Layer,
            pos_layers: 5,
            pos_kernel: 19,
            pos_groups: 16,
            alibi: true,
            compat: Vec::new(),
        }
    }
}

impl WaveEncoderConfig {
    /// Returns the number of tokens of `samples` samples. Samples at the end that do not fill a
    /// receptive field give no token.
    pub fn frames(&self, samples: i64) -> i64 {
        self.conv_layers.iter().fold(samples, |len, &[_, kernel, stride]| {
            if len < kernel { 0 } else { (len - kernel) / stride + 1 }
        })
    }

    /// Returns the number of samples between consecutive tokens.
    pub fn hop(&self) -> i64 {
        self.conv_layers.iter().map(|[_, _, stride]| stride).product()
    }

    /// Returns the number of samples that one token depends on, the least that can be encoded.
    pub fn receptive_field(&self) -> i64 {
        self.conv_layers
            .iter()
            .rev()
            .fold(1, |len, [_, kernel, stride]| (len - 1) * stride + kernel)
    }

    /// Returns true if padding changes real frames, see [`WaveCompat::PaddingLeaks`].
    pub(crate) fn padding_leaks(&self) -> bool {
        self.compat.contains(&WaveCompat::PaddingLeaks)
    }

    /// Checks all settings.
    pub(crate) fn validate(&self, transformer: &TransformerConfig) -> Result<()> {
        let bad = |key: &str, reason: String| Err(Error::config(format!("features.{key}"), reason));
        if self.conv_layers.is_empty() {
            return bad("conv_layers", "at least one [channels, kernel, stride] is needed".into());
        }
        if let Some(layer) = self.conv_layers.iter().find(|layer| layer.iter().any(|&n| n < 1)) {
            let reason = format!("{layer:?} is not [channels, kernel, stride], all at least 1");
            return bad("conv_layers", reason);
        }
        let strides: f64 = self.conv_layers.iter().map(|[_, _, stride]| *stride as f64).product();
        let kernels: f64 = self.conv_layers.iter().map(|[_, kernel, _]| *kernel as f64).sum();
        if strides * kernels > MAX_RECEPTIVE_FIELD {
            let reason = "the receptive field is longer than any recording; lower the strides";
            return bad("conv_layers", reason.into());
        }
        if self.pos_layers == 0 {
            return Ok(());
        }
        if self.pos_kernel < 1 {
            return bad("pos_kernel", format!("must be at least 1, not {}", self.pos_kernel));
        }
        if self.pos_groups < 1 || transformer.dim % self.pos_groups != 0 {
            let (groups, dim) = (self.pos_groups, transformer.dim);
            return bad("pos_groups", format!("{groups} does not divide transformer.dim = {dim}"));
        }
        Ok(())
    }
}

/// Settings of unlabelled data: which recordings are used and how they are batched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeechDataConfig {
    /// Minimum length in seconds; shorter recordings are skipped.
    pub min_seconds: f64,
    /// Maximum length in seconds; longer recordings are cropped at random each time they are
    /// loaded.
    pub max_seconds: f64,
    /// How recordings of different lengths form a batch.
    pub batching: Batching,
}

/// How recordings of different lengths form a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// Crops each recording at random to the shortest of the batch: no padding.
    Crop,
    /// Pads each recording with zeros on the right to the longest of the batch.
    Pad,
}

impl Default for SpeechDataConfig {
    fn default() -> Self {
        Self { min_seconds: 2.0, max_seconds: 20.0, batching: Batching::Crop }
    }
}

impl SpeechDataConfig {
    /// Returns settings that keep every readable recording uncropped.
    pub fn everything() -> Self {
        let min_seconds = 1.0 / f64::from(SAMPLE_RATE);
        Self { min_seconds, max_seconds: MAX_SECONDS as f64, batching: Batching::Pad }
    }

    /// Checks all settings that do not depend on the data.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        if !(self.min_seconds.is_finite() && self.min_samples() > 0) {
            return Err(Error::config("data.min_seconds", "must be a length above 0, in seconds"));
        }
        if !(self.max_seconds.is_finite() && self.max_seconds >= self.min_seconds) {
            let reason = format!("must be at least min_seconds = {}", self.min_seconds);
            return Err(Error::config("data.max_seconds", reason));
        }
        Ok(())
    }

    pub(crate) fn min_samples(&self) -> u64 {
        (self.min_seconds * f64::from(SAMPLE_RATE)).round() as u64
    }

    pub(crate) fn max_samples(&self) -> u64 {
        (self.max_seconds * f64::from(SAMPLE_RATE)).round() as u64
    }
}

/// Settings of labelled data: the kind of label, and which recordings are used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledSpeechConfig {
    /// Kind of label.
    pub label: LabelKind,
    /// Minimum length in seconds; shorter recordings are skipped. Absent: the receptive field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_seconds: Option<f64>,
    /// Maximum length in seconds; longer recordings are skipped if their label is a transcript and
    /// cropped if it is a class. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<f64>,
    /// Letter case of transcripts.
    #[serde(default)]
    pub case: Case,
    /// Vocabulary file: Hugging Face's `vocab.json` or fairseq's `dict.ltr.txt`. Absent: the symbols
    /// of the training transcripts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<PathBuf>,
}

/// Kind of label of recordings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelKind {
    /// A transcript.
    #[default]
    Text,
    /// A class: the label of a table `path<TAB>label`, or the directory name.
    Class,
}

impl Default for LabelledSpeechConfig {
    fn default() -> Self {
        Self {
            label: LabelKind::Text,
            min_seconds: None,
            max_seconds: None,
            case: Case::Upper,
            vocabulary: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_counts_match_reference() {
        let config = WaveEncoderConfig::default();
        assert_eq!((config.hop(), config.receptive_field()), (320, 400));
        for (samples, frames) in
            [(399, 0), (400, 1), (16_000, 49), (32_000, 99), (250_000, 781), (320_000, 999)]
        {
            assert_eq!(config.frames(samples), frames);
        }
    }
}
