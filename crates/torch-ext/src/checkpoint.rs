//! Activation checkpointing (Chen et al. 2016): trades compute for memory.

use std::ffi::{c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{TchError, Tensor};

use crate::shim::{Raw, check, raw};

type Body = Box<dyn Fn(&Tensor, Option<&Tensor>) -> Tensor + Send>;
type Run = unsafe extern "C" fn(*mut c_void, Raw, Raw, *mut Raw, *mut *mut c_char) -> c_int;
type Free = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn d2v_checkpoint(
        x: Raw,
        bias: Raw,
        state: *mut c_void,
        run: Run,
        free: Free,
        out: Raw,
        error: *mut *mut c_char,
    ) -> c_int;
}

/// Returns `body(x, bias)` and saves only the inputs for the backward pass.
///
/// The backward pass calls `body` again, with the random state and the autocast setting of the
/// first call. Gradients, including those of variables captured by `body`, are bit-identical to an
/// uncheckpointed call.
///
/// # Errors
/// The message of a panic in `body`, or LibTorch's error.
pub fn checkpoint(
    x: &Tensor,
    bias: Option<&Tensor>,
    body: impl Fn(&Tensor, Option<&Tensor>) -> Tensor + Send + 'static,
) -> Result<Tensor, TchError> {
    let body: Body = Box::new(body);
    let state = Box::into_raw(Box::new(body)).cast();
    let out = Tensor::new();
    let bias = bias.map_or(std::ptr::null_mut(), raw);
    // SAFETY: live tensors; `state` is the `Box<Body>` that `run` and `free` expect. The shim frees
    // it once, with the last graph that holds it. The autograd engine may call it from its own
    // thread, one call at a time, which `Send` allows.
    check(|error| unsafe { d2v_checkpoint(raw(x), bias, state, run, free, raw(&out), error) })?;
    Ok(out)
}

/// # Safety
/// `state` is a `Box<Body>`, `x` a tensor, `bias` a tensor or null; `out` and `error` are valid for
/// writes.
unsafe extern "C" fn run(
    state: *mut c_void,
    x: Raw,
    bias: Raw,
    out: *mut Raw,
    error: *mut *mut c_char,
) -> c_int {
    let call = || {
        // SAFETY: guaranteed by the caller; clones are new handles to the tensors' values.
        unsafe {
            let body = &*state.cast::<Body>();
            let x = Tensor::clone_from_ptr(x);
            let bias = (!bias.is_null()).then(|| Tensor::clone_from_ptr(bias));
            body(&x, bias.as_ref())
        }
    };
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(output) => {
            // SAFETY: `out` is valid for writes; the shim takes ownership of the tensor.
            unsafe { *out = raw(&ManuallyDrop::new(output)) };
            0
        }
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a checkpointed function panicked");
            let message = std::ffi::CString::new(message.replace('\0', " ")).unwrap_or_default();
            // SAFETY: `error` is valid for writes; the shim frees the copy that `strdup` makes.
            unsafe { *error = libc::strdup(message.as_ptr()) };
            1
        }
    }
}

/// # Safety
/// `state` is a `Box<Body>` that is not used afterwards.
unsafe extern "C" fn free(state: *mut c_void) {
    // SAFETY: guaranteed by the caller.
    drop(unsafe { Box::from_raw(state.cast::<Body>()) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Returns the loss and the gradients of the input, the bias and a captured variable.
    fn grads(checkpointed: bool, bf16: bool) -> Vec<Tensor> {
        tch::manual_seed(7);
        let leaf =
            |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (x, bias, weight) = (leaf(&[6, 8]), leaf(&[8]), leaf(&[8, 8]));
        let inner = weight.shallow_clone();
        let body = move |x: &Tensor, bias: Option<&Tensor>| {
            let y = crate::dropout(&x.linear(&inner, bias), 0.3).expect("valid p");
            y.gelu("none") * 3.0
        };
        let pass = move || {
            let out = match checkpointed {
                true => checkpoint(&x, Some(&bias), body).expect("no panic"),
                false => body(&x, Some(&bias)),
            };
            let after = crate::dropout(&out, 0.5).expect("valid p"); // uses the next random numbers
            ((out + after).to_kind(Kind::Float).square().sum(Kind::Float), x, bias)
        };
        let (loss, x, bias) = match bf16 {
            true => crate::autocast_bf16(Device::Cpu, pass).expect("autocast"),
            false => pass(),
        };
        loss.backward();
        vec![loss.detach(), x.grad(), bias.grad(), weight.grad()]
    }

    #[test]
    fn gradients_are_bit_identical_to_uncheckpointed() {
        for bf16 in [false, true] {
            assert_eq!(grads(true, bf16), grads(false, bf16), "bf16: {bf16}");
        }
    }

    #[test]
    fn panic_in_body_becomes_error() {
        let x = Tensor::ones([2], (Kind::Float, Device::Cpu));
        let error = checkpoint(&x, None, |_, _| panic!("no such luck")).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
    }
}
