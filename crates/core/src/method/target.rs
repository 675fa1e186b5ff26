//! Regression targets: the teacher's layers, normalised and averaged, or the input itself.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::nn::{instance_norm, layer_norm_no_affine};
use crate::model::transformer::{Layer, TransformerConfig};

/// Epsilon of every target normalisation; independent of the model's.
const EPS: f64 = 1e-5;

/// What is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSource {
    /// The MLP's output before the residual sum (data2vec 1.0 section 3.3; speech, text, all of 2.0).
    Ffn,
    /// The block's output (1.0's vision).
    Block,
    /// The input itself, as methods made for one modality do: normalised pixels (MAE), log-mel
    /// frames, token ids under cross-entropy (BERT). No teacher is involved; it is averaged all the
    /// same, so that its weights can be compared.
    Input,
}

/// Normalisation without learned parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetNorm {
    /// No normalisation.
    None,
    /// Over the real tokens of each row and channel (instance norm).
    Instance,
    /// Over the channels of each token (layer norm).
    Layer,
    /// Over the examples of a batch, at each position and channel: what a position alone explains is
    /// removed. Not in the papers; for short or centred data. Needs many examples in a batch, and
    /// changes with their number.
    Position,
}

/// How targets are built. The default is 2.0 Base's for speech.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "TargetSection", into = "TargetSection")]
pub struct TargetConfig {
    /// Number of last blocks that are averaged (K in the paper); 0 if the input is the target.
    pub top_k: usize,
    /// Which output of each block, or the input.
    pub source: TargetSource,
    /// Normalisation of each block's output, before averaging.
    pub layer_norm: TargetNorm,
    /// Normalisation of the average.
    pub target_norm: TargetNorm,
}

/// The `target` section of a recipe: other keys for other sources.
#[derive(Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase", deny_unknown_fields)]
enum TargetSection {
    Ffn { top_k: usize, layer_norm: TargetNorm, target_norm: TargetNorm },
    Block { top_k: usize, layer_norm: TargetNorm, target_norm: TargetNorm },
    Input {},
}

impl From<TargetSection> for TargetConfig {
    fn from(section: TargetSection) -> Self {
        let (source, top_k, layer_norm, target_norm) = match section {
            TargetSection::Ffn { top_k, layer_norm, target_norm } => {
                (TargetSource::Ffn, top_k, layer_norm, target_norm)
            }
            TargetSection::Block { top_k, layer_norm, target_norm } => {
                (TargetSource::Block, top_k, layer_norm, target_norm)
            }
            TargetSection::Input {} => return Self::INPUT,
        };
        Self { top_k, source, layer_norm, target_norm }
    }
}

impl From<TargetConfig> for TargetSection {
    fn from(config: TargetConfig) -> Self {
        let TargetConfig { top_k, source, layer_norm, target_norm } = config;
        match source {
            TargetSource::Ffn => Self::Ffn { top_k, layer_norm, target_norm },
            TargetSource::Block => Self::Block { top_k, layer_norm, target_norm },
            TargetSource::Input => Self::Input {},
        }
    }
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            top_k: 8,
            source: TargetSource::Ffn,
            layer_norm: TargetNorm::Instance,
            target_norm: TargetNorm::None,
        }
    }
}

impl TargetConfig {
    /// The input itself.
    pub const INPUT: Self = Self {
        top_k: 0,
        source: TargetSource::Input,
        layer_norm: TargetNorm::None,
        target_norm: TargetNorm::None,
    };

    /// Checks the settings against the teacher's depth.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self, transformer: &TransformerConfig) -> Result<()> {
        if self.source == TargetSource::Input {
            return Ok(());
        }
        if self.top_k < 1 || self.top_k > transformer.depth {
            let reason = format!("{} is outside 1..={} blocks", self.top_k, transformer.depth);
            return Err(Error::config("target.top_k", reason));
        }
        Ok(())
    }
}

/// Builds regression targets. [`TargetConfig`] is the paper's; implement it for targets of your own
/// and pass it in [`Parts`](crate::Parts).
pub trait Target: Debug + Send {
    /// Returns `(B, T, D)` f32, built from the teacher's `layers`, `(B, T, D)` each. `padding`
    /// `(B, T)` is true at padded tokens; statistics over time must leave them out.
    fn build(&self, layers: &[Layer], padding: Option<&Tensor>) -> Tensor;
}

