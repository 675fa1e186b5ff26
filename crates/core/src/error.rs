//! One error type for the family of crates.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// What can go wrong, each variant with the place and a reason one can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file was read, but what it holds is of no use.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A setting is impossible, alone or together with another.
    #[error("{key}: {reason}")]
    Config {
        /// The key, as it stands in a recipe: `section.key`.
        key: String,
        /// Why it cannot be, and what would do.
        reason: String,
    },
    /// A batch or an array of the wrong shape or content.
    #[error("bad input: {0}")]
    Input(String),
    /// A tensor of a checkpoint is missing or has another shape.
    #[error("{}: tensor `{name}`: {reason}", path.display())]
    Tensor {
        /// The file of tensors.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// More examples of a data set were unusable than the caller allows.
    #[error("{count} unusable examples, {limit} are allowed; the last one: {last}")]
    TooManyBad {
        /// Unusable examples so far.
        count: usize,
        /// How many the caller allows.
        limit: usize,
        /// The last one's own error.
        last: String,
    },
    /// Data cannot be had from where they are; the text tells the place.
    #[error("{0}")]
    Data(Box<dyn std::error::Error + Send + Sync>),
    /// The data loader cannot go on.
    #[error("data loader: {0}")]
    Loader(String),
    /// Another process of this run is gone, does not answer, or was started in another way.
    #[error("{0}")]
    Dist(data2vec_torch_ext::dist::Error),
    /// LibTorch refused an operation.
    #[error("LibTorch: {}", first_line(.0))]
    Torch(#[from] tch::TchError),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] at `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// An [`Error::File`] at `path`.
    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), reason: reason.into() }
    }

    /// An [`Error::Data`].
    pub fn data(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Data(Box::new(error))
    }

    /// An [`Error::Config`] of `key`.
    pub fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { key: key.into(), reason: reason.into() }
    }
}

/// Has `work` read what is in the file at `path`, with another crate's help: should that panic on bytes that
/// may come from anywhere, it is the file's error.
///
/// # Errors
/// What `work` returns, or [`Error::File`].
pub fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let what = panic_message(panic.as_ref()).lines().next().unwrap_or_default();
        Err(Error::file(path, format!("the decoder gave up on its content ({what})")))
    })
}

/// What a panic says.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// LibTorch's messages carry a C++ stack; its first line says what happened.
fn first_line(error: &tch::TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
