//! What the user reads: news, results, and one line for whatever went wrong.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Arguments;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Result, ensure};
use data2vec_core::panic_message;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::screen;

/// What was asked for, to standard output.
macro_rules! out {
    () => { $crate::report::result(format_args!("")) };
    ($($arg:tt)*) => { $crate::report::result(format_args!($($arg)*)) };
}

/// What is going on, to standard error.
macro_rules! tell {
    ($($arg:tt)*) => { $crate::report::news(format_args!($($arg)*)) };
}

pub(crate) use {out, tell};

/// What errors of this process begin with, where it is one of several.
static WHO: OnceLock<(usize, String)> = OnceLock::new();

/// From now on this is process `rank` of `count`: only the first one tells what goes on, and errors say whose
/// they are.
pub fn speak_for(rank: usize, count: usize) {
    let _ = WHO.set((rank, format!("rank {rank} of {count}: "))); // the first call counts
}

/// Whether this process tells what goes on.
pub fn speaks() -> bool {
    WHO.get().is_none_or(|(rank, _)| *rank == 0)
}

/// Whether news are kept back.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether standard output is for JSON alone.
static JSON: AtomicBool = AtomicBool::new(false);

/// For the rest of the process: `quiet` keeps back all but errors and results; with `json`, standard output
/// is for [`json`] alone, and results go where news go.
pub fn speak(quiet: bool, json: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
    JSON.store(json, Ordering::Relaxed);
}

/// Whether this process tells news.
pub fn has_news() -> bool {
    speaks() && !QUIET.load(Ordering::Relaxed)
}

/// See [`out!`]. Whoever reads it may stop reading.
pub fn result(text: Arguments) {
    match JSON.load(Ordering::Relaxed) {
        true => news(text),
        false if speaks() => screen::above(|| drop(writeln!(std::io::stdout(), "{text}"))),
        false => {}
    }
}

/// See [`tell!`]. That nobody listens is no reason to end a run.
pub fn news(text: Arguments) {
    if has_news() {
        screen::above(|| drop(writeln!(std::io::stderr(), "{text}")));
    }
}

/// An object of its own line on standard output, if that was asked for.
pub fn json(value: &impl Serialize) -> Result<()> {
    if JSON.load(Ordering::Relaxed) && speaks() {
        let text = serde_json::to_string(value)?;
        screen::above(|| drop(writeln!(std::io::stdout(), "{text}")));
    }
    Ok(())
}

/// An error's line, which all processes write.
fn complain(what: &str) {
    let who = WHO.get().map_or("", |(_, who)| who);
    // In one piece: other processes may write to the same terminal.
    let line = format!("error: {who}{what}\n");
    screen::above(|| drop(std::io::stderr().write_all(line.as_bytes())));
}

/// One line about something that is not an error.
pub fn note(text: impl AsRef<str>) {
    tell!("note: {}", text.as_ref());
}

/// Tells an error, in one line.
pub fn fail(error: &anyhow::Error) {
    let what = describe(error);
    let hint = hint(&what).map_or("", |(_, hint)| hint);
    complain(&format!("{what}{hint}"));
}

