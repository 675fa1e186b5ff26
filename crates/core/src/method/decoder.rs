//! The decoder: predicts targets from the student's features. Thrown away after pretraining.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use crate::data::batch::Tokens;
use crate::error::{Error, Result};
use crate::method::mask::Mask;
use crate::model::nn::{
    Conv1d, Conv1dShape, Conv2d, Init, LayerNorm, Linear, conv_block, dropout, norm_gelu,
    padding_to_float,
};

/// Kind and sizes of the decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum DecoderConfig {
    /// Linear layers with GELU in between, on each masked token alone (1.0). The hidden width is
    /// 2·dim.
    Mlp {
        /// Number of linear layers; 1 is a plain projection.
        layers: usize,
        /// Epsilon of a layer norm before them, for transformers without a final norm; absent: no
        /// norm.
        #[serde(skip_serializing_if = "Option::is_none")]
        norm_eps: Option<f64>,
    },
    /// Convolutions over time with layer norm and GELU, then a projection (2.0 speech and text).
    Conv1d {
        /// Width of the convolutions.
        dim: i64,
        /// Kernel width.
        kernel: i64,
        /// Groups of the convolutions; divides `dim` and the model's width.
        groups: i64,
        /// Number of convolutions.
        layers: usize,
        /// Adds the input of a convolution to its output where their widths are equal.
        residual: bool,
        /// Linear layers after the convolutions: 1, or 2 with GELU in between.
        projections: usize,
        /// Dropout of the decoder's input.
        input_dropout: f64,
    },
    /// Convolutions over the grid of tokens with layer norm and GELU, then a linear layer (2.0
    /// vision).
    Conv2d {
        /// Width of the convolutions.
        dim: i64,
        /// Kernel height and width.
        kernel: i64,
        /// Groups of the convolutions; divides `dim` and the model's width.
        groups: i64,
        /// Number of convolutions.
        layers: usize,
        /// Adds the input of a convolution to its output where their widths are equal.
        residual: bool,
        /// Dropout of the decoder's input.
        input_dropout: f64,
    },
}

/// The decoder of 2.0 Base for speech.
impl Default for DecoderConfig {
    fn default() -> Self {
        Self::Conv1d {
            dim: 384,
            kernel: 7,
            groups: 16,
            layers: 4,
            residual: true,
            projections: 1,
            input_dropout: 0.1,
        }
    }
}

impl DecoderConfig {
    /// Checks the settings against the model's width.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self, model_dim: i64) -> Result<()> {
        let bad = |key: &str, reason: String| Err(Error::config(format!("decoder.{key}"), reason));
        match *self {
            Self::Mlp { layers: 0, .. } => bad("layers", "at least one is needed".into()),
            Self::Mlp { norm_eps: Some(eps), .. } if !(eps > 0.0) => {
                bad("norm_eps", format!("{eps} is not above 0"))
            }
            Self::Mlp { .. } => Ok(()),
            Self::Conv1d { projections, .. } if !(1..=2).contains(&projections) => {
                bad("projections", format!("{projections} is neither 1 nor 2"))
            }
            Self::Conv1d { dim, kernel, groups, layers, input_dropout, .. }
            | Self::Conv2d { dim, kernel, groups, layers, input_dropout, .. } => {
                if dim < 1 || kernel < 1 || layers < 1 {
                    return bad("dim", "dim, kernel and layers are at least 1".into());
                }
                if groups < 1 || dim % groups != 0 || model_dim % groups != 0 {
                    return bad(
                        "groups",
                        format!(
                            "{groups} does not divide decoder.dim = {dim} and dim = {model_dim}"
                        ),
                    );
                }
                if !(0.0..1.0).contains(&input_dropout) {
                    return bad("input_dropout", format!("{input_dropout} is not a probability"));
                }
                Ok(())
            }
        }
    }
}

