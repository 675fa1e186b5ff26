//! Process-wide settings: threads, memory allocation, determinism, CUDA loading.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;

use tch::TchError;

use crate::shim::check;

unsafe extern "C" {
    fn d2v_libtorch_version() -> *const c_char;
    fn d2v_set_deterministic(on: c_int, error: *mut *mut c_char) -> c_int;
}

/// Returns the LibTorch version this crate was compiled against, such as `2.11.0`.
pub fn libtorch_version() -> String {
    // SAFETY: the shim returns a string literal.
    unsafe { CStr::from_ptr(d2v_libtorch_version()) }.to_string_lossy().into_owned()
}

/// Makes LibTorch use deterministic algorithms: the same inputs give the same bits on this machine.
///
/// GPUs need this and run slower with it. Operators without a deterministic implementation fail
/// with an error. Call it before the first tensor: cuBLAS reads its setting once.
///
/// # Errors
/// LibTorch's error.
pub fn set_deterministic(on: bool) -> Result<(), TchError> {
    // SAFETY: the only pointer is the error message's.
    check(|error| unsafe { d2v_set_deterministic(on.into(), error) })
}

/// Makes malloc keep freed memory for reuse instead of returning it to the system.
///
/// A training step frees and allocates the same large blocks repeatedly; returning their pages each
/// time costs 10 to 35 % of a step on CPUs. Does nothing without glibc. Call it once, at the start
/// of the program.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only sets allocator thresholds.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Returns free memory [kept](keep_freed_memory) by malloc to the system.
///
/// Batches of many shapes fragment the heap, which grows to several times what a step needs.
/// Calling this periodically bounds that growth; each call costs the next step a few tenths of a
/// second of page faults.
pub fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Sets the number of OpenMP threads LibTorch uses for operators called from the current thread.
///
/// `tch::set_num_threads` sets it for the whole process. Set it to 1 in background threads next to
/// the training thread: otherwise each gets an OpenMP pool of its own, and with more threads than
/// cores OpenMP workers sleep instead of spinning, which made steps of small models three times
/// slower. Does nothing where LibTorch does not use OpenMP.
///
/// # Panics
/// If `count` is 0 or exceeds `i32::MAX`.
pub fn set_thread_num_threads(count: usize) {
    let count = c_int::try_from(count).ok().filter(|&count| count > 0);
    let count = count.expect("the number of threads must be at least 1");
    // LibTorch initialises the count at a thread's first query; after that it keeps the value set
    // here.
    let _ = tch::get_num_threads();
    // SAFETY: the symbol, if present, is OpenMP's `void omp_set_num_threads(int)`, which affects
    // only the calling thread.
    unsafe {
        let set = libc::dlsym(libc::RTLD_DEFAULT, c"omp_set_num_threads".as_ptr());
        if !set.is_null() {
            let set: extern "C" fn(c_int) = std::mem::transmute(set);
            set(count);
        }
    }
}

/// Loads `libtorch_cuda.so` from the directory `lib`, so that a program linked against the CPU
/// libraries can use GPUs.
///
/// Returns false if the library does not exist. Call it before the first tensor.
///
/// # Errors
/// The dynamic loader's message if the library exists but cannot be loaded.
pub fn load_cuda(lib: &Path) -> Result<bool, String> {
    let path = lib.join("libtorch_cuda.so");
    if !path.exists() {
        return Ok(false);
    }
    let c_path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: `c_path` is a valid C string; the library registers its hooks on load and is never
    // unloaded. `dlerror` returns null or a string that is valid until the next call.
    unsafe {
        if libc::dlopen(c_path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            let message = libc::dlerror();
            return Err(if message.is_null() {
                format!("{} cannot be loaded", path.display())
            } else {
                CStr::from_ptr(message).to_string_lossy().into_owned()
            });
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nondeterministic_operators_fail_in_deterministic_mode() {
        use tch::{Device, Kind, Tensor};
        // The result is undefined if two values are put at one index.
        let put = || {
            let index = Tensor::from_slice(&[1_i64, 1]);
            Tensor::zeros([3], (Kind::Float, Device::Cpu)).f_put_(
                &index,
                &Tensor::from_slice(&[1_f32, 2.0]),
                false,
            )
        };
        assert!(put().is_ok());
        set_deterministic(true).expect("a setting");
        let refused = put().expect_err("put_ is not deterministic").to_string();
        assert!(refused.contains("put_") && refused.contains("deterministic"), "{refused}");
        set_deterministic(false).expect("a setting");
        assert!(put().is_ok());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn set_thread_num_threads_affects_only_the_calling_thread() {
        tch::set_num_threads(2);
        let background = std::thread::spawn(|| {
            set_thread_num_threads(1);
            tch::get_num_threads()
        });
        assert_eq!((background.join().expect("no panic"), tch::get_num_threads()), (1, 2));
    }

    #[test]
    fn load_cuda_handles_missing_and_broken_libraries() {
        keep_freed_memory();
        release_freed_memory();
        let dir = std::env::temp_dir().join(format!("data2vec-cuda-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        assert_eq!(load_cuda(&dir), Ok(false));
        std::fs::write(dir.join("libtorch_cuda.so"), b"not a library").expect("a file");
        assert!(load_cuda(&dir).unwrap_err().contains("libtorch_cuda.so"));
        std::fs::remove_dir_all(&dir).expect("the directory");
    }
}
