//! Waveform to one vector every 20 ms, and the positions of these vectors.

use data2vec_core::nn::{
    CONV_NORM_EPS, Conv1d, Conv1dShape, Init, LayerNorm, Linear, conv_block, instance_norm,
    keep_factor, time_conv,
};
use data2vec_core::{
    Batch, Error, FeatureEncoder, Result, Tokens, TransformerConfig, padding_mask,
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// Normalisation in the convolutional feature encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConvNorm {
    /// Layer norm over channels after every convolution: all of data2vec.
    Layer,
    /// Each channel over time, after the first convolution alone: wav2vec 2.0 Base.
    Group,
}

/// Sizes of a [`WaveEncoder`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaveEncoderConfig {
    /// Zero mean and unit variance over each whole recording, before it is cut and encoded.
    pub normalize: bool,
    /// Channels, kernel width and stride of each convolution over the waveform.
    pub conv_layers: Vec<[i64; 3]>,
    /// Their normalisation.
    pub conv_norm: ConvNorm,
    /// Convolutions of the positional encoder; 0: none.
    pub pos_layers: usize,
    /// Their kernel width.
    pub pos_kernel: i64,
    /// Their groups; divides the transformer's width.
    pub pos_groups: i64,
    /// Attention falls with distance (ALiBi, Press et al. 2022), by a learned scale for each head.
    pub alibi: bool,
    /// Departures from the papers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compat: Vec<WaveCompat>,
}

/// Released behaviour that departs from the papers' intent, for exact reproduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaveCompat {
    /// Padding is zero before the first positional convolution alone: what that makes of it reaches
    /// the last real frames through the others, and how much padding there is changes them
    /// (data2vec 1.0 in fairseq and in Hugging Face's transformers).
    PaddingLeaks,
}

/// Most samples that a vector may see: days of sound.
const LONGEST_FIELD: f64 = (1_u64 << 32) as f64;

impl WaveEncoderConfig {
    /// Vectors that `samples` give: each covers the same stretch of signal, none the end that is too
    /// short for one.
    pub fn frames(&self, samples: i64) -> i64 {
        self.conv_layers.iter().fold(samples, |len, &[_, kernel, stride]| {
            if len < kernel { 0 } else { (len - kernel) / stride + 1 }
        })
    }

    /// Samples from one vector to the next.
    pub fn hop(&self) -> i64 {
        self.conv_layers.iter().map(|[_, _, stride]| stride).product()
    }

    /// Samples that one vector sees; shorter signals give none.
    pub fn receptive_field(&self) -> i64 {
        self.conv_layers
            .iter()
            .rev()
            .fold(1, |len, [_, kernel, stride]| (len - 1) * stride + kernel)
    }
}

/// One convolution over the waveform, with its normalisation.
#[derive(Debug)]
struct WaveConv {
    /// `(C_out, C_in, k)`
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

    /// `(B, L, C_in)` to `(B, L', C_out)`. With channels last, norm and activation run along rows and
    /// nothing is transposed.
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

/// Convolutions over the waveform, a projection to the transformer's width, convolutional positions
/// and, in 2.0, ALiBi.
#[derive(Debug)]
pub struct WaveEncoder {
    convs: Vec<WaveConv>,
    norm: LayerNorm,
    proj: Linear,
    positions: Vec<Conv1d>,
    /// `(H)` each: fixed slopes and their learned scale.
    alibi: Option<(Tensor, Tensor)>,
    padding_leaks: bool,
    receptive_field: i64,
}

impl FeatureEncoder for WaveEncoder {
    const NAME: &'static str = "wave";
    const LOCAL: &'static [&'static str] = &["embed.conv_layers."];
    type Config = WaveEncoderConfig;

