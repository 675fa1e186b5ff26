//! Layers that save less memory for the backward pass than LibTorch's, or draw random numbers on
//! all threads. All are differentiable once; double backward is not supported.

use std::ffi::{c_char, c_int};

use tch::{Device, TchError, Tensor};

use crate::shim::{Raw, call_tensor, device_type, raw};

unsafe extern "C" {
    fn d2v_dropout(x: Raw, p: f64, out: Raw, error: *mut *mut c_char) -> c_int;
    fn d2v_residual_dropout(
        residual: Raw,
        x: Raw,
        p: f64,
        out: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_noise(
        sizes: *const i64,
        dims: usize,
        device: c_int,
        index: c_int,
        std: f64,
        out: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_attention(
        qkv: Raw,
        bias: Raw,
        heads: i64,
        p: f64,
        out: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_norm_gelu(
        x: Raw,
        weight: Raw,
        bias: Raw,
        eps: f64,
        out: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_gelu_linear(x: Raw, weight: Raw, bias: Raw, out: Raw, error: *mut *mut c_char) -> c_int;
    fn d2v_conv1d_channels_last(
        x: Raw,
        weight: Raw,
        stride: i64,
        out: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
}

fn check_dropout(p: f64) -> Result<(), TchError> {
    match (0.0..1.0).contains(&p) {
        true => Ok(()),
        false => Err(TchError::Shape(format!("dropout must be in [0, 1), not {p}"))),
    }
}

/// Zeroes each value of `x` with probability `p` and divides the others by 1 − p.
///
/// On CPUs no mask is stored: the backward pass draws the same random numbers again.
///
/// # Errors
/// [`TchError::Shape`] if `p` is not in [0, 1); otherwise LibTorch's error.
pub fn dropout(x: &Tensor, p: f64) -> Result<Tensor, TchError> {
    check_dropout(p)?;
    if p == 0.0 {
        return Ok(x.shallow_clone());
    }
    // SAFETY: live tensors.
    call_tensor(|out, error| unsafe { d2v_dropout(raw(x), p, out, error) })
}

/// Returns `residual + dropout(x, p)` in the kind of `residual`, in one pass over memory.
///
/// # Errors
/// As for [`dropout`], or if the shapes differ.
pub fn residual_dropout(residual: &Tensor, x: &Tensor, p: f64) -> Result<Tensor, TchError> {
    check_dropout(p)?;
    // SAFETY: live tensors.
    call_tensor(|out, error| unsafe { d2v_residual_dropout(raw(residual), raw(x), p, out, error) })
}

/// Returns an f32 tensor of independent samples from N(0, `std`²).
///
/// # Errors
/// If the device is neither the CPU nor CUDA, or LibTorch's error.
pub fn noise(size: &[i64], std: f64, device: Device) -> Result<Tensor, TchError> {
    let kind = device_type(device).ok_or_else(|| {
        TchError::Torch(format!("noise: {device:?} is not supported; use CPU or CUDA"))
    })?;
    let index = if let Device::Cuda(n) = device { n as c_int } else { -1 };
    // SAFETY: `size` outlives the call; `out` is a live tensor.
    call_tensor(|out, error| unsafe {
        d2v_noise(size.as_ptr(), size.len(), kind, index, std, out, error)
    })
}

/// Computes multi-head self-attention on the CPU: `qkv` `(B, T, 3·D)` to `(B, T, D)`.
///
/// The last dimension of `qkv` holds the queries, the keys and the values, each with its `heads`
/// heads concatenated. `bias` is added to the scores `q·k / √d`; it must broadcast to `(B, H, T,
/// T)` and receives gradients too. Attention weights are dropped with probability `p`. Neither
/// scores nor masks are stored: the backward pass recomputes them.
///
/// # Errors
/// If `qkv` is not on the CPU, is neither f32 nor bf16, or the shapes do not match.
pub fn attention(
    qkv: &Tensor,
    bias: Option<&Tensor>,
    heads: i64,
    p: f64,
) -> Result<Tensor, TchError> {
    check_dropout(p)?;
    if heads < 1 {
        return Err(TchError::Shape(format!("attention: heads must be at least 1, not {heads}")));
    }
    let bias = bias.map_or(std::ptr::null_mut(), raw);
    // SAFETY: live tensors; `bias` is null or points to one.
    call_tensor(|out, error| unsafe { d2v_attention(raw(qkv), bias, heads, p, out, error) })
}

/// Returns `gelu(layer_norm(x))`, normalised over the last dimension.
///
/// `affine` is the norm's weight and bias, if it has any. On CPUs only `x` is saved for the
/// backward pass, and memory is read and written once.
///
/// # Errors
/// If the shapes do not match.
pub fn norm_gelu(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<Tensor, TchError> {
    let null = std::ptr::null_mut();
    let (weight, bias) = affine.map_or((null, null), |(weight, bias)| (raw(weight), raw(bias)));
    // SAFETY: live tensors; `weight` and `bias` are null or point to one.
    call_tensor(|out, error| unsafe { d2v_norm_gelu(raw(x), weight, bias, eps, out, error) })
}

/// Returns `linear(gelu(x))`, computed in the kind of `x`; saves only `x` for the backward pass.
///
/// # Errors
/// If the shapes do not match.
pub fn gelu_linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: live tensors.
    call_tensor(|out, error| unsafe { d2v_gelu_linear(raw(x), raw(weight), raw(bias), out, error) })
}

/// Convolves `x` `(B, L, C_in)` over time with `weight` `(C_out, C_in, k)`, without bias or
/// padding.
///
/// Returns `(B, (L − k) / stride + 1, C_out)`. With channels last this is a single matrix product.
///
/// # Errors
/// If the shapes do not match, or `x` is shorter than the kernel.
pub fn conv1d_channels_last(x: &Tensor, weight: &Tensor, stride: i64) -> Result<Tensor, TchError> {
    // SAFETY: live tensors.
    call_tensor(|out, error| unsafe {
        d2v_conv1d_channels_last(raw(x), raw(weight), stride, out, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn max_abs_diff(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.size(), b.size());
        (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).abs().max().double_value(&[])
    }

    fn leaf(size: &[i64]) -> Tensor {
        Tensor::randn(size, F32).set_requires_grad(true)
    }

    /// Gradients of `inputs` for the loss `(f() · weight).sum()`.
    fn grads(inputs: &[&Tensor], weight: &Tensor, f: impl Fn() -> Tensor) -> Vec<Tensor> {
        for input in inputs {
            input.shallow_clone().zero_grad();
        }
        (f() * weight).sum(Kind::Float).backward();
        inputs.iter().map(|x| x.grad().copy()).collect()
    }

    fn reference_attention(qkv: &Tensor, bias: Option<&Tensor>, heads: i64) -> Tensor {
        let (b, t, d) = qkv.size3().expect("three dimensions");
        let (d, width) = (d / 3, d / 3 / heads);
        let qkv = qkv.reshape([b, t, 3, heads, width]).permute([2, 0, 3, 1, 4]);
        let scores = qkv.get(0).matmul(&qkv.get(1).transpose(-2, -1)) / (width as f64).sqrt();
        let scores = bias.map_or_else(|| scores.shallow_clone(), |bias| &scores + bias);
        scores.softmax(-1, Kind::Float).matmul(&qkv.get(2)).transpose(1, 2).reshape([b, t, d])
    }

    #[test]
    fn attention_matches_reference_for_every_bias_shape() {
        tch::manual_seed(1);
        // 700 tokens are processed one head at a time, 7 tokens all heads at once.
        for (b, t, heads, width) in [(3, 7, 4, 5), (1, 700, 2, 16)] {
            let qkv = leaf(&[b, t, 3 * heads * width]);
            let weight = Tensor::randn([b, t, heads * width], F32);
            for bias in [
                None,
                Some(leaf(&[1, heads, t, t])),
                Some(leaf(&[b, heads, t, t])),
                Some(leaf(&[b, 1, 1, t])),
            ] {
                let bias = bias.as_ref();
                let inputs: Vec<&Tensor> = [Some(&qkv), bias].into_iter().flatten().collect();
                let ours = || attention(&qkv, bias, heads, 0.0).expect("shapes match");
                let reference = || reference_attention(&qkv, bias, heads);
                assert!(max_abs_diff(&ours(), &reference()) < 2e-6);
                let (a, b) = (grads(&inputs, &weight, ours), grads(&inputs, &weight, reference));
                for (a, b) in a.iter().zip(&b) {
                    assert!(max_abs_diff(a, b) < 2e-5, "{:?}: {}", a.size(), max_abs_diff(a, b));
                }
            }
        }
    }

    #[test]
    fn attention_ignores_masked_keys_and_supports_bf16() {
        tch::manual_seed(2);
        let qkv = Tensor::randn([2, 6, 3 * 8], F32);
        let bias = Tensor::zeros([2, 1, 1, 6], F32);
        let _ = bias.narrow(3, 4, 2).fill_(f64::NEG_INFINITY);
        let all = attention(&qkv, Some(&bias), 2, 0.0).expect("shapes match");
        let short = attention(&qkv.narrow(1, 0, 4), None, 2, 0.0).expect("shapes match");
        assert!(max_abs_diff(&all.narrow(1, 0, 4), &short) < 1e-6);
        let half = attention(&qkv.to_kind(Kind::BFloat16), Some(&bias), 2, 0.0).expect("bf16");
        assert_eq!(half.kind(), Kind::BFloat16);
        assert!(max_abs_diff(&half, &all) < 0.03);
        assert!(attention(&qkv, None, 5, 0.0).is_err());
        assert!(attention(&qkv, None, 2, 1.0).is_err());
    }

    #[test]
    fn attention_dropout_uses_the_same_mask_in_backward() {
        // With values of 1 and equal scores, each output is the mean of the kept weights over 1 −
        // p, and the gradient of a value sums the weights of the queries that kept it.
        let (t, p) = (64, 0.3);
        let mut qkv = Tensor::zeros([2, t, 3 * 4], F32);
        let _ = qkv.narrow(2, 8, 4).fill_(1.0);
        qkv = qkv.set_requires_grad(true);
        tch::manual_seed(5);
        let y = attention(&qkv, None, 2, p).expect("shapes match");
        let kept = y.mean(Kind::Float).double_value(&[]);
        assert!((kept - 1.0).abs() < 0.03, "{kept}");
        y.sum(Kind::Float).backward();
        let received = qkv.grad().narrow(2, 8, 4).sum(Kind::Float).double_value(&[]);
        assert!((received - y.sum(Kind::Float).double_value(&[])).abs() < 1e-2);
        tch::manual_seed(5);
        assert_eq!(attention(&qkv, None, 2, p).expect("shapes match"), y);
        assert_ne!(attention(&qkv, None, 2, p).expect("shapes match"), y);
    }

    #[test]
    fn dropout_keeps_the_mean_and_uses_the_same_mask_in_backward() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let x = Tensor::ones([300, 500], (kind, Device::Cpu)).set_requires_grad(true);
            tch::manual_seed(3);
            let y = dropout(&x, 0.25).expect("valid p");
            let share = y.eq(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            assert!((share - 0.25).abs() < 0.006, "{share}"); // 5 standard deviations
            assert!(max_abs_diff(&y.max(), &Tensor::from(1.0_f32 / 0.75)) < 0.01);
            y.to_kind(Kind::Float).sum(Kind::Float).backward();
            assert_eq!(max_abs_diff(&x.grad(), &y), 0.0);

            let residual = Tensor::full([300, 500], 2.0, F32).set_requires_grad(true);
            x.shallow_clone().zero_grad();
            tch::manual_seed(3);
            let z = residual_dropout(&residual, &x, 0.25).expect("valid p");
            assert_eq!(z.kind(), Kind::Float);
            assert!(max_abs_diff(&z, &(y.to_kind(Kind::Float) + 2.0)) < 0.01);
            z.sum(Kind::Float).backward();
            assert_eq!(max_abs_diff(&x.grad(), &y), 0.0);
            assert_eq!(residual.grad().min().double_value(&[]), 1.0);
        }
        assert!(dropout(&Tensor::zeros([1], F32), 1.0).is_err());
    }

    #[test]
    fn noise_is_normal_and_reproducible_from_the_seed() {
        tch::manual_seed(4);
        let x = noise(&[3, 100_001], 0.5, Device::Cpu).expect("a size") * 2.0;
        let moment = |n: i32| x.pow_tensor_scalar(n as i64).mean(Kind::Double).double_value(&[]);
        for (n, expected, tolerance) in
            [(1, 0.0, 0.01), (2, 1.0, 0.015), (3, 0.0, 0.04), (4, 3.0, 0.1)]
        {
            assert!((moment(n) - expected).abs() < tolerance, "moment {n}: {}", moment(n));
        }
        let row = |i: i64| x.get(i);
        assert!((row(0) * row(1)).mean(Kind::Double).double_value(&[]).abs() < 0.02);
        tch::manual_seed(4);
        assert_eq!(noise(&[3, 100_001], 0.5, Device::Cpu).expect("a size") * 2.0, x);
    }

    #[test]
    fn norm_gelu_matches_layer_norm_and_gelu() {
        tch::manual_seed(7);
        // 300 rows of 512 make three chunks; a transposed input is not contiguous.
        for size in [[2, 150, 512], [3, 2, 5]] {
            let (x, w, b) = (leaf(&size), leaf(&size[2..]), leaf(&size[2..]));
            let transposed = x.transpose(0, 1);
            let weight = Tensor::randn(transposed.size(), F32);
            for affine in [None, Some((&w, &b))] {
                let ours = || norm_gelu(&transposed, affine, 1e-5).expect("shapes match");
                let reference = || {
                    let (w, b) = affine.unzip();
                    transposed.layer_norm(&size[2..], w, b, 1e-5, true).gelu("none")
                };
                assert!(max_abs_diff(&ours(), &reference()) < 1e-5);
                let inputs: &[&Tensor] = if affine.is_some() { &[&x, &w, &b] } else { &[&x] };
                for (a, b) in
                    grads(inputs, &weight, ours).iter().zip(&grads(inputs, &weight, reference))
                {
                    assert!(max_abs_diff(a, b) < 1e-4, "{:?}: {}", a.size(), max_abs_diff(a, b));
                }
                let half = x.to_kind(Kind::BFloat16);
                let half = norm_gelu(&half, affine, 1e-5).expect("bf16").transpose(0, 1);
                assert_eq!(half.kind(), Kind::BFloat16);
                assert!(max_abs_diff(&half, &ours()) < 0.06);
            }
        }
        assert!(norm_gelu(&leaf(&[2, 3]), Some((&leaf(&[4]), &leaf(&[4]))), 1e-5).is_err());
    }

    #[test]
    fn gelu_linear_and_conv1d_match_libtorch() {
        tch::manual_seed(6);
        let (x, w, b) = (leaf(&[2, 5, 6]), leaf(&[3, 6]), leaf(&[3]));
        let weight = Tensor::randn([2, 5, 3], F32);
        let ours = || gelu_linear(&x, &w, &b).expect("shapes match");
        let reference = || x.gelu("none").linear(&w, Some(&b));
        assert!(max_abs_diff(&ours(), &reference()) < 1e-6);
        let all = [&x, &w, &b];
        for (a, b) in grads(&all, &weight, ours).iter().zip(&grads(&all, &weight, reference)) {
            assert!(max_abs_diff(a, b) < 1e-5);
        }
        for (len, kernel, stride) in [(23, 3, 2), (20, 10, 5), (9, 2, 2), (4, 4, 1)] {
            let (x, w) = (leaf(&[2, len, 4]), leaf(&[6, 4, kernel]));
            let weight = Tensor::randn([2, (len - kernel) / stride + 1, 6], F32);
            let ours = || conv1d_channels_last(&x, &w, stride).expect("shapes match");
            let reference =
                || x.transpose(1, 2).conv1d(&w, None::<Tensor>, stride, 0, 1, 1).transpose(1, 2);
            assert!(max_abs_diff(&ours(), &reference()) < 1e-5);
            for (a, b) in
                grads(&[&x, &w], &weight, ours).iter().zip(&grads(&[&x, &w], &weight, reference))
            {
                assert!(max_abs_diff(a, b) < 2e-5);
            }
        }
        assert!(conv1d_channels_last(&leaf(&[1, 2, 4]), &leaf(&[6, 4, 3]), 1).is_err());
    }
}
