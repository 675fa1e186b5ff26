//! Basic layers (linear, norms, convolutions) with the initialisations that data2vec uses.

use tch::{Kind, TchError, Tensor, nn};

/// Weight initialisation of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Weights N(0, 0.02²), biases 0, as in BERT; used in most transformers here.
    Bert,
    /// Weights N(0, 0.02²) truncated at ±0.02, biases 0, as in BEiT.
    Beit,
    /// PyTorch's default: weights and biases U(±1/√fan_in).
    Torch,
    /// Weights U(±√(6 / (fan_in + fan_out))) (Glorot and Bengio 2010), biases as in PyTorch's
    /// default.
    Xavier,
}

impl Init {
    /// Creates the variable `path / "weight"`; the first dimension of `size` is the output
    /// dimension.
    fn weight(self, path: &nn::Path, size: &[i64], fan_in: i64) -> Tensor {
        let init = match self {
            Self::Bert => nn::Init::Randn { mean: 0.0, stdev: 0.02 },
            Self::Beit => return trunc_normal(path, "weight", size),
            Self::Torch => uniform((fan_in as f64).powf(-0.5)),
            Self::Xavier => {
                let fan_out = fan_in * size[0] / size[1..].iter().product::<i64>();
                uniform((6.0 / (fan_in + fan_out) as f64).sqrt())
            }
        };
        path.var("weight", size, init)
    }

    fn bias(self, fan_in: i64) -> nn::Init {
        match self {
            Self::Bert | Self::Beit => nn::Init::Const(0.0),
            Self::Torch | Self::Xavier => uniform((fan_in as f64).powf(-0.5)),
        }
    }
}

fn uniform(bound: f64) -> nn::Init {
    nn::Init::Uniform { lo: -bound, up: bound }
}

/// Creates a variable drawn from N(0, 0.02²) truncated at ±0.02, as in BEiT.
pub fn trunc_normal(path: &nn::Path, name: &str, size: &[i64]) -> Tensor {
    const STD: f64 = 0.02;
    // Probability mass within one standard deviation, erf(1/√2); uniform draws go through the
    // inverse distribution function.
    const WITHIN: f64 = 0.682_689_492_137_086;
    let var = path.var(name, size, uniform(WITHIN));
    let _ = tch::no_grad(|| {
        var.shallow_clone().erfinv_().g_mul_scalar_(STD * std::f64::consts::SQRT_2)
    });
    var
}

/// A linear layer with bias over the last dimension.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// Clones share their variables.
impl Clone for Linear {
    fn clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }
}

impl Linear {
    /// Creates `path / "weight"` and `path / "bias"`.
    pub fn new(path: &nn::Path, in_dim: i64, out_dim: i64, init: Init) -> Self {
        Self {
            weight: init.weight(path, &[out_dim, in_dim], in_dim),
            bias: path.var("bias", &[out_dim], init.bias(in_dim)),
        }
    }

    /// Multiplies the initial weights by `factor`.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        let _ = tch::no_grad(|| self.weight.shallow_clone().g_mul_scalar_(factor));
        self
    }

    /// Sets the initial biases to 0.
    pub(crate) fn with_zero_bias(self) -> Self {
        let _ = tch::no_grad(|| self.bias.shallow_clone().zero_());
        self
    }

    /// Converts the variables to `kind`.
    pub(crate) fn convert(&mut self, kind: Kind) {
        self.weight = self.weight.to_kind(kind);
        self.bias = self.bias.to_kind(kind);
    }

    /// Maps `(…, in)` to `(…, out)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    /// Computes `forward(gelu(x))`; the backward pass recomputes the GELU instead of storing it.
    pub(crate) fn forward_gelu(&self, x: &Tensor) -> Tensor {
        expect_torch(data2vec_torch_ext::gelu_linear(x, &self.weight, &self.bias))
    }
}

/// Layer norm over the last dimension, with learned scale and shift.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

/// Clones share their variables.
impl Clone for LayerNorm {
    fn clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }
}

/// A learned factor per channel (LayerScale; Touvron et al. 2021).
#[derive(Debug)]
pub(crate) struct LayerScale(Tensor);