    fn validate(config: &Self::Config, transformer: &TransformerConfig) -> Result<()> {
        let bad = |key: &str, reason: String| Err(Error::config(format!("features.{key}"), reason));
        if config.conv_layers.is_empty() {
            return bad("conv_layers", "at least one [channels, kernel, stride] is needed".into());
        }
        if let Some(layer) = config.conv_layers.iter().find(|l| l.iter().any(|&n| n < 1)) {
            let reason = format!("{layer:?} is not [channels, kernel, stride], all at least 1");
            return bad("conv_layers", reason);
        }
        let strides: f64 = config.conv_layers.iter().map(|[_, _, stride]| *stride as f64).product();
        let kernels: f64 = config.conv_layers.iter().map(|[_, kernel, _]| *kernel as f64).sum();
        if strides * kernels > LONGEST_FIELD {
            let reason = "one vector would see more than any recording has; lower the strides";
            return bad("conv_layers", reason.into());
        }
        if config.pos_layers > 0 {
            if config.pos_kernel < 1 {
                return bad("pos_kernel", format!("{} is below 1", config.pos_kernel));
            }
            if config.pos_groups < 1 || transformer.dim % config.pos_groups != 0 {
                let (groups, dim) = (config.pos_groups, transformer.dim);
                return bad(
                    "pos_groups",
                    format!("{groups} does not divide transformer.dim = {dim}"),
                );
            }
        }
        Ok(())
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
            padding_leaks: config.compat.contains(&WaveCompat::PaddingLeaks),
            receptive_field: config.receptive_field(),
        }
    }

    fn embed(&self, batch: &Batch, _train: bool) -> Result<Tokens> {
        let size = batch.inputs.size();
        if size.len() != 2 || batch.inputs.kind() != Kind::Float {
            return Err(Error::Input(format!(
                "speech is (sequences, samples) of f32, not {size:?} of {:?}",
                batch.inputs.kind()
            )));
        }
        let lengths =
            batch.lengths().map_or_else(|| vec![size[1]; size[0] as usize], <[i64]>::to_vec);
        if let Some(short) = lengths.iter().find(|&&n| n < self.receptive_field) {
            return Err(Error::Input(format!(
                "{short} samples are too few: one feature takes {}",
                self.receptive_field
            )));
        }
        // `validate` asks for at least one convolution.
        let (x, lengths) = self.convolve(&batch.inputs, lengths).last().unwrap_or_default();
        Ok(Tokens::new(self.proj.forward(&self.norm.forward(&x)), Some(lengths))) // (B, T, D)
    }

    fn add_positions(&self, tokens: &Tokens, _train: bool) -> Tensor {
        let padding = tokens.padding.as_ref().filter(|_| !self.padding_leaks);
        let keep = keep_factor(padding, tokens.x.kind());
        let x = tokens.zero_padding(&tokens.x);
        let mut position = x.shallow_clone();
        for conv in &self.positions {
            position = conv_block(&position, conv, keep.as_ref()); // (B, T, D)
        }
        if self.positions.is_empty() { x } else { x + position }
    }

    fn attention_bias(&self, tokens: &Tokens, ids_keep: Option<&Tensor>) -> Vec<Tensor> {
        let Some((slopes, scale)) = &self.alibi else { return Vec::new() };
        let every = Tensor::arange(tokens.num_tokens(), (Kind::Int64, scale.device())).unsqueeze(0);
        let at = ids_keep.unwrap_or(&every); // (1 or B, K)
        let distance = (at.unsqueeze(-1) - at.unsqueeze(-2)).abs().unsqueeze(1); // (1 or B, 1, K, K)
        let slope = (slopes * scale.clamp_min(0.0)).reshape([1, -1, 1, 1]); // (1, H, 1, 1)
        let bias = distance.to_kind(Kind::Float) * -slope; // (1 or B, H, K, K)
        vec![if ids_keep.is_some() { bias } else { bias.squeeze_dim(0) }]
    }
}

impl WaveEncoder {
    /// What each convolution makes of waves `(B, S)`, of which row `b` has `lengths[b]` real samples,
    /// in turn: `(B, L, C)`, and how much of each row is real.
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

/// How fast each head's attention falls with distance. For a number of heads that is no power of two:
/// the slopes of the next lower one, then every second of the next higher one's.
fn alibi_slopes(heads: usize) -> Vec<f64> {
    let power_of_two = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2());
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    power_of_two(below).chain(power_of_two(2 * below).step_by(2).take(heads - below)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_the_reference() {
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

    #[test]
    fn lengths_of_the_reference() {
        let mut conv_layers = vec![[512, 10, 5]];
        conv_layers.extend([[512, 3, 2]; 4]);
        conv_layers.extend([[512, 2, 2]; 2]);
        let config = WaveEncoderConfig {
            normalize: true,
            conv_layers,
            conv_norm: ConvNorm::Layer,
            pos_layers: 5,
            pos_kernel: 19,
            pos_groups: 16,
            alibi: false,
            compat: vec![],
        };
        assert_eq!((config.hop(), config.receptive_field()), (320, 400));
        for (samples, frames) in
            [(399, 0), (400, 1), (16_000, 49), (32_000, 99), (250_000, 781), (320_000, 999)]
        {
            assert_eq!(config.frames(samples), frames);
        }
    }
}
