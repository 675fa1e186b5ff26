//! Memory statistics of the process and of CUDA devices.

use std::ffi::{c_char, c_int};

use tch::{Device, TchError};

use crate::shim::check;

unsafe extern "C" {
    fn d2v_cuda_memory(
        index: c_int,
        current: *mut u64,
        peak: *mut u64,
        available: *mut u64,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_cuda_reset_peak(index: c_int, error: *mut *mut c_char) -> c_int;
}

/// Memory use in bytes: resident memory of the process (CPU), or LibTorch's allocations (GPU).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In use now.
    pub current: u64,
    /// Peak since the start or the last [`reset_peak_memory`].
    pub peak: u64,
    /// Free for further allocations.
    pub available: u64,
}

/// Returns the memory in use on `device`.
///
/// # Errors
/// If the system has no statistics: a CPU without Linux, a GPU that is not CUDA or not in use yet.
pub fn memory(device: Device) -> Result<Memory, TchError> {
    match device {
        Device::Cpu => process_memory().ok_or_else(|| {
            TchError::Torch("no memory statistics: /proc is missing or unreadable".into())
        }),
        Device::Cuda(n) => {
            let mut memory = Memory { current: 0, peak: 0, available: 0 };
            let Memory { current, peak, available } = &mut memory;
            // SAFETY: the numbers are written only during the call.
            check(|error| unsafe { d2v_cuda_memory(n as c_int, current, peak, available, error) })?;
            Ok(memory)
        }
        other => Err(TchError::Torch(format!("no memory statistics for {other:?}"))),
    }
}

/// Resets [`Memory::peak`] to the current use.
///
/// # Errors
/// As for [`memory`].
pub fn reset_peak_memory(device: Device) -> Result<(), TchError> {
    match device {
        // Writing 5 resets the peak of the resident set: proc(5).
        Device::Cpu => std::fs::write("/proc/self/clear_refs", "5")
            .map_err(|e| TchError::Torch(format!("/proc/self/clear_refs: {e}"))),
        Device::Cuda(n) => {
            // SAFETY: the only pointer is the error message's.
            check(|error| unsafe { d2v_cuda_reset_peak(n as c_int, error) })
        }
        other => Err(TchError::Torch(format!("no memory statistics for {other:?}"))),
    }
}

/// Reads memory statistics from /proc, which reports KiB.
fn process_memory() -> Option<Memory> {
    let find = |path: &str, key: &str| -> Option<u64> {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory {
        current: find("/proc/self/status", "VmRSS")?,
        peak: find("/proc/self/status", "VmHWM")?,
        available: find("/proc/meminfo", "MemAvailable")?,
    })
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn peak_includes_freed_memory_until_reset() {
        let before = memory(Device::Cpu).expect("/proc/self/status");
        drop(Tensor::ones([100 << 20], (Kind::Uint8, Device::Cpu)));
        let after = memory(Device::Cpu).expect("/proc/self/status");
        assert!(after.peak >= before.current + (90 << 20), "{before:?} {after:?}");
        crate::release_freed_memory();
        reset_peak_memory(Device::Cpu).expect("/proc/self/clear_refs");
        let reset = memory(Device::Cpu).expect("/proc/self/status");
        assert!(reset.peak + (50 << 20) < after.peak, "{after:?} {reset:?}");
        assert!(reset.available > 0);
        assert!(memory(Device::Cuda(0)).is_err());
    }
}