impl LayerScale {
    /// Creates the variable `path / name` of `dim` channels, each initialised to `value`.
    pub(crate) fn new(path: &nn::Path, name: &str, dim: i64, value: f64) -> Self {
        Self(path.var(name, &[dim], nn::Init::Const(value)))
    }

    /// Multiplies `x` `(…, dim)` by the learned factors and by `factor`.
    pub(crate) fn forward(&self, x: &Tensor, factor: f64) -> Tensor {
        match factor {
            1.0 => x * &self.0,
            _ => x * (&self.0 * factor),
        }
    }
}

/// Clones share their variables.
impl Clone for LayerScale {
    fn clone(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

impl LayerNorm {
    /// Creates a layer norm over `dim` channels.
    pub fn new(path: &nn::Path, dim: i64, eps: f64) -> Self {
        Self {
            weight: path.var("weight", &[dim], nn::Init::Const(1.0)),
            bias: path.var("bias", &[dim], nn::Init::Const(0.0)),
            eps,
        }
    }

    /// Normalises `x` `(…, dim)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// Computes `gelu(forward(x))`; the backward pass recomputes the norm instead of storing it.
    pub fn forward_gelu(&self, x: &Tensor) -> Tensor {
        expect_torch(data2vec_torch_ext::norm_gelu(x, Some((&self.weight, &self.bias)), self.eps))
    }
}

/// Normalises `x` over the last dimension, without parameters.
pub fn layer_norm_no_affine(x: &Tensor, eps: f64) -> Tensor {
    let dim = x.size().last().copied().unwrap_or(1);
    x.layer_norm([dim], None::<Tensor>, None::<Tensor>, eps, true)
}

/// Normalises `x` `(B, T, D)` to mean 0 and biased variance 1 per row and channel, without
/// parameters.
///
/// Statistics are over real tokens; `padding` `(B, T)` is true at padding.
pub fn instance_norm(x: &Tensor, padding: Option<&Tensor>, eps: f64) -> Tensor {
    // Sums over tokens: LibTorch's variance over any but the last dimension is five times slower.
    let sum = |x: &Tensor| x.sum_dim_intlist(&[1_i64][..], true, Kind::Float); // (B, 1, D)
    let keep = padding_to_float(padding, x.kind()); // (B, T, 1)
    let real = |x: &Tensor| keep.as_ref().map_or_else(|| x.shallow_clone(), |keep| x * keep);
    let count = keep.as_ref().map_or_else(|| Tensor::from(x.size()[1] as f32), sum); // (B, 1, 1)
    let centred = real(&(x - sum(&real(x)) / &count));
    let var = sum(&centred.square()) / count;
    centred * (var + eps).rsqrt()
}

/// A 1-D convolution over `(B, C, L)` that preserves the length.
#[derive(Debug)]
pub struct Conv1d {
    weight: Tensor,
    bias: Tensor,
    padding: i64,
    groups: i64,
}

/// Sizes of a [`Conv1d`].
#[derive(Clone, Copy, Debug)]
pub struct Conv1dShape {
    /// Input channels.
    pub in_dim: i64,
    /// Output channels.
    pub out_dim: i64,
    /// Kernel size.
    pub kernel: i64,
    /// Number of channel groups.
    pub groups: i64,
}

impl Conv1d {
    /// Creates a convolution with bias, padded by `kernel / 2` on both sides; the extra output of
    /// an even kernel is cut.
    pub fn same(path: &nn::Path, shape: Conv1dShape, init: Init) -> Self {
        let Conv1dShape { in_dim, out_dim, kernel, groups } = shape;
        let fan_in = in_dim / groups * kernel;
        let size = [out_dim, in_dim / groups, kernel];
        Self {
            weight: init.weight(path, &size, fan_in),
            bias: path.var("bias", &[out_dim], init.bias(fan_in)),
            padding: kernel / 2,
            groups,
        }
    }

    /// Maps `(B, C_in, L)` to `(B, C_out, L)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let len = x.size()[2];
        let y = x.conv1d(&self.weight, Some(&self.bias), 1, self.padding, 1, self.groups);
        if y.size()[2] > len { y.narrow(2, 0, len) } else { y }
    }
}

/// A 2-D convolution over a grid of tokens that preserves its size.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    padding: i64,
    groups: i64,
}

