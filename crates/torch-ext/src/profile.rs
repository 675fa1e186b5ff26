//! Profiles LibTorch operators: calls, CPU time and floating-point operations.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::time::{Duration, Instant};

use tch::TchError;

use crate::shim::check;

type Each = unsafe extern "C" fn(*mut c_void, *const c_char, c_int, u64, f64, f64);

unsafe extern "C" {
    fn d2v_profile_start(error: *mut *mut c_char) -> c_int;
    fn d2v_scope_begin(
        name: *const c_char,
        scope: *mut *mut c_void,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_scope_end(scope: *mut c_void);
    fn d2v_profile_stop(each: Each, to: *mut c_void, error: *mut *mut c_char) -> c_int;
}

/// Statistics of one operator, or of one [`scope`].
#[derive(Clone, Debug, PartialEq)]
pub struct Op {
    /// LibTorch's name, such as `aten::mm`, or `detach` without a prefix.
    pub name: String,
    /// True for a [`scope`], false for an operator.
    pub is_scope: bool,
    /// Number of calls.
    pub calls: u64,
    /// CPU time in seconds: self time of an operator, total time of a scope. For GPU work this is
    /// the launch time.
    pub seconds: f64,
    /// Floating-point operations of matrix products, convolutions and fused attention.
    pub flop: f64,
}

/// Runs `body` and returns its result with the operators that ran meanwhile in any thread, slowest
/// first.
///
/// # Errors
/// If another profile is running.
pub fn profile<T>(body: impl FnOnce() -> T) -> Result<(T, Vec<Op>), TchError> {
    // SAFETY: no pointers but the one for the message.
    check(|error| unsafe { d2v_profile_start(error) })?;
    let value = body();
    let mut ops: Vec<Op> = Vec::new();
    // SAFETY: `add` gets back the pointer to `ops`, which outlives the call.
    check(|error| unsafe { d2v_profile_stop(add, (&raw mut ops).cast(), error) })?;
    ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok((value, ops))
}

thread_local! {
    /// Time of this thread's scopes since the last [`drain_timings`].
    static TIMINGS: RefCell<Vec<(&'static CStr, Duration)>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` as a scope that profilers show as `name`, and adds its time to [`drain_timings`].
pub fn scope<T>(name: &'static CStr, body: impl FnOnce() -> T) -> T {
    /// Ends the scope even if `body` panics.
    struct End(*mut c_void);
    impl Drop for End {
        fn drop(&mut self) {
            // SAFETY: the pointer is null or from `d2v_scope_begin`, and is passed once.
            unsafe { d2v_scope_end(self.0) }
        }
    }
    let mut end = End(std::ptr::null_mut());
    let start = Instant::now();
    // If the profiler refuses the scope, `body` still has to run.
    // SAFETY: the name outlives the call, which copies it.
    let _ = check(|error| unsafe { d2v_scope_begin(name.as_ptr(), &mut end.0, error) });
    let value = body();
    let took = start.elapsed();
    TIMINGS.with_borrow_mut(|timings| match timings.iter_mut().find(|(known, _)| *known == name) {
        Some((_, total)) => *total += took,
        None => timings.push((name, took)),
    });
    value
}

/// Returns and clears the total time of each [`scope`] of this thread, in the order they first
/// ended.
///
/// For GPU work this is the launch time.
pub fn drain_timings() -> Vec<(String, Duration)> {
    let timings = TIMINGS.take();
    timings.into_iter().map(|(name, took)| (name.to_string_lossy().into_owned(), took)).collect()
}

/// # Safety
/// `to` points to a `Vec<Op>`, `name` to a C string.
unsafe extern "C" fn add(
    to: *mut c_void,
    name: *const c_char,
    is_scope: c_int,
    calls: u64,
    seconds: f64,
    flop: f64,
) {
    // SAFETY: guaranteed by the caller.
    let (ops, name) = unsafe { (&mut *to.cast::<Vec<Op>>(), CStr::from_ptr(name)) };
    let name = name.to_string_lossy().into_owned();
    ops.push(Op { name, is_scope: is_scope != 0, calls, seconds, flop });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn counts_flop_of_matmul_and_convolution_with_gradients() {
        let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let weight = ones(&[5, 4]).set_requires_grad(true);
        let (_, ops) = profile(|| {
            let y = ones(&[2, 3, 4]).linear(&weight, None::<Tensor>); // 2·3·4·5 multiplications
            y.sum(Kind::Float).backward(); // only the weight's gradient
        })
        .expect("a profile");
        let flop: f64 = ops.iter().map(|op| op.flop).sum();
        assert_eq!(flop, 2.0 * 2.0 * 120.0, "{ops:?}");

        let (_, ops) = profile(|| {
            crate::autocast_bf16(Device::Cpu, || ones(&[2, 3]).mm(&ones(&[3, 4])))
                .expect("autocast")
        })
        .expect("a profile");
        let flop: f64 = ops.iter().map(|op| op.flop).sum();
        assert_eq!(flop, 2.0 * 24.0, "{ops:?}"); // counted once, though autocast calls the operator twice

        let kernel = ones(&[6, 2, 3]).set_requires_grad(true);
        let (_, ops) = profile(|| {
            // 6 output channels, 2 of 4 input channels in each of 2 groups, 9 positions, kernel
            // size 3
            let y = ones(&[1, 4, 9]).conv1d(&kernel, None::<Tensor>, 1, 1, 1, 2);
            y.sum(Kind::Float).backward();
        })
        .expect("a profile");
        let flop: f64 = ops.iter().map(|op| op.flop).sum();
        assert_eq!(flop, 2.0 * 2.0 * (6 * 9 * 2 * 3) as f64, "{ops:?}");
        assert!(ops.iter().all(|op| op.calls > 0 && op.seconds >= 0.0));

        let (_, ops) = profile(|| {
            // LibTorch names the last operator without `::`, as scopes may be named.
            scope(c"scope", || ones(&[100, 100]).softmax(-1, None::<Kind>).detach())
        })
        .expect("a profile");
        assert!(ops.iter().any(|op| !op.is_scope && !op.name.contains("::")), "{ops:?}");
        let scope = ops.iter().find(|op| op.is_scope).expect("the scope");
        let others: f64 = ops.iter().filter(|op| !op.is_scope).map(|op| op.seconds).sum();
        assert_eq!(scope.name, "scope");
        assert!(scope.calls == 1 && scope.seconds >= others && others > 0.0, "{ops:?}");
    }

    #[test]
    fn scopes_add_up_their_time() {
        drop(drain_timings());
        let sleep = |milliseconds| std::thread::sleep(Duration::from_millis(milliseconds));
        scope(c"a", || sleep(20));
        scope(c"b", || sleep(5));
        scope(c"a", || sleep(20));
        let timings = drain_timings();
        let names: Vec<&str> = timings.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(
            timings[0].1 >= Duration::from_millis(40) && timings[1].1 >= Duration::from_millis(5)
        );
        assert!(drain_timings().is_empty());
    }
}
