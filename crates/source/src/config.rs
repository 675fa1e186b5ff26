//! Settings of a source.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Locations of shards, and limits for reading them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Directories (searched recursively), files, or patterns with `{000..017}`, `{a,b}`, `*` and
    /// `?`.
    ///
    /// `.txt` and `.list` files name one of these per line, relative to the file. Locations are
    /// local paths or URLs `s3://BUCKET/`, `gs://BUCKET/`, `az://CONTAINER/` or `https://`;
    /// `https://` supports neither directories nor globs.
    pub shards: Vec<String>,
    /// Maximum bytes of the disk cache, shared by all processes that use its directory. It holds
    /// blocks of remote shards and uncompressed copies of gzipped shards.
    pub cache_bytes: u64,
    /// Bytes per request to a remote store.
    pub block_bytes: u64,
    /// Timeout of a request in seconds.
    pub timeout_seconds: u64,
    /// Maximum number of retries of a failed request, after 0.1 s, 0.2 s, … up to 20 s.
    pub retries: u32,
    /// Maximum bytes of decoded Parquet row groups in memory; the newest is kept whatever its size.
    pub memory_bytes: u64,
}

impl Default for SourceConfig {
    /// No shards, 32 GiB of disk, 1 GiB of memory, 4 MiB blocks, 60 s timeout, 8 retries.
    fn default() -> Self {
        Self {
            shards: Vec::new(),
            cache_bytes: 32 << 30,
            block_bytes: 4 << 20,
            timeout_seconds: 60,
            retries: 8,
            memory_bytes: 1 << 30,
        }
    }
}

impl SourceConfig {
    /// Checks the settings without accessing shards.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn validate(&self) -> Result<()> {
        if self.shards.is_empty() {
            return Err(Error::config("shards", "must name at least one location"));
        }
        if !(1 << 12..=1 << 30).contains(&self.block_bytes) {
            return Err(Error::config("block_bytes", "must be between 4096 and 2^30"));
        }
        if self.cache_bytes < self.block_bytes {
            return Err(Error::config("cache_bytes", "must be at least block_bytes"));
        }
        if self.timeout_seconds == 0 {
            return Err(Error::config("timeout_seconds", "must be at least 1"));
        }
        Ok(())
    }
}