impl Target for TargetConfig {
    fn build(&self, layers: &[Layer], padding: Option<&Tensor>) -> Tensor {
        let last = &layers[layers.len().saturating_sub(self.top_k)..];
        let mut sum: Option<Tensor> = None;
        for layer in last {
            let x = match self.source {
                TargetSource::Block => &layer.out,
                TargetSource::Ffn | TargetSource::Input => &layer.ffn,
            };
            let x = normalize(&x.to_kind(Kind::Float), self.layer_norm, padding);
            sum = Some(match sum {
                Some(sum) => sum + x,
                None => x,
            });
        }
        let mean = sum.unwrap_or_default() / last.len() as f64;
        normalize(&mean, self.target_norm, padding)
    }
}

fn normalize(x: &Tensor, norm: TargetNorm, padding: Option<&Tensor>) -> Tensor {
    match norm {
        TargetNorm::None => x.shallow_clone(),
        TargetNorm::Layer => layer_norm_no_affine(x, EPS),
        TargetNorm::Instance => instance_norm(x, padding, EPS),
        // (B, T, D) to (T, B, D) and back
        TargetNorm::Position => {
            let padding = padding.map(|padding| padding.transpose(0, 1));
            instance_norm(&x.transpose(0, 1), padding.as_ref(), EPS).transpose(0, 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(values: &[Tensor]) -> Vec<Layer> {
        values.iter().map(|x| Layer { ffn: x.copy(), out: x * 2.0 }).collect()
    }

    #[test]
    fn averages_the_last_k_layers() {
        let all =
            [1.0, 5.0, 7.0].map(|v| Tensor::full([1, 2, 2], v, (Kind::Float, tch::Device::Cpu)));
        let config = TargetConfig {
            top_k: 2,
            source: TargetSource::Ffn,
            layer_norm: TargetNorm::None,
            target_norm: TargetNorm::None,
        };
        assert_eq!(config.build(&layers(&all), None).double_value(&[0, 1, 1]), 6.0);
        let config = TargetConfig { source: TargetSource::Block, ..config };
        assert_eq!(config.build(&layers(&all), None).double_value(&[0, 1, 1]), 12.0);
    }

    #[test]
    fn instance_norm_by_hand() {
        // One row, three tokens, one channel: 1, 2, 6 has mean 3 and biased variance 14/3.
        let x = Tensor::from_slice(&[1.0_f32, 2.0, 6.0]).reshape([1, 3, 1]);
        let y = instance_norm(&x, None, EPS);
        assert!((y.double_value(&[0, 2, 0]) - 3.0 / (14.0_f64 / 3.0 + 1e-5).sqrt()).abs() < 1e-6);
    }

    #[test]
    fn position_norm_by_hand() {
        // Two positions of three rows; the last row has one token.
        let x = Tensor::from_slice(&[1.0_f32, 10.0, 2.0, 14.0, 6.0, 99.0]).reshape([3, 2, 1]);
        let padding = crate::padding_mask(&[2, 2, 1], 2, tch::Device::Cpu);
        let y = normalize(&x, TargetNorm::Position, padding.as_ref());
        assert!((y.double_value(&[2, 0, 0]) - 3.0 / (14.0_f64 / 3.0 + 1e-5).sqrt()).abs() < 1e-6);
        assert!((y.double_value(&[0, 1, 0]) + 2.0 / (4.0_f64 + 1e-5).sqrt()).abs() < 1e-6);
    }

    #[test]
    fn instance_norm_leaves_padding_out() {
        let x = Tensor::randn([2, 5, 3], (Kind::Float, tch::Device::Cpu));
        let padding = crate::padding_mask(&[5, 3], 5, tch::Device::Cpu);
        let y = instance_norm(&x, padding.as_ref(), EPS);
        let alone = instance_norm(&x.narrow(0, 1, 1).narrow(1, 0, 3), None, EPS);
        let difference = (y.narrow(0, 1, 1).narrow(1, 0, 3) - alone).abs().max();
        assert!(difference.double_value(&[]) < 1e-5);
    }
}
