//! Mixed precision: matrix products and convolutions in bf16, everything else in f32.

use std::ffi::{c_char, c_int};

use tch::{Device, TchError};

use crate::shim::{check, device_type};

unsafe extern "C" {
    fn d2v_autocast_enter(
        device: c_int,
        kind: c_int,
        was_on: *mut c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_autocast_on(device: c_int) -> c_int;
    fn d2v_autocast_leave(device: c_int, was_on: c_int, error: *mut *mut c_char) -> c_int;
}

/// `c10::ScalarType::BFloat16`.
const BFLOAT16: c_int = 15;

/// Runs `body` under LibTorch's autocast to bf16 for tensors on `device`.
///
/// Matrix products and convolutions convert their operands to bf16 and return bf16; adding f32
/// gives f32. Weights are converted once. Call the backward pass outside: it follows the forward
/// pass's kinds.
///
/// # Errors
/// If the device does not support autocast.
pub fn autocast_bf16<T>(device: Device, body: impl FnOnce() -> T) -> Result<T, TchError> {
    /// Restores the previous setting even if `body` panics.
    struct Leave(c_int, c_int);
    impl Drop for Leave {
        fn drop(&mut self) {
            // Cannot fail for a device on which autocast was enabled.
            // SAFETY: the only pointer is the error message's.
            let _ = check(|error| unsafe { d2v_autocast_leave(self.0, self.1, error) });
        }
    }
    let device = device_type(device)
        .ok_or_else(|| TchError::Torch(format!("autocast: {device:?} is not supported")))?;
    let mut was_on = 0;
    // SAFETY: `was_on` is written only during the call.
    check(|error| unsafe { d2v_autocast_enter(device, BFLOAT16, &mut was_on, error) })?;
    let _leave = Leave(device, was_on);
    Ok(body())
}

/// Returns true inside [`autocast_bf16`] for `device`.
pub fn is_autocast_on(device: Device) -> bool {
    // SAFETY: reads a thread-local setting.
    device_type(device).is_some_and(|device| unsafe { d2v_autocast_on(device) } != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn autocast_multiplies_in_bf16_and_accumulates_in_f32() {
        let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let weight = (ones(&[5, 4]) / 3.0).set_requires_grad(true);
        let y = autocast_bf16(Device::Cpu, || ones(&[2, 4]).linear(&weight, None::<Tensor>));
        let y = y.expect("autocast");
        assert_eq!((y.kind(), (&y + ones(&[2, 5])).kind()), (Kind::BFloat16, Kind::Float));
        y.to_kind(Kind::Float).sum(Kind::Float).backward();
        assert_eq!((weight.grad().kind(), weight.grad().double_value(&[0, 0])), (Kind::Float, 2.0));
        assert_eq!(ones(&[2, 4]).linear(&weight, None::<Tensor>).kind(), Kind::Float); // autocast is off again
        let kind = || ones(&[2, 4]).linear(&weight, None::<Tensor>).kind();
        let after_inner = autocast_bf16(Device::Cpu, || {
            autocast_bf16(Device::Cpu, || ()).expect("inner");
            kind()
        });
        assert_eq!((after_inner.expect("outer"), kind()), (Kind::BFloat16, Kind::Float));
        let on = || is_autocast_on(Device::Cpu);
        assert_eq!((autocast_bf16(Device::Cpu, on).expect("autocast"), on()), (true, false));
    }
}