impl Conv2d {
    /// Creates a convolution with bias and a square kernel, padded as in [`Conv1d::same`].
    pub fn same(path: &nn::Path, shape: Conv1dShape, init: Init) -> Self {
        let Conv1dShape { in_dim, out_dim, kernel, groups } = shape;
        let fan_in = in_dim / groups * kernel * kernel;
        let size = [out_dim, in_dim / groups, kernel, kernel];
        Self {
            weight: init.weight(path, &size, fan_in),
            bias: path.var("bias", &[out_dim], init.bias(fan_in)),
            padding: kernel / 2,
            groups,
        }
    }

    /// Maps `(B, h, w, C_in)` to `(B, h, w, C_out)`.
    ///
    /// Channels are last in memory, so that the layer norms around the convolution run along rows
    /// without transposing.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (height, width) = (x.size()[1], x.size()[2]);
        let (padding, groups) = ([self.padding; 2], self.groups);
        let x = x.permute([0, 3, 1, 2]); // (B, C, h, w), a view
        let y = x.conv2d(&self.weight, Some(&self.bias), [1, 1], padding, [1, 1], groups);
        // Narrow only if needed: the gradient of a narrowed tensor is copied into one of zeros.
        let y = match y.size()[2] > height {
            true => y.narrow(2, 0, height).narrow(3, 0, width),
            false => y,
        };
        y.permute([0, 2, 3, 1])
    }
}

/// Convolves `x` `(B, L, C_in)` over time with `weight` `(C_out, C_in, k)`, without bias or
/// padding.
///
/// Returns `(B, (L − k) / stride + 1, C_out)`; `L` is at least `k`.
pub fn time_conv(x: &Tensor, weight: &Tensor, stride: i64) -> Tensor {
    expect_torch(data2vec_torch_ext::conv1d_channels_last(x, weight, stride))
}

/// Applies a convolution over time, a layer norm without parameters and GELU to `x` `(B, T, C)`.
///
/// The positional encoder and the 1-D decoders are stacks of such blocks. Padded tokens (`keep`
/// `(B, T, 1)` is 0) are zeroed before each convolution, so that outputs do not depend on padding.
pub fn conv_block(x: &Tensor, conv: &Conv1d, keep: Option<&Tensor>) -> Tensor {
    let x = match keep {
        Some(keep) => x * keep, // (B, T, C) · (B, T, 1)
        None => x.shallow_clone(),
    };
    let y = conv.forward(&x.transpose(1, 2)).transpose(1, 2); // (B, T, C)
    norm_gelu(&y)
}

/// Applies a layer norm without parameters over the last dimension, then GELU.
pub(crate) fn norm_gelu(x: &Tensor) -> Tensor {
    expect_torch(data2vec_torch_ext::norm_gelu(x, None, CONV_NORM_EPS))
}

/// Epsilon of the layer norms in convolution stacks, the same in all models of the reference.
pub const CONV_NORM_EPS: f64 = 1e-5;

/// Converts a padding mask `(B, T)` to a factor `(B, T, 1)`: 0 at padding, else 1.
pub fn padding_to_float(padding: Option<&Tensor>, kind: Kind) -> Option<Tensor> {
    padding.map(|p| p.logical_not().to_kind(kind).unsqueeze(-1))
}

/// Unwraps the result of a LibTorch operation.
///
/// # Panics
/// If the operation failed, as the methods of `tch` do. Shapes have been checked on input, so a
/// failure here is a bug or a lack of memory.
pub(crate) fn expect_torch<T>(result: Result<T, TchError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Sets values to zero with probability `p` and divides the others by 1 − p, in training only.
pub fn dropout(x: &Tensor, p: f64, train: bool) -> Tensor {
    if train && p > 0.0 {
        expect_torch(data2vec_torch_ext::dropout(x, p))
    } else {
        x.shallow_clone()
    }
}
