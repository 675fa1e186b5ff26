//! Errors, with the location of the problem.

use std::path::{Path, PathBuf};

/// Error of this crate. Messages are one line: where, cause, remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A shard, or a location that should have shards, is unusable.
    #[error("{location}: {reason}")]
    Shard {
        /// The shard or location, and the position in it.
        location: String,
        /// Cause and remedy.
        reason: String,
    },
    /// A setting is invalid.
    #[error("{key}: {reason}")]
    Config {
        /// The key of [`SourceConfig`](crate::SourceConfig).
        key: &'static str,
        /// Cause and remedy.
        reason: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn shard(location: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Shard { location: location.into(), reason: reason.into() }
    }

    pub(crate) fn config(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { key, reason: reason.into() }
    }
}
