//! Terminal output: messages, results, progress, and one line for each error.

mod screen;
mod view;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::fmt::{Arguments, Debug, Write as _};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Result, ensure};
use data2vec_core::Progress;
use data2vec_source::watch_indexing;
use data2vec_torch_ext::dist::Launch;
use data2vec_train::Observer;
use data2vec_train::log::Status;
use data2vec_train::messages::{describe, describe_panic};
use data2vec_train::metrics::Line;
use indicatif::{ProgressBar, ProgressStyle};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, warn};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, registry};

pub use view::View;

/// Prints a result to standard output.
macro_rules! out {
    () => { $crate::terminal::print_result(format_args!("")) };
    ($($arg:tt)*) => { $crate::terminal::print_result(format_args!($($arg)*)) };
}

pub(crate) use out;

/// Rank and world size of a training run on several ranks.
static RANK: OnceLock<(usize, usize)> = OnceLock::new();

/// Whether messages are suppressed. Errors and results never are.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether standard output is reserved for JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Starts to print messages of the library, and the progress of indexing shards.
pub fn init() -> Result<()> {
    tracing::subscriber::set_global_default(registry().with(Messages))?;
    let bar = Mutex::new(Bar::default());
    watch_indexing(move |data2vec_source::Progress { shards, total, .. }| {
        let bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        bar.update(Progress { what: "shards indexed", done: shards as u64, total: total as u64 });
        if shards == total {
            bar.clear();
        }
    });
    Ok(())
}

/// Suppresses messages (`quiet`), or reserves standard output for JSON lines (`json`): results then
/// go to standard error.
///
/// Called by commands that run on several ranks: from here on only rank 0 prints messages and
/// results, and errors name their rank. Other commands print on every rank, such as `classify` in a
/// Slurm job.
pub fn configure(quiet: bool, json: bool) {
    if let Ok(Some(launch)) = Launch::from_env()
        && launch.size > 1
    {
        let _ = RANK.set((launch.rank, launch.size)); // called once
    }
    QUIET.store(quiet, Ordering::Relaxed);
    JSON.store(json, Ordering::Relaxed);
}

/// Whether this process is rank 0, the one that prints.
pub fn is_rank0() -> bool {
    RANK.get().is_none_or(|(rank, _)| *rank == 0)
}

/// Whether this process prints messages.
fn prints_messages() -> bool {
    is_rank0() && !QUIET.load(Ordering::Relaxed)
}

/// Prints events of the library to standard error, above redrawn lines.
struct Messages;

impl<S: Subscriber> Layer<S> for Messages {
    fn on_event(&self, event: &Event, _: Context<S>) {
        // Events of dependencies are not for users.
        if !event.metadata().target().starts_with("data2vec") {
            return;
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        match *event.metadata().level() {
            Level::ERROR => print_error(&message.0),
            Level::WARN => print_message(format_args!("warning: {}", message.0)),
            Level::INFO => print_message(format_args!("{}", message.0)),
            _ => {}
        }
    }
}

/// Collects the message of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}"); // strings accept all writes
        }
    }
}

/// See [`out!`]. A closed pipe is not an error.
pub fn print_result(text: Arguments) {
    match JSON.load(Ordering::Relaxed) {
        true => print_message(text),
        false if is_rank0() => screen::above(|| drop(writeln!(std::io::stdout(), "{text}"))),
        false => {}
    }
}

/// Prints a line to standard error, unless messages are suppressed.
fn print_message(text: Arguments) {
    if prints_messages() {
        screen::above(|| drop(writeln!(std::io::stderr(), "{text}")));
    }
}

/// Prints an error in one line, on any rank.
fn print_error(message: &str) {
    let rank = RANK.get().map_or(String::new(), |(rank, size)| format!("rank {rank} of {size}: "));
    // In one write: other ranks may print to the same terminal.
    let line = format!("error: {rank}{message}\n");
    screen::above(|| drop(std::io::stderr().write_all(line.as_bytes())));
}

/// Prints an error with its causes and a hint, in one line.
pub fn fail(error: &anyhow::Error) {
    let message = describe(error);
    let hint = hint(&message).map_or("", |(_, hint)| hint);
    print_error(&format!("{message}{hint}"));
}

/// Writes each line of metrics to standard output, as JSON.
pub struct JsonLines;

impl Observer for JsonLines {
    fn line(&mut self, line: &Line, _: &Status) -> Result<()> {
        let text = serde_json::to_string(line)?;
        screen::above(|| drop(writeln!(std::io::stdout(), "{text}")));
        Ok(())
    }
}

