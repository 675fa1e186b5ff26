//! Operations over whole lists of parameters, and sums over whole matrices.

use std::ffi::{c_char, c_int};

use tch::{Kind, TchError, Tensor};

use crate::shim::{Raw, check, raw, returned};

unsafe extern "C" {
    fn d2v_ema_update(
        averaged: *mut Raw,
        source: *mut Raw,
        count: usize,
        decay: f64,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_forget_gradients(params: *mut Raw, count: usize, error: *mut *mut c_char) -> c_int;
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
        false => Err(TchError::Shape(format!("lists of tensors of lengths {lengths:?}"))),
    }
}

/// `averaged[i] ← decay · averaged[i] + (1 − decay) · source[i]`, in place and without gradients.
///
/// # Errors
/// If the lists differ in length or LibTorch refuses.
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

/// From now on these have no gradients. Their memory is free until the next backward pass, which adds to nothing.
///
/// # Errors
/// If LibTorch refuses.
pub fn forget_gradients(params: &[Tensor]) -> Result<(), TchError> {
    let mut list = pointers(params);
    // SAFETY: as above.
    check(|error| unsafe { d2v_forget_gradients(list.as_mut_ptr(), list.len(), error) })
}

/// Scalar tensor: the Euclidean norm over all values of all tensors. Nothing waits for the device.
///
/// # Errors
/// If the list is empty or LibTorch refuses.
pub fn total_norm(tensors: &[Tensor]) -> Result<Tensor, TchError> {
    if tensors.is_empty() {
        return Err(TchError::Shape("the norm of no tensors".into()));
    }
    let mut list = pointers(tensors);
    // SAFETY: as above; `out` is a live tensor.
    returned(|out, error| unsafe { d2v_total_norm(list.as_mut_ptr(), list.len(), out, error) })
}

/// `(1 + 2·D)` f64 of `x` `(N, D)`: N, the sums of its columns, and those of their squares. Nothing waits for the
/// device.
///
/// # Errors
/// If `x` has not two dimensions, or LibTorch refuses.
pub fn moments(x: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: live tensors.
    returned(|out, error| unsafe { d2v_moments(raw(x), out, error) })
}

/// Settings of one [`fused_adamw`] step.
#[derive(Clone, Copy, Debug)]
pub struct FusedAdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the bias-corrected root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by `lr`.
    pub weight_decay: f64,
    /// What gradients are divided by, in place.
    pub divisor: f64,
}

/// One step of AdamW (Loshchilov and Hutter 2019) over lists of tensors, in place.
///
/// `step` is the number of the step being taken, counted from 1.
///
/// # Errors
/// If the lists differ in length or LibTorch refuses.
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
    // The kernel wants a tensor for each parameter's count; here all have taken the same steps.
    let mut s = vec![raw(&step); p.len()];
    // SAFETY: all five arrays hold `p.len()` pointers to tensors that outlive the call, as `divisor` does.
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
    fn lists_agree_with_single_tensors() {
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
    fn moments_by_hand() {
        // Columns whose variance is far below the square of their mean, in both kinds and any layout.
        let x = Tensor::from_slice(&[1.0_f32, 1024.5, -2.0, 1024.0, 4.0, 1023.5]).reshape([3, 2]);
        let expected =
            [3.0, 3.0, 3072.0, 21.0, 1024.5 * 1024.5 + 1024.0 * 1024.0 + 1023.5 * 1023.5];
        let turned = x.transpose(0, 1).contiguous().transpose(0, 1);
        for x in [x, turned] {
            let found: Vec<f64> = (&moments(&x).expect("a matrix")).try_into().expect("numbers");
            assert_eq!(found, expected);
        }
        let ones = Tensor::ones([5, 3], (Kind::BFloat16, Device::Cpu));
        let found: Vec<f64> = (&moments(&ones).expect("a matrix")).try_into().expect("numbers");
        assert_eq!(found, [5.0; 7]);
        assert!(moments(&ones.get(0)).is_err());
    }

    #[test]
    fn first_adamw_step_by_hand() {
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
    fn forgotten_gradients_are_not_added_to() {
        let x: Vec<Tensor> = randn(3).iter().map(|x| x.set_requires_grad(true)).collect();
        let backward = || (&x[0] * 2.0 + &x[1]).sum(Kind::Float).backward();
        backward();
        forget_gradients(&x).expect("live tensors");
        assert!(x.iter().all(|x| !x.grad().defined()));
        backward();
        backward();
        // Two passes; the first tensor's single column goes to two of the second's.
        assert_eq!([&x[0], &x[1]].map(|x| x.grad().max().double_value(&[])), [8.0, 2.0]);
        assert!(!x[2].grad().defined());
    }

    #[test]
    fn failures_are_errors_with_one_plain_message() {
        let error = ema_update(&randn(2), &randn(3), 0.9).unwrap_err();
        assert!(error.to_string().contains("[2, 3]"));
        let (a, b) = (randn(1), vec![Tensor::zeros([5, 7], (Kind::Float, Device::Cpu))]);
        let error = ema_update(&a, &b, 0.9).unwrap_err().to_string();
        assert!(error.contains("size") && !error.contains("frame #"), "{error}");
    }
}
