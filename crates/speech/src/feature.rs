//! The feature encoder: waveform to tokens, one every 20 ms, and their positions.

use data2vec_core::model::nn::{
    CONV_NORM_EPS, Conv1d, Conv1dShape, Init, LayerNorm, Linear, conv_block, instance_norm,
    padding_to_float, time_conv,
};
use data2vec_core::{
    Batch, Error, FeatureEncoder, InputTarget, Result, Tokens, TransformerConfig, padding_mask,
};
use tch::{Kind, Tensor, nn};

use crate::config::{ConvNorm, WaveEncoderConfig};
use crate::spectrogram::log_mel;

/// Bands of the log-mel frames that `target.source = "input"` predicts.
const LOG_MEL_BANDS: i64 = 80;
/// Added to the variance of a band over time.
const LOG_MEL_EPS: f64 = 1e-5;

/// One convolution over the waveform with its normalization.
#[derive(Debug)]
struct WaveConv {
    /// `(C_out, C_in, k)`.
    weight: Tensor,
    layer_norm: Option<LayerNorm>,
    /// Scale and shift `(C_out)` of the norm over time.
    group_norm: Option<(Tensor, Tensor)>,
    kernel: i64,
    stride: i64,
}

impl WaveConv {
    fn new(path: &nn::Path, in_dim: i64, layer: [i64; 3], norm: Option<ConvNorm>) -> Self {
        let [dim, kernel, stride] = layer;
        let std = (2.0 / (in_dim * kernel) as f64).sqrt(); // He et al. 2015
        let init = nn::Init::Randn { mean: 0.0, stdev: std };
        let norm_path = path / "norm";
        let group = || {
            (
                norm_path.var("weight", &[dim], nn::Init::Const(1.0)),
                norm_path.var("bias", &[dim], nn::Init::Const(0.0)),
            )
        };
        Self {
            weight: (path / "conv").var("weight", &[dim, in_dim, kernel], init),
            layer_norm: (norm == Some(ConvNorm::Layer))
                .then(|| LayerNorm::new(&norm_path, dim, CONV_NORM_EPS)),
            group_norm: (norm == Some(ConvNorm::Group)).then(group),
            kernel,
            stride,
        }
    }

    fn out_len(&self, len: i64) -> i64 {
        if len < self.kernel { 0 } else { (len - self.kernel) / self.stride + 1 }
    }

    /// Maps `(B, L, C_in)` to `(B, L', C_out)`. With channels last, norm and activation run along
    /// rows and nothing is transposed.
    fn forward(&self, x: &Tensor, padding: Option<&Tensor>) -> Tensor {
        let mut y = time_conv(x, &self.weight, self.stride); // (B, L', C_out)
        if let Some(norm) = &self.layer_norm {
            return norm.forward_gelu(&y);
        }
        if let Some((weight, bias)) = &self.group_norm {
            y = instance_norm(&y, padding, CONV_NORM_EPS) * weight + bias;
        }
        y.gelu("none")
    }
}

/// The feature encoder for speech: convolutions over the waveform, a projection to the
/// transformer's width, convolutional positions and, in 2.0, ALiBi.
#[derive(Debug)]
pub struct WaveEncoder {
    convs: Vec<WaveConv>,
    norm: LayerNorm,
    proj: Linear,
    positions: Vec<Conv1d>,
    /// Fixed slopes and their learned scale, `(H)` each.
    alibi: Option<(Tensor, Tensor)>,
    padding_leaks: bool,
    receptive_field: i64,
    hop: i64,
}

