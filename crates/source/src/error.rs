//! What can go wrong, with the place.

use std::path::{Path, PathBuf};

/// One line each: what, where, what to do.
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
    /// A shard, or a place where shards should be, cannot be used as it is.
    #[error("{place}: {reason}")]
    Shard {
        /// The shard or the place, and where in it.
        place: String,
        /// What is wrong with it, and what would do.
        reason: String,
    },
    /// A setting is impossible.
    #[error("{key}: {reason}")]
    Config {
        /// The key of [`SourceConfig`](crate::SourceConfig).
        key: &'static str,
        /// Why it cannot be, and what would do.
        reason: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn shard(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Shard { place: place.into(), reason: reason.into() }
    }

    pub(crate) fn config(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { key, reason: reason.into() }
    }
}
