//! The error type shared by all data2vec crates.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// An error of any data2vec crate; the message names the file, key or tensor and the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing a file or directory failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The content of a file is invalid.
    #[error("{}: {reason}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong, and where in the file.
        reason: String,
    },
    /// A setting is invalid, alone or combined with another.
    #[error("{key}: {reason}")]
    Config {
        /// The key as written in a recipe: `section.key`.
        key: String,
        /// Why the value is invalid, and which values are accepted.
        reason: String,
    },
    /// A batch or array has the wrong shape or content.
    #[error("bad input: {0}")]
    Input(String),
    /// A tensor of a checkpoint is missing or has another shape.
    #[error("{}: tensor `{name}`: {reason}", path.display())]
    Tensor {
        /// File that holds the tensor.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// The expected and the actual state.
        reason: String,
    },
    /// More examples are unreadable than the caller allows.
    #[error("{count} unusable examples, at most {limit} are allowed; the last one: {last}")]
    TooManyBad {
        /// Number of unusable examples so far.
        count: usize,
        /// Largest number that the caller allows.
        limit: usize,
        /// Error of the last one.
        last: String,
    },
    /// Data cannot be read from its source; the message names the source.
    #[error("{0}")]
    Data(Box<dyn std::error::Error + Send + Sync>),
    /// The data loader cannot continue.
    #[error("data loader: {0}")]
    Loader(String),
    /// Communication between ranks failed: a rank exited, timed out or was started differently.
    #[error("{0}")]
    Dist(data2vec_torch_ext::dist::Error),
    /// A LibTorch operation failed.
    #[error("LibTorch: {}", first_line(.0))]
    Torch(#[from] tch::TchError),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Creates an [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// Creates an [`Error::File`] for `path`.
    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), reason: reason.into() }
    }

    /// Creates an [`Error::Data`].
    pub fn data(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Data(Box::new(error))
    }

    /// Creates an [`Error::Config`] for `key`.
    pub fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { key: key.into(), reason: reason.into() }
    }
}

/// Runs a decoder on the file at `path` and turns a panic of the decoder into an [`Error::File`].
///
/// Files may come from anywhere, and third-party decoders can panic on malformed bytes.
///
/// # Errors
/// Returns the error of `work`, or [`Error::File`] if it panics.
pub fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic_message(panic.as_ref()).lines().next().unwrap_or_default();
        Err(Error::file(path, format!("decoding failed ({message})")))
    })
}

/// Returns the message of a panic payload.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Returns the first line of a LibTorch message; a C++ stack trace follows it.
fn first_line(error: &tch::TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