impl FeatureEncoder for WaveEncoder {
    const NAME: &'static str = "wave";
    const FRONT_END_PREFIXES: &'static [&'static str] = &["embed.conv_layers."];
    type Config = WaveEncoderConfig;

    fn validate(config: &Self::Config, transformer: &TransformerConfig) -> Result<()> {
        config.validate(transformer)
    }

    fn new(path: &nn::Path, config: &Self::Config, transformer: &TransformerConfig) -> Self {
        let (embed, positions) = (path / "embed", path / "positions");
        let dim = transformer.dim;
        let mut in_dim = 1;
        let mut convs = Vec::new();
        for (i, &layer) in config.conv_layers.iter().enumerate() {
            let norm = (config.conv_norm == ConvNorm::Layer || i == 0).then_some(config.conv_norm);
            convs.push(WaveConv::new(&(&embed / "conv_layers" / i), in_dim, layer, norm));
            in_dim = layer[0];
        }
        let shape = Conv1dShape {
            in_dim: dim,
            out_dim: dim,
            kernel: config.pos_kernel,
            groups: config.pos_groups,
        };
        Self {
            convs,
            norm: LayerNorm::new(&(&embed / "norm"), in_dim, CONV_NORM_EPS),
            proj: Linear::new(&(&embed / "proj"), in_dim, dim, Init::Torch),
            positions: (0..config.pos_layers)
                .map(|i| Conv1d::same(&(&positions / "convs" / i), shape, Init::Torch))
                .collect(),
            alibi: config.alibi.then(|| {
                let slopes = Tensor::from_slice(&alibi_slopes(transformer.heads as usize));
                let one = nn::Init::Const(1.0);
                let scale = positions.var("alibi_scale", &[transformer.heads], one);
                (slopes.to_kind(Kind::Float).to_device(scale.device()), scale)
            }),
            padding_leaks: config.padding_leaks(),
            receptive_field: config.receptive_field(),
            hop: config.hop(),
        }
    }

    fn input_target(_config: &Self::Config) -> Option<InputTarget> {
        Some(InputTarget::Values(LOG_MEL_BANDS))
    }

    /// Returns the log-mel frame of each token's receptive field, each band normalised over the
    /// recording's frames.
    fn input_values(&self, batch: &Batch) -> Result<Tensor> {
        let lengths = self.check(batch)?;
        let frames = log_mel(&batch.inputs, [self.receptive_field, self.hop], LOG_MEL_BANDS)?; // (B, T, 80)
        let lengths = lengths.iter().map(|len| (len - self.receptive_field) / self.hop + 1);
        let lengths: Vec<i64> = lengths.collect();
        let padding = padding_mask(&lengths, frames.size()[1], frames.device());
        let frames = instance_norm(&frames, padding.as_ref(), LOG_MEL_EPS);
        Ok(Tokens::new(frames.shallow_clone(), Some(lengths)).zero_padding(&frames))
    }

    fn embed(&self, batch: &Batch, _train: bool) -> Result<Tokens> {
        let lengths = self.check(batch)?;
        // `validate` requires at least one convolution.
        let (x, lengths) = self.convolve(&batch.inputs, lengths).last().unwrap_or_default();
        Ok(Tokens::new(self.proj.forward(&self.norm.forward(&x)), Some(lengths))) // (B, T, D)
    }

    fn add_positions(&self, tokens: &Tokens, _train: bool) -> Result<Tensor> {
        let padding = tokens.padding.as_ref().filter(|_| !self.padding_leaks);
        let keep = padding_to_float(padding, tokens.x.kind());
        let x = tokens.zero_padding(&tokens.x);
        let mut position = x.shallow_clone();
        for conv in &self.positions {
            position = conv_block(&position, conv, keep.as_ref()); // (B, T, D)
        }
        Ok(if self.positions.is_empty() { x } else { x + position })
    }

    fn attention_bias(&self, tokens: &Tokens, ids_keep: Option<&Tensor>) -> Vec<Tensor> {
        let Some((slopes, scale)) = &self.alibi else { return Vec::new() };
        let all = Tensor::arange(tokens.num_tokens(), (Kind::Int64, scale.device())).unsqueeze(0);
        let at = ids_keep.unwrap_or(&all); // (1 or B, K)
        let distance = (at.unsqueeze(-1) - at.unsqueeze(-2)).abs().unsqueeze(1); // (1 or B, 1, K, K)
        let slope = (slopes * scale.clamp_min(0.0)).reshape([1, -1, 1, 1]); // (1, H, 1, 1)
        let bias = distance.to_kind(Kind::Float) * -slope; // (1 or B, H, K, K)
        vec![if ids_keep.is_some() { bias } else { bias.squeeze_dim(0) }]
    }
}

impl WaveEncoder {
    /// Checks a batch of samples `(B, S)`. Returns the length of each row.
    fn check(&self, batch: &Batch) -> Result<Vec<i64>> {
        let size = batch.inputs.size();
        if size.len() != 2 || batch.inputs.kind() != Kind::Float {
            return Err(Error::Input(format!(
                "speech must be (sequences, samples) of f32, not {size:?} of {:?}",
                batch.inputs.kind()
            )));
        }
        let lengths =
            batch.lengths().map_or_else(|| vec![size[1]; size[0] as usize], <[i64]>::to_vec);
        if let Some(short) = lengths.iter().find(|&&n| n < self.receptive_field) {
            return Err(Error::Input(format!(
                "{short} samples are too few: the encoder needs at least {}",
                self.receptive_field
            )));
        }
        Ok(lengths)
    }

    /// Iterates over the outputs of the convolutions: `(B, L, C)` and the length of each row.
    ///
    /// `waves` is `(B, S)`; row `b` has `lengths[b]` samples, the rest is padding.
    pub fn convolve(
        &self,
        waves: &Tensor,
        lengths: Vec<i64>,
    ) -> impl Iterator<Item = (Tensor, Vec<i64>)> {
        let start = (waves.unsqueeze(-1), lengths); // (B, S, 1)
        self.convs.iter().scan(start, |(x, lengths), conv| {
            lengths.iter_mut().for_each(|n| *n = conv.out_len(*n));
            let padding = conv
                .group_norm
                .as_ref()
                .and_then(|_| padding_mask(lengths, conv.out_len(x.size()[1]), x.device()));
            *x = conv.forward(x, padding.as_ref()); // (B, L, C)
            Some((x.shallow_clone(), lengths.clone()))
        })
    }
}

/// Returns the ALiBi slope of each head. If `heads` is not a power of two: the slopes of the next
/// lower power, then every second slope of the next higher one.
fn alibi_slopes(heads: usize) -> Vec<f64> {
    let power_of_two = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2());
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    power_of_two(below).chain(power_of_two(2 * below).step_by(2).take(heads - below)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alibi_slopes_match_reference() {
        // fairseq 3d262bb, `get_slopes`.
        assert_eq!(alibi_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
        let twelve = alibi_slopes(12);
        assert_eq!(twelve[..3], [0.5, 0.25, 0.125]);
        let expected =
            [0.7071067690849304, 0.3535533845424652, 0.1767766922712326, 0.0883883461356163];
        for (slope, expected) in twelve[8..].iter().zip(expected) {
            assert!((slope - expected).abs() < 1e-7);
        }
        assert!((alibi_slopes(16)[15] - 0.00390625).abs() < 1e-12);
    }
}
