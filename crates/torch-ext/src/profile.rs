//! What LibTorch computes, operator by operator.

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

/// What one operator did.
#[derive(Clone, Debug, PartialEq)]
pub struct Op {
    /// As LibTorch calls it: `aten::mm`, or `detach` without a prefix.
    pub name: String,
    /// Whether it is a [`scope`], a part of the work, and no operator.
    pub is_scope: bool,
    /// How often it ran.
    pub calls: u64,
    /// Time on the CPU in seconds: of an operator without those that it called, of a scope with them. On
    /// a GPU this is the time of the launch.
    pub seconds: f64,
    /// Floating-point operations of matrix products, convolutions and fused attention.
    pub flop: f64,
}

/// Runs `body` and tells every operator that ran meanwhile, in all threads, slowest first.
///
/// # Errors
/// If another profile is being taken.
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
    /// What this thread's parts have taken since they were last asked for.
    static SPENT: RefCell<Vec<(&'static CStr, Duration)>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` as a part of the work that profilers know by `name`, and takes its time.
pub fn scope<T>(name: &'static CStr, body: impl FnOnce() -> T) -> T {
    /// Ends the part also when `body` panics.
    struct End(*mut c_void);
    impl Drop for End {
        fn drop(&mut self) {
            // SAFETY: what `d2v_scope_begin` gave, once; it takes null.
            unsafe { d2v_scope_end(self.0) }
        }
    }
    let mut end = End(std::ptr::null_mut());
    let start = Instant::now();
    // A part that cannot be named is still work to be done.
    // SAFETY: the name outlives the call, which copies it.
    let _ = check(|error| unsafe { d2v_scope_begin(name.as_ptr(), &mut end.0, error) });
    let value = body();
    let took = start.elapsed();
    SPENT.with_borrow_mut(|spent| match spent.iter_mut().find(|(known, _)| *known == name) {
        Some((_, all)) => *all += took,
        None => spent.push((name, took)),
    });
    value
}

/// How long each [`scope`] of this thread has taken since this was last asked, by name, in the order in which they
/// first ended. On a GPU that is the time to launch the work.
pub fn take_spent() -> Vec<(String, Duration)> {
    let spent = SPENT.take();
    spent.into_iter().map(|(name, took)| (name.to_string_lossy().into_owned(), took)).collect()
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
    // SAFETY: as promised by the caller.
    let (ops, name) = unsafe { (&mut *to.cast::<Vec<Op>>(), CStr::from_ptr(name)) };
    let name = name.to_string_lossy().into_owned();
    ops.push(Op { name, is_scope: is_scope != 0, calls, seconds, flop });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn counts_products_and_convolutions_with_their_gradients() {
        let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let weight = ones(&[5, 4]).set_requires_grad(true);
        let (_, ops) = profile(|| {
            let y = ones(&[2, 3, 4]).linear(&weight, None::<Tensor>); // 2·3·4·5 products
            y.sum(Kind::Float).backward(); // the weight's gradient alone
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
        assert_eq!(flop, 2.0 * 24.0, "{ops:?}"); // once, though autocast calls it twice

        let kernel = ones(&[6, 2, 3]).set_requires_grad(true);
        let (_, ops) = profile(|| {
            // 6 channels out of 2 of 4 in each of 2 groups, 9 places, kernels of 3
            let y = ones(&[1, 4, 9]).conv1d(&kernel, None::<Tensor>, 1, 1, 1, 2);
            y.sum(Kind::Float).backward();
        })
        .expect("a profile");
        let flop: f64 = ops.iter().map(|op| op.flop).sum();
        assert_eq!(flop, 2.0 * 2.0 * (6 * 9 * 2 * 3) as f64, "{ops:?}");
        assert!(ops.iter().all(|op| op.calls > 0 && op.seconds >= 0.0));

        let (_, ops) = profile(|| {
            // LibTorch calls the last one an operator by a name without `::`, as parts may have.
            scope(c"part", || ones(&[100, 100]).softmax(-1, None::<Kind>).detach())
        })
        .expect("a profile");
        assert!(ops.iter().any(|op| !op.is_scope && !op.name.contains("::")), "{ops:?}");
        let part = ops.iter().find(|op| op.is_scope).expect("the scope");
        let others: f64 = ops.iter().filter(|op| !op.is_scope).map(|op| op.seconds).sum();
        assert_eq!(part.name, "part");
        assert!(part.calls == 1 && part.seconds >= others && others > 0.0, "{ops:?}");
    }

    #[test]
    fn parts_tell_what_they_took() {
        drop(take_spent());
        let sleep = |milliseconds| std::thread::sleep(Duration::from_millis(milliseconds));
        scope(c"a", || sleep(20));
        scope(c"b", || sleep(5));
        scope(c"a", || sleep(20));
        let spent = take_spent();
        let names: Vec<&str> = spent.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(spent[0].1 >= Duration::from_millis(40) && spent[1].1 >= Duration::from_millis(5));
        assert!(take_spent().is_empty());
    }
}
