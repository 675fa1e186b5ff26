//! How the shim's functions are called: tensors by pointer, errors by message.

use std::ffi::{CStr, c_char, c_int};

use tch::{Device, TchError, Tensor};
use torch_sys::C_tensor;

/// A tensor as the shim sees it.
pub type Raw = *mut C_tensor;

/// The pointer to a tensor, which stays its owner.
pub fn raw(x: &Tensor) -> Raw {
    x.as_ptr().cast_mut()
}

/// `c10::DeviceType` of the devices that the shim knows.
pub fn device_type(device: Device) -> Option<c_int> {
    match device {
        Device::Cpu => Some(0),
        Device::Cuda(_) => Some(1),
        _ => None,
    }
}

/// What the shim assigns to a new tensor.
pub fn returned(call: impl FnOnce(Raw, *mut *mut c_char) -> c_int) -> Result<Tensor, TchError> {
    let out = Tensor::new();
    check(|error| call(raw(&out), error))?;
    Ok(out)
}

/// What the shim makes and hands over; null where it could not.
pub fn made<T>(call: impl FnOnce(*mut *mut c_char) -> *mut T) -> Result<*mut T, TchError> {
    let mut made = std::ptr::null_mut();
    check(|error| {
        made = call(error);
        c_int::from(made.is_null())
    })?;
    Ok(made)
}

/// Turns a shim's return code and message into a `Result`.
pub fn check(call: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<(), TchError> {
    let mut error: *mut c_char = std::ptr::null_mut();
    if call(&mut error) == 0 {
        return Ok(());
    }
    // SAFETY: on failure the shim sets `error` to a NUL-terminated string from `strdup`, or to null
    // if that ran out of memory; it is ours to free.
    let message = unsafe {
        if error.is_null() {
            return Err(TchError::Torch("out of memory".into()));
        }
        let message = CStr::from_ptr(error).to_string_lossy().into_owned();
        libc::free(error.cast());
        message
    };
    Err(TchError::Torch(message))
}