/// Has `read` look at each file, and `write` take what it made of it. One broken file among many does not cost the
/// others: it is told, and counted in what is returned. What cannot be written ends it all.
pub fn each_file<T>(
    files: &[PathBuf],
    bar: &ProgressBar,
    read: impl Fn(&Path) -> Result<T>,
    mut write: impl FnMut(&Path, T) -> Result<()>,
) -> Result<usize> {
    let mut failed = 0;
    for file in files {
        match read(file) {
            Ok(made) => write(file, made)?,
            Err(error) if files.len() > 1 => {
                failed += 1;
                bar.suspend(|| note(format!("skipped {}", describe(&error))));
            }
            Err(error) => return Err(error),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(failed)
}

/// An error if files could not be used.
pub fn check_failed(failed: usize, files: &[PathBuf]) -> Result<()> {
    ensure!(failed == 0, "{failed} of {} files could not be used", files.len());
    Ok(())
}

/// The exit code of a panic, as Rust's own.
const PANIC: u8 = 101;

/// Runs the program; errors and panics become one line and an exit code.
///
/// Panics that are caught on the way, a decoder's on a broken file, are told as that file's error and
/// not by Rust as well.
pub fn guarded(work: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    let place = Arc::new(Mutex::new(String::new()));
    let last = Arc::clone(&place);
    std::panic::set_hook(Box::new(move |panic| {
        let at = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
        let trace = Backtrace::capture(); // for those who set RUST_BACKTRACE
        let trace = match trace.status() {
            BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        let mut place = last.lock().unwrap_or_else(PoisonError::into_inner);
        *place = at.unwrap_or_default() + &trace;
    }));
    let result = catch_unwind(AssertUnwindSafe(work));
    let _ = std::panic::take_hook();
    match result {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            fail(&error);
            ExitCode::FAILURE
        }
        Err(panic) => {
            let what = message(panic.as_ref());
            // tch has no other way to say so.
            if let Some((kind, hint)) = hint(&what) {
                complain(&format!("{kind}: {what}{hint}"));
                return ExitCode::FAILURE;
            }
            let place = place.lock().unwrap_or_else(PoisonError::into_inner);
            complain(&format!("internal error: {what}; please report it{place}"));
            ExitCode::from(PANIC)
        }
    }
}

/// What helps when memory does not suffice.
const MEMORY_HINT: &str = "; a smaller train.batch needs less (with a larger train.accumulate the gradient \
                           is the same), and so do --set model.activation_checkpointing=true and \
                           --set model.precision=bf16; --plan tells what fits";

/// What LibTorch means, and what helps, where that is known.
fn hint(what: &str) -> Option<(&'static str, &'static str)> {
    if ["out of memory", "can't allocate memory"].iter().any(|words| what.contains(words)) {
        return Some(("not enough memory", MEMORY_HINT));
    }
    let unordered = what.contains("does not have a deterministic implementation");
    unordered.then_some(("no deterministic form", "; it runs without --deterministic"))
}

/// What a panic says, in one line: LibTorch's messages carry a C++ stack.
pub fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic_message(panic);
    let text = text.split("\\n").next().unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// An error and its causes in one line, nothing twice.
pub fn describe(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let text = lines.collect::<Vec<_>>().join(" ");
        match parts.last() {
            // Many errors tell their cause themselves, and their file as well.
            Some(last) if last.contains(&text) => continue,
            Some(last) if text.starts_with(last.as_str()) => drop(parts.pop()),
            _ => {}
        }
        parts.push(text);
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use data2vec_core::Error;

    #[test]
    fn nothing_is_said_twice() {
        let full = std::io::Error::other("disk full");
        let error = Err::<(), _>(Error::io("a.wav", full)).context("a.wav").context("step 4");
        assert_eq!(describe(&error.unwrap_err()), "step 4: a.wav: disk full");
        let error = anyhow::anyhow!("line 1\n  |\n  | x\n").context("recipe.toml");
        assert_eq!(describe(&error), "recipe.toml: line 1 | | x");
    }

    #[test]
    fn panics_are_one_line() {
        let of = |text: &str| message(&text.to_owned());
        assert_eq!(of("shape [2] is not [3]"), "shape [2] is not [3]");
        assert_eq!(of("Torch(\"no\\nException raised from\")"), "Torch(\"no");
        assert_eq!(message(&"first\nsecond"), "first");
        assert_eq!(message(&7), "no message");

        let code = |work: fn() -> Result<ExitCode>| format!("{:?}", guarded(work));
        let same = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(|| Ok(ExitCode::from(130))), same(130));
        assert_eq!(code(|| anyhow::bail!("no")), same(1));
        assert_eq!(code(|| panic!("no")), same(PANIC));
        assert_eq!(code(|| panic!("CUDA out of memory")), same(1));
        let unordered = "put_ does not have a deterministic implementation, but you set it";
        assert_eq!(hint(unordered).map(|(kind, _)| kind), Some("no deterministic form"));
        assert_eq!(hint("another"), None);
    }
}