/// A progress bar on standard error, drawn only on a terminal. It appears with the first update.
#[derive(Default)]
pub struct Bar(RefCell<Option<ProgressBar>>);

impl Bar {
    /// Shows progress.
    pub fn update(&self, Progress { what, done, total }: Progress) {
        if !prints_messages() {
            return;
        }
        let mut bar = self.0.borrow_mut();
        let bar = bar.get_or_insert_with(|| {
            let template = format!("{what} {{bar:24}} {{pos}}/{{len}} {{eta}} left");
            let style = ProgressStyle::with_template(&template);
            ProgressBar::new(total).with_style(style.unwrap_or(ProgressStyle::default_bar()))
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    /// Removes the bar.
    pub fn clear(&self) {
        if let Some(bar) = self.0.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

/// Applies `read` to each file and `write` to its result. Returns the number of unreadable files,
/// which are skipped with a warning.
///
/// # Errors
/// If the only file is unreadable, or `write` fails.
pub fn each_file<T>(
    files: &[PathBuf],
    bar: &ProgressBar,
    read: impl Fn(&Path) -> Result<T>,
    mut write: impl FnMut(&Path, T) -> Result<()>,
) -> Result<usize> {
    let mut failed = 0;
    for file in files {
        match read(file) {
            Ok(result) => write(file, result)?,
            Err(error) if files.len() > 1 => {
                failed += 1;
                bar.suspend(|| warn!("skipped {}", describe(&error)));
            }
            Err(error) => return Err(error),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(failed)
}

/// Checks that all files could be used.
///
/// # Errors
/// If `failed` of them could not.
pub fn check_failed(failed: usize, files: &[PathBuf]) -> Result<()> {
    ensure!(
        failed == 0,
        "{failed} of {} files could not be used; see the warnings above",
        files.len()
    );
    Ok(())
}

/// Exit code of a panic, the same as Rust's.
const PANIC: u8 = 101;

/// Runs the program. Turns an error or a panic into one line and an exit code.
///
/// Silences Rust's panic message: a caught panic, such as a decoder's on a damaged file, is
/// reported as that file's error.
pub fn guarded(work: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    let location = Arc::new(Mutex::new(String::new()));
    let last = Arc::clone(&location);
    std::panic::set_hook(Box::new(move |panic| {
        let at = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
        let trace = Backtrace::capture(); // only with RUST_BACKTRACE
        let trace = match trace.status() {
            BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        let mut location = last.lock().unwrap_or_else(PoisonError::into_inner);
        *location = at.unwrap_or_default() + &trace;
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
            let message = describe_panic(panic.as_ref());
            // tch panics on some errors of LibTorch that the user can avoid.
            if let Some((kind, hint)) = hint(&message) {
                print_error(&format!("{kind}: {message}{hint}"));
                return ExitCode::FAILURE;
            }
            let location = location.lock().unwrap_or_else(PoisonError::into_inner);
            print_error(&format!("internal error: {message}; please report it{location}"));
            ExitCode::from(PANIC)
        }
    }
}

/// What to do if memory does not suffice.
const MEMORY_HINT: &str = "; when training, lower train.batch (raise train.accumulate to keep the gradient), or \
                           try --set model.activation_checkpointing=true or --set model.precision=bf16 \
                           (pretrain --plan reports what fits); otherwise use fewer examples, smaller \
                           batches or shorter files";

/// Returns the cause of a known error message of LibTorch, and what to do.
fn hint(message: &str) -> Option<(&'static str, &'static str)> {
    if ["out of memory", "can't allocate memory"].iter().any(|words| message.contains(words)) {
        return Some(("not enough memory", MEMORY_HINT));
    }
    let is_nondeterministic = message.contains("does not have a deterministic implementation");
    is_nondeterministic.then_some(("no deterministic kernel", "; omit --deterministic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_maps_results_to_exit_codes() {
        let code = |work: fn() -> Result<ExitCode>| format!("{:?}", guarded(work));
        let expected = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(|| Ok(ExitCode::from(130))), expected(130));
        assert_eq!(code(|| anyhow::bail!("no")), expected(1));
        assert_eq!(code(|| panic!("no")), expected(PANIC));
        assert_eq!(code(|| panic!("CUDA out of memory")), expected(1));
    }

    #[test]
    fn explains_messages_of_libtorch() {
        let nondeterministic = "put_ does not have a deterministic implementation, but you set it";
        assert_eq!(hint(nondeterministic).map(|(kind, _)| kind), Some("no deterministic kernel"));
        assert_eq!(hint("another"), None);
    }
}
