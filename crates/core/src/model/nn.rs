//! The few layers that everything is made of, with the initialisation data2vec uses.

use tch::{Kind, TchError, Tensor, nn};

/// How a layer's weights start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Weights N(0, 0.02²), biases 0: BERT's, used in nearly all transformers here.
    Bert,
    /// Weights N(0, 0.02²) cut at ±0.02, biases 0: BEiT's.
    Beit,
    /// PyTorch's default: weights and biases U(±1/√fan_in).
    Torch,
    /// Weights U(±√(6 / (fan_in + fan_out))) (Glorot and Bengio 2010), biases as PyTorch's default.
    Xavier,
}

impl Init {
    /// A new variable `path / "weight"` of the given size, whose first dimension is what comes out.
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

/// A new variable of draws from N(0, 0.02²) that fell between ±0.02, as BEiT starts.
pub fn trunc_normal(path: &nn::Path, name: &str, size: &[i64]) -> Tensor {
    const STD: f64 = 0.02;
    // Share of a normal distribution within one standard deviation, erf(1/√2): draws from it go
    // through the inverse distribution function.
    const WITHIN: f64 = 0.682_689_492_137_086;
    let var = path.var(name, size, uniform(WITHIN));
    let _ = tch::no_grad(|| {
        var.shallow_clone().erfinv_().g_mul_scalar_(STD * std::f64::consts::SQRT_2)
    });
    var
}

/// An affine map of the last dimension.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// The same variables.
impl Clone for Linear {
    fn clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }
}

impl Linear {
    /// `in_dim` to `out_dim`, with bias.
    pub fn new(path: &nn::Path, in_dim: i64, out_dim: i64, init: Init) -> Self {
        Self {
            weight: init.weight(path, &[out_dim, in_dim], in_dim),
            bias: path.var("bias", &[out_dim], init.bias(in_dim)),
        }
    }

    /// The same with its initial weights multiplied by `factor`.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        let _ = tch::no_grad(|| self.weight.shallow_clone().g_mul_scalar_(factor));
        self
    }

    /// The same with biases that start at 0.
    pub(crate) fn without_bias(self) -> Self {
        let _ = tch::no_grad(|| self.bias.shallow_clone().zero_());
        self
    }

    /// Keeps its variables in `kind` from now on.
    pub(crate) fn convert(&mut self, kind: Kind) {
        self.weight = self.weight.to_kind(kind);
        self.bias = self.bias.to_kind(kind);
    }

    /// `(…, in)` to `(…, out)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    /// The same of `gelu(x)`, which is made again for the backward pass rather than kept.
    pub(crate) fn forward_gelu(&self, x: &Tensor) -> Tensor {
        done(data2vec_torch_ext::gelu_linear(x, &self.weight, &self.bias))
    }
}

/// Layer norm over the last dimension, with learned scale and shift.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

/// The same variables.
impl Clone for LayerNorm {
    fn clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }
}

/// A learned factor of each channel (LayerScale; Touvron et al. 2021).
#[derive(Debug)]
pub(crate) struct LayerScale(Tensor);

impl LayerScale {
    /// Of `dim` channels, `value` each.
    pub(crate) fn new(path: &nn::Path, name: &str, dim: i64, value: f64) -> Self {
        Self(path.var(name, &[dim], nn::Init::Const(value)))
    }

    /// `(…, dim)` to the same shape, all `times` as large.
    pub(crate) fn forward(&self, x: &Tensor, times: f64) -> Tensor {
        match times {
            1.0 => x * &self.0,
            _ => x * (&self.0 * times),
        }
    }
}

