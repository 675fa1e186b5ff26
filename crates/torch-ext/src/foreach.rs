//! Fused operations over lists of parameters, and column moments of a matrix.

use std::ffi::{c_char, c_int};

use tch::{Kind, TchError, Tensor};

use crate::shim::{Raw, call_tensor, check, raw};

unsafe extern "C" {
    fn d2v_ema_update(
        averaged: *mut Raw,
        source: *mut Raw,
        count: usize,
        decay: f64,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_zero_grad(params: *mut Raw, count: usize, error: *mut *mut c_char) -> c_int;
    fn d2v_total_norm(tensors: *mut Raw, count: usize, out: Raw, error: *mut *mut c_char) -> c_int;
    fn d2v_moments(x: Raw, out: Raw, error: *mut *mut c_char) -> c_int;
    fn d2v_fused_adamw(
        params: *mut Raw,
        grads: *mut Raw,
        exp_avgs: *mut Raw,
        exp_avg_sqs: *mut Raw,
        steps: *mut Raw,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        divisor: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
}

fn pointers(tensors: &[Tensor]) -> Vec<Raw> {
    tensors.iter().map(raw).collect()
}

fn same_length(lists: &[&[Tensor]]) -> Result<(), TchError> {
    let lengths: Vec<usize> = lists.iter().map(|list| list.len()).collect();
    match lengths.windows(2).all(|pair| pair[0] == pair[1]) {
        true => Ok(()),
        false => Err(TchError::Shape(format!("lists of tensors differ in length: {lengths:?}"))),
    }
}

/// Updates an exponential moving average in place, without gradients.
///
/// `averaged[i] ← decay · averaged[i] + (1 − decay) · source[i]`.
///
/// # Errors
/// If the lists differ in length, or LibTorch's error.
pub fn ema_update(averaged: &[Tensor], source: &[Tensor], decay: f64) -> Result<(), TchError> {
    same_length(&[averaged, source])?;
    if averaged.is_empty() {
        return Ok(());
    }
    let (mut to, mut from) = (pointers(averaged), pointers(source));
    // SAFETY: both arrays hold `to.len()` pointers to tensors that the slices keep alive.
    check(|error| unsafe {
        d2v_ema_update(to.as_mut_ptr(), from.as_mut_ptr(), to.len(), decay, error)
    })
}

/// Sets the gradients of `params` to undefined, as PyTorch's `zero_grad(set_to_none=True)`.
///
/// Frees their memory; the next backward pass assigns gradients instead of adding to zeros.
///
/// # Errors
/// LibTorch's error.
pub fn zero_grad(params: &[Tensor]) -> Result<(), TchError> {
    let mut list = pointers(params);
    // SAFETY: as in `ema_update`.
    check(|error| unsafe { d2v_zero_grad(list.as_mut_ptr(), list.len(), error) })
}

/// Returns the L2 norm over all values of all tensors, as a scalar tensor. Does not synchronise
/// with the device.
///
/// # Errors
/// If the list is empty, or LibTorch's error.
pub fn total_norm(tensors: &[Tensor]) -> Result<Tensor, TchError> {
    if tensors.is_empty() {
        return Err(TchError::Shape("total_norm: the list of tensors is empty".into()));
    }
    let mut list = pointers(tensors);
    // SAFETY: as in `ema_update`; `out` is a live tensor.
    call_tensor(|out, error| unsafe { d2v_total_norm(list.as_mut_ptr(), list.len(), out, error) })
}

/// Returns N, the column sums and the column sums of squares of `x` `(N, D)`, as f64 `(1 + 2·D)`.
///
/// Does not synchronise with the device.
///
/// # Errors
/// If `x` does not have two dimensions, or LibTorch's error.
pub fn moments(x: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: live tensors.
    call_tensor(|out, error| unsafe { d2v_moments(raw(x), out, error) })
}

/// Settings of one [`fused_adamw`] step.
#[derive(Clone, Copy, Debug)]
pub struct FusedAdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the square root of the bias-corrected second moment.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by `lr`.
    pub weight_decay: f64,
    /// Divides the gradients in place before the update.
    pub divisor: f64,
}

/// Takes one AdamW step (Loshchilov and Hutter 2019) over lists of tensors, in place.
///
/// `step` counts from 1.
///
/// # Errors
/// If the lists differ in length, or LibTorch's error.
pub fn fused_adamw(
    settings: FusedAdamW,
    step: u64,
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
) -> Result<(), TchError> {
    same_length(&[params, grads, exp_avgs, exp_avg_sqs])?;
    let Some(first) = params.first() else { return Ok(()) };
    let [mut p, mut g, mut m, mut v] = [params, grads, exp_avgs, exp_avg_sqs].map(pointers);
    let FusedAdamW { lr, betas: [beta1, beta2], eps, weight_decay, divisor } = settings;
    let [step, divisor] =
        [step as f64, divisor].map(|x| Tensor::full([], x, (Kind::Float, first.device())));
    // The kernel expects one step tensor per parameter; all parameters here share one step count.
    let mut s = vec![raw(&step); p.len()];
    // SAFETY: all five arrays hold `p.len()` pointers to tensors that outlive the call, as
    // `divisor` does.
    check(|error| unsafe {
        d2v_fused_adamw(
            p.as_mut_ptr(),
            g.as_mut_ptr(),
            m.as_mut_ptr(),
            v.as_mut_ptr(),
            s.as_mut_ptr(),
            p.len(),
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
            raw(&divisor),
            error,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn randn(count: usize) -> Vec<Tensor> {
        (0..count).map(|i| Tensor::randn([3, i as i64 + 1], (Kind::Float, Device::Cpu))).collect()
    }

    fn close(a: &Tensor, b: &Tensor) -> bool {
        (a - b).abs().max().double_value(&[]) < 1e-6
    }

    #[test]
    fn ema_and_norm_match_per_tensor_computation() {
        let (a, b) = (randn(4), randn(4));
        let before: Vec<Tensor> = a.iter().map(Tensor::copy).collect();
        ema_update(&a, &b, 0.9).expect("lists of equal length");
        for i in 0..4 {
            assert!(close(&a[i], &(&before[i] * 0.9 + &b[i] * 0.1)));
        }
        let flat: Vec<Tensor> = b.iter().map(|t| t.flatten(0, -1)).collect();
        let norm = Tensor::cat(&flat, 0).norm();
        assert!(close(&total_norm(&b).expect("not empty"), &norm));
    }

    #[test]
    fn moments_match_hand_computed_values() {
        // Column variance far below the squared mean, in both memory layouts.
        let x = Tensor::from_slice(&[1.0_f32, 1024.5, -2.0, 1024.0, 4.0, 1023.5]).reshape([3, 2]);
        let expected =
            [3.0, 3.0, 3072.0, 21.0, 1024.5 * 1024.5 + 1024.0 * 1024.0 + 1023.5 * 1023.5];
        let transposed = x.transpose(0, 1).contiguous().transpose(0, 1);
        for x in [x, transposed] {
            let found: Vec<f64> = (&moments(&x).expect("a matrix")).try_into().expect("numbers");
            assert_eq!(found, expected);
        }
        let ones = Tensor::ones([5, 3], (Kind::BFloat16, Device::Cpu));
        let found: Vec<f64> = (&moments(&ones).expect("a matrix")).try_into().expect("numbers");
        assert_eq!(found, [5.0; 7]);
        assert!(moments(&ones.get(0)).is_err());
    }

    #[test]
    fn first_adamw_step_matches_hand_computation() {
        // |m̂| = g and √v̂ = |g| at the first step: p·(1 − lr·wd) − lr·g/(|g| + eps).
        let (p, g) = (Tensor::from_slice(&[1.0_f32, -2.0]), Tensor::from_slice(&[0.5_f32, -1e-3]));
        let zeros = || vec![Tensor::zeros([2], (Kind::Float, Device::Cpu))];
        let (betas, eps, weight_decay) = ([0.9, 0.98], 1e-3, 0.5);
        let settings = FusedAdamW { lr: 0.1, betas, eps, weight_decay, divisor: 4.0 };
        let (p, g) = (vec![p], vec![g * 4.0]);
        fused_adamw(settings, 1, &p, &g, &zeros(), &zeros()).expect("four lists of one");
        let expected = [0.95 - 0.1 * 0.5 / 0.501, -1.9 + 0.1 * 0.5];
        assert!(close(&p[0], &Tensor::from_slice(&expected.map(|v| v as f32))));
    }

    #[test]
    fn zero_grad_makes_gradients_undefined() {
        let x: Vec<Tensor> = randn(3).iter().map(|x| x.set_requires_grad(true)).collect();
        let backward = || (&x[0] * 2.0 + &x[1]).sum(Kind::Float).backward();
        backward();
        zero_grad(&x).expect("live tensors");
        assert!(x.iter().all(|x| !x.grad().defined()));
        backward();
        backward();
        // Two backward passes; the first tensor's single column is broadcast over two columns.
        assert_eq!([&x[0], &x[1]].map(|x| x.grad().max().double_value(&[])), [8.0, 2.0]);
        assert!(!x[2].grad().defined());
    }

    #[test]
    fn errors_have_no_cpp_backtrace() {
        let error = ema_update(&randn(2), &randn(3), 0.9).unwrap_err();
        assert!(error.to_string().contains("[2, 3]"));
        let (a, b) = (randn(1), vec![Tensor::zeros([5, 7], (Kind::Float, Device::Cpu))]);
        let error = ema_update(&a, &b, 0.9).unwrap_err().to_string();
        assert!(error.contains("size") && !error.contains("frame #"), "{error}");
    }
}