/// The decoders of the papers, see [`DecoderConfig`].
#[derive(Debug)]
pub enum Decoder {
    /// See [`DecoderConfig::Mlp`].
    Mlp(MlpDecoder),
    /// See [`DecoderConfig::Conv1d`].
    Conv1d(Conv1dDecoder),
    /// See [`DecoderConfig::Conv2d`].
    Conv2d(Conv2dDecoder),
}

impl Decoder {
    /// Creates the variables below `path`. `config` has been validated; the widths are the model's
    /// and the targets'. Linear layers are initialised by `init`, convolutions as in PyTorch.
    pub fn new(
        path: &nn::Path,
        config: &DecoderConfig,
        [model_dim, target_dim]: [i64; 2],
        init: Init,
    ) -> Self {
        match *config {
            DecoderConfig::Mlp { layers, norm_eps } => Self::Mlp(MlpDecoder {
                norm: norm_eps.map(|eps| LayerNorm::new(&(path / "norm"), model_dim, eps)),
                proj: new_projections(path, model_dim, layers, target_dim, init),
            }),
            DecoderConfig::Conv1d {
                dim,
                kernel,
                groups,
                layers,
                residual,
                projections,
                input_dropout,
            } => Self::Conv1d(Conv1dDecoder {
                blocks: (0..layers)
                    .map(|i| {
                        let in_dim = if i == 0 { model_dim } else { dim };
                        let shape = Conv1dShape { in_dim, out_dim: dim, kernel, groups };
                        Conv1d::same(&(path / "blocks" / i), shape, Init::Torch)
                    })
                    .collect(),
                proj: new_projections(path, dim, projections, target_dim, init),
                residual: residuals(residual, layers, dim == model_dim),
                input_dropout,
            }),
            DecoderConfig::Conv2d { dim, kernel, groups, layers, residual, input_dropout } => {
                Self::Conv2d(Conv2dDecoder {
                    blocks: (0..layers)
                        .map(|i| {
                            let in_dim = if i == 0 { model_dim } else { dim };
                            let shape = Conv1dShape { in_dim, out_dim: dim, kernel, groups };
                            Conv2d::same(&(path / "blocks" / i), shape, Init::Torch)
                        })
                        .collect(),
                    proj: new_projections(path, dim, 1, target_dim, init),
                    residual: residuals(residual, layers, dim == model_dim),
                    input_dropout,
                })
            }
        }
    }
}

/// Predicts targets from the student's features. [`Decoder`] has the papers'; implement it for a
/// decoder of your own and pass it in [`Parts`](crate::Parts).
pub trait Decode: Debug + Send {
    /// Applies dropout to the encoder's features `(B, K, D)`, before noise fills the masked places.
    fn drop_input(&self, x: &Tensor, train: bool) -> Tensor {
        let _ = train;
        x.shallow_clone()
    }

    /// Returns predictions `(N, P)` at masked tokens from features `tokens` `(B, T, D)`, in the order
    /// of [`Mask::gather`].
    fn forward(&self, tokens: &Tokens, mask: &Mask) -> Tensor;

    /// The decoder, if it treats each token alone: the student then skips the last MLP at visible
    /// tokens, whose output nobody reads.
    fn as_mlp(&self) -> Option<&MlpDecoder> {
        None
    }
}

impl Decode for Decoder {
    fn drop_input(&self, x: &Tensor, train: bool) -> Tensor {
        match self {
            Self::Mlp(_) => x.shallow_clone(),
            Self::Conv1d(conv) => dropout(x, conv.input_dropout, train),
            Self::Conv2d(conv) => dropout(x, conv.input_dropout, train),
        }
    }

    fn forward(&self, tokens: &Tokens, mask: &Mask) -> Tensor {
        match self {
            Self::Mlp(mlp) => mlp.forward(&mask.gather(&tokens.x, 1)),
            Self::Conv1d(conv) => mask.gather(&conv.forward(tokens), 1),
            Self::Conv2d(conv) => conv.forward(tokens, mask),
        }
    }

    fn as_mlp(&self) -> Option<&MlpDecoder> {
        match self {
            Self::Mlp(mlp) => Some(mlp),
            _ => None,
        }
    }
}