/// The same variables.
impl Clone for LayerScale {
    fn clone(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

impl LayerNorm {
    /// Over `dim` channels.
    pub fn new(path: &nn::Path, dim: i64, eps: f64) -> Self {
        Self {
            weight: path.var("weight", &[dim], nn::Init::Const(1.0)),
            bias: path.var("bias", &[dim], nn::Init::Const(0.0)),
            eps,
        }
    }

    /// `(…, dim)` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// The same with GELU of it; the backward pass makes what lies between again.
    pub fn forward_gelu(&self, x: &Tensor) -> Tensor {
        done(data2vec_torch_ext::norm_gelu(x, Some((&self.weight, &self.bias)), self.eps))
    }
}

/// Layer norm over the last dimension without parameters.
pub fn layer_norm_no_affine(x: &Tensor, eps: f64) -> Tensor {
    let dim = x.size().last().copied().unwrap_or(1);
    x.layer_norm([dim], None::<Tensor>, None::<Tensor>, eps, true)
}

/// `x` `(B, T, D)`: mean 0 and biased variance 1 for each row and channel over real tokens,
/// without parameters. `padding` `(B, T)` is true at padding.
pub fn instance_norm(x: &Tensor, padding: Option<&Tensor>, eps: f64) -> Tensor {
    // Sums of rows: LibTorch's own variance over another dimension than the last takes five times as long.
    let sum = |x: &Tensor| x.sum_dim_intlist(&[1_i64][..], true, Kind::Float); // (B, 1, D)
    let keep = padding_to_float(padding, x.kind()); // (B, T, 1)
    let real = |x: &Tensor| keep.as_ref().map_or_else(|| x.shallow_clone(), |keep| x * keep);
    let count = keep.as_ref().map_or_else(|| Tensor::from(x.size()[1] as f32), sum); // (B, 1, 1)
    let centred = real(&(x - sum(&real(x)) / &count));
    let var = sum(&centred.square()) / count;
    centred * (var + eps).rsqrt()
}

/// A one-dimensional convolution over `(B, C, L)` that keeps the length.
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
    /// Channels in.
    pub in_dim: i64,
    /// Channels out.
    pub out_dim: i64,
    /// Width of the kernel.
    pub kernel: i64,
    /// Groups of channels that do not see each other.
    pub groups: i64,
}

impl Conv1d {
    /// With bias, padded by `kernel / 2` on both sides: length kept, an even kernel's surplus is cut.
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

    /// `(B, C_in, L)` to `(B, C_out, L)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let len = x.size()[2];
        let y = x.conv1d(&self.weight, Some(&self.bias), 1, self.padding, 1, self.groups);
        if y.size()[2] > len { y.narrow(2, 0, len) } else { y }
    }
}

/// A two-dimensional convolution over a grid of tokens that keeps its size.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    padding: i64,
    groups: i64,
}

impl Conv2d {
    /// With bias and a square kernel, padded as [`Conv1d::same`].
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

    /// `(B, h, w, C_in)` to `(B, h, w, C_out)`. With channels last in memory, the layer norms around
    /// it run along rows, and nothing is transposed.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (height, width) = (x.size()[1], x.size()[2]);
        let (padding, groups) = ([self.padding; 2], self.groups);
        let x = x.permute([0, 3, 1, 2]); // (B, C, h, w), a view
        let y = x.conv2d(&self.weight, Some(&self.bias), [1, 1], padding, [1, 1], groups);
        // Where nothing is to be cut, nothing is: the gradient of a part is copied to a whole of zeros.
        let y = match y.size()[2] > height {
            true => y.narrow(2, 0, height).narrow(3, 0, width),
            false => y,
        };
        y.permute([0, 2, 3, 1])
    }
}

/// A convolution over time without bias or padding, of `x` `(B, L, C_in)` by `weight` `(C_out, C_in, k)`:
/// `(B, (L − k) / stride + 1, C_out)`. `L` is at least `k`.
pub fn time_conv(x: &Tensor, weight: &Tensor, stride: i64) -> Tensor {
    done(data2vec_torch_ext::window_linear(x, weight, stride))
}

/// Blocks of convolution, layer norm without parameters and GELU over time, as data2vec's positional
/// encoder and its 1-D decoders are built.
///
/// Padded tokens are set to zero before each convolution, so that a row's values do not depend on
/// how far its batch was padded.
pub fn conv_block(x: &Tensor, conv: &Conv1d, keep: Option<&Tensor>) -> Tensor {
    let x = match keep {
        Some(keep) => x * keep, // (B, T, C) · (B, T, 1)
        None => x.shallow_clone(),
    };
    let y = conv.forward(&x.transpose(1, 2)).transpose(1, 2); // (B, T, C)
    norm_gelu(&y)
}

/// GELU of a layer norm over the last dimension without parameters, as all stacks of convolutions have it.
pub(crate) fn norm_gelu(x: &Tensor) -> Tensor {
    done(data2vec_torch_ext::norm_gelu(x, None, CONV_NORM_EPS))
}

/// Epsilon of the layer norms in convolution stacks, in all of the reference's models.
pub const CONV_NORM_EPS: f64 = 1e-5;

/// `(B, T, 1)` float, 0 at padding, for multiplying; `None` when nothing is padded.
pub fn padding_to_float(padding: Option<&Tensor>, kind: Kind) -> Option<Tensor> {
    padding.map(|p| p.logical_not().to_kind(kind).unsqueeze(-1))
}

/// A layer's result. Shapes were checked at the border: failures are as exceptional as those of tch's own
/// methods, which panic.
pub(crate) fn done<T>(result: Result<T, TchError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Zeros with probability `p`, the rest divided by 1 − p; nothing unless in training.
pub fn dropout(x: &Tensor, p: f64, train: bool) -> Tensor {
    if train && p > 0.0 { done(data2vec_torch_ext::dropout(x, p)) } else { x.shallow_clone() }
}
