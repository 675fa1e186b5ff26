//! Settings of the whole process.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;

use tch::TchError;

use crate::shim::check;

unsafe extern "C" {
    fn d2v_libtorch_version() -> *const c_char;
    fn d2v_set_deterministic(on: c_int, error: *mut *mut c_char) -> c_int;
}

/// The version of the LibTorch that this was compiled against, as `2.11.0`.
pub fn libtorch_version() -> String {
    // SAFETY: the shim returns a string literal.
    unsafe { CStr::from_ptr(d2v_libtorch_version()) }.to_string_lossy().into_owned()
}

/// Makes LibTorch compute the same from the same, bit by bit, every time on this machine: on a GPU it does not
/// by itself. Slower there. Operators that have no such way fail and say so. Call it before the first
/// tensor: cuBLAS looks once.
///
/// # Errors
/// If LibTorch refuses.
pub fn set_deterministic(on: bool) -> Result<(), TchError> {
    // SAFETY: no pointers but the one for the message.
    check(|error| unsafe { d2v_set_deterministic(on.into(), error) })
}

/// Keeps freed memory for the next step instead of giving it back to the system.
///
/// A training step frees and takes the same large blocks again and again; handing their pages back
/// each time costs 10 to 35 % of a step on CPUs. Only glibc has the switches; elsewhere nothing
/// happens. Call it once, at the start of the program.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only sets thresholds of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Gives memory that was [kept](keep_freed_memory) and is free back to the system.
///
/// Batches of many shapes leave holes of many sizes, and what is kept grows to several times of what a
/// step needs. Called now and then (each call costs the next step its pages, some tenths of a
/// second), it stays near that.
pub fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes LibTorch compute on this thread alone whatever this thread asks it for, from now on.
///
/// For threads beside the one that trains: otherwise each gets helpers of its own, and with more threads
/// than cores OpenMP's no longer wait in readiness but sleep, which made steps of small models three times
/// slower. Nothing happens where LibTorch uses no OpenMP.
pub fn compute_on_this_thread_alone() {
    // LibTorch sets the number at a thread's first question; afterwards it stays what it is set to here.
    let _ = tch::get_num_threads();
    // SAFETY: the symbol, where there is one, is OpenMP's `void omp_set_num_threads(int)`, which sets the
    // number for the calling thread.
    unsafe {
        let set = libc::dlsym(libc::RTLD_DEFAULT, c"omp_set_num_threads".as_ptr());
        if !set.is_null() {
            let set: extern "C" fn(c_int) = std::mem::transmute(set);
            set(1);
        }
    }
}

/// Loads LibTorch's CUDA half from the folder `lib`, if it is there, so that a program linked against
/// the CPU half can use GPUs. Returns whether it was there. Call it before the first tensor.
///
/// # Errors
/// The loader's own message if the library is there but cannot be loaded.
pub fn load_cuda(lib: &Path) -> Result<bool, String> {
    let path = lib.join("libtorch_cuda.so");
    if !path.exists() {
        return Ok(false);
    }
    let c_path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: `c_path` is a valid C string; the library registers its hooks when it is loaded, and
    // is never unloaded. `dlerror` returns null or a string valid until the next call.
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
    fn what_cannot_be_repeated_fails_and_says_so() {
        use tch::{Device, Kind, Tensor};
        // Which of two values for one place stays is left open.
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
        let refused = put().expect_err("an operator without order").to_string();
        assert!(refused.contains("put_") && refused.contains("deterministic"), "{refused}");
        set_deterministic(false).expect("a setting");
        assert!(put().is_ok());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn one_thread_computes_alone_and_the_others_as_before() {
        tch::set_num_threads(2);
        let alone = std::thread::spawn(|| {
            compute_on_this_thread_alone();
            tch::get_num_threads()
        });
        assert_eq!((alone.join().expect("no panic"), tch::get_num_threads()), (1, 2));
    }

    #[test]
    fn cuda_is_absent_without_its_library_and_broken_ones_are_errors() {
        keep_freed_memory();
        release_freed_memory();
        let dir = std::env::temp_dir().join(format!("data2vec-cuda-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary folder");
        assert_eq!(load_cuda(&dir), Ok(false));
        std::fs::write(dir.join("libtorch_cuda.so"), b"not a library").expect("a file");
        assert!(load_cuda(&dir).unwrap_err().contains("libtorch_cuda.so"));
        std::fs::remove_dir_all(&dir).expect("the folder");
    }
}