/// Returns for each convolution whether it adds its input: all do except a first one that changes
/// the width.
fn residuals(wanted: bool, layers: usize, same_width: bool) -> Vec<bool> {
    (0..layers).map(|i| wanted && (i > 0 || same_width)).collect()
}

/// Creates linear layers from `dim` to `out_dim` with a hidden width of `2·dim`.
fn new_projections(
    path: &nn::Path,
    dim: i64,
    layers: usize,
    out_dim: i64,
    init: Init,
) -> Vec<Linear> {
    let path = path / "proj";
    (0..layers)
        .map(|i| {
            let from = if i == 0 { dim } else { 2 * dim };
            let to = if i + 1 == layers { out_dim } else { 2 * dim };
            Linear::new(&(&path / i), from, to, init)
        })
        .collect()
}

fn project(layers: &[Linear], x: &Tensor) -> Tensor {
    let mut x = x.shallow_clone();
    for (i, layer) in layers.iter().enumerate() {
        x = layer.forward(&if i == 0 { x } else { x.gelu("none") });
    }
    x
}

/// Linear layers on each token alone.
#[derive(Debug)]
pub struct MlpDecoder {
    norm: Option<LayerNorm>,
    proj: Vec<Linear>,
}

impl MlpDecoder {
    /// Maps `(N, D)` to `(N, P)`; the prediction at a token depends on that token alone.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        match &self.norm {
            Some(norm) => project(&self.proj, &norm.forward(x)),
            None => project(&self.proj, x),
        }
    }
}

/// Convolutions over time.
#[derive(Debug)]
pub struct Conv1dDecoder {
    blocks: Vec<Conv1d>,
    proj: Vec<Linear>,
    residual: Vec<bool>,
    input_dropout: f64,
}

impl Conv1dDecoder {
    /// Returns the output `(B, T, dim)` of each convolution for features `(B, T, D)`.
    pub fn layers(&self, tokens: &Tokens) -> impl Iterator<Item = Tensor> {
        let keep = padding_to_float(tokens.padding.as_ref(), tokens.x.kind());
        let layers = self.blocks.iter().zip(&self.residual);
        layers.scan(tokens.x.shallow_clone(), move |x, (conv, residual)| {
            let y = conv_block(x, conv, keep.as_ref()); // (B, T, dim)
            *x = if *residual { &*x + y } else { y };
            Some(x.shallow_clone())
        })
    }

    /// Maps `(B, T, D)` to `(B, T, P)`.
    fn forward(&self, tokens: &Tokens) -> Tensor {
        let last = self.layers(tokens).last();
        project(&self.proj, last.as_ref().unwrap_or(&tokens.x))
    }
}

/// Convolutions over the grid of tokens.
#[derive(Debug)]
pub struct Conv2dDecoder {
    blocks: Vec<Conv2d>,
    proj: Vec<Linear>,
    residual: Vec<bool>,
    input_dropout: f64,
}

impl Conv2dDecoder {
    /// Returns the output `(B, T, dim)` of each convolution for features `(B, T, D)`.
    pub fn layers(&self, tokens: &Tokens) -> impl Iterator<Item = Tensor> {
        let ([height, width], size) = (tokens.grid(), tokens.x.size());
        let x = tokens.x.reshape([size[0], height, width, size[2]]); // (B, h, w, D)
        self.blocks.iter().zip(&self.residual).scan(x, |x, (conv, residual)| {
            let y = norm_gelu(&conv.forward(x)); // (B, h, w, dim)
            *x = if *residual { &*x + y } else { y };
            Some(x.flatten(1, 2))
        })
    }

    /// Maps `(B, T, D)` to predictions `(N, P)` at masked tokens.
    fn forward(&self, tokens: &Tokens, mask: &Mask) -> Tensor {
        let last = self.layers(tokens).last();
        // The projection treats each token alone: visible ones need none.
        project(&self.proj, &mask.gather(last.as_ref().unwrap_or(&tokens.x), 1))
    }
}
