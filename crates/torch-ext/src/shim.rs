//! Calling conventions of the C++ shim: tensors by pointer, errors by message.

use std::ffi::{CStr, c_char, c_int};

use tch::{Device, TchError, Tensor};
use torch_sys::C_tensor;

/// Pointer to a tensor, as passed to the shim.
pub type Raw = *mut C_tensor;

/// Returns a pointer to `x`, which keeps ownership.
pub fn raw(x: &Tensor) -> Raw {
    x.as_ptr().cast_mut()
}

/// Returns the `c10::DeviceType` of a device the shim supports.
pub fn device_type(device: Device) -> Option<c_int> {
    match device {
        Device::Cpu => Some(0),
        Device::Cuda(_) => Some(1),
        _ => None,
    }
}

/// Calls a shim function that assigns its result to an output tensor.
pub fn call_tensor(call: impl FnOnce(Raw, *mut *mut c_char) -> c_int) -> Result<Tensor, TchError> {
    let out = Tensor::new();
    check(|error| call(raw(&out), error))?;
    Ok(out)
}

/// Calls a shim function that returns an owned pointer, or null on failure.
pub fn call_new<T>(call: impl FnOnce(*mut *mut c_char) -> *mut T) -> Result<*mut T, TchError> {
    let mut object = std::ptr::null_mut();
    check(|error| {
        object = call(error);
        c_int::from(object.is_null())
    })?;
    Ok(object)
}

/// Calls a shim function and converts its return code and message into a `Result`.
pub fn check(call: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<(), TchError> {
    let mut error: *mut c_char = std::ptr::null_mut();
    if call(&mut error) == 0 {
        return Ok(());
    }
    // SAFETY: on failure the shim sets `error` to a NUL-terminated string from `strdup`, which the
    // caller frees, or to null if `strdup` ran out of memory.
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
