//! A shard: its location, format and version.

use serde::{Deserialize, Serialize};

/// File format of a shard, by its file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    Tar,
    JsonLines,
    Parquet,
}

impl Format {
    pub const SUFFIXES: &str =
        ".tar, .tar.gz, .tgz, .jsonl, .ndjson, .jsonl.gz, .ndjson.gz, .parquet";

    /// Returns the format of a file name, and whether the whole file is gzipped.
    pub fn of(name: &str) -> Option<(Self, bool)> {
        let name = name.to_ascii_lowercase();
        let (name, gzip) = match name.strip_suffix(".gz") {
            Some(name) => (name, true),
            None => (&name[..], false),
        };
        Some(match name.rsplit_once('.')?.1 {
            "tar" => (Self::Tar, gzip),
            "tgz" if !gzip => (Self::Tar, true),
            "jsonl" | "ndjson" => (Self::JsonLines, gzip),
            "parquet" if !gzip => (Self::Parquet, false),
            _ => return None,
        })
    }
}

/// A shard: a file with examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shard {
    /// Path below the given directory, or the file name: stays the same when all shards move.
    pub name: String,
    /// Path or URL.
    #[serde(rename = "place")]
    pub location: String,
    pub format: Format,
    /// True if the whole file is gzipped.
    pub gzip: bool,
    pub bytes: u64,
    /// Modification time; the content is assumed unchanged if it and the other fields are equal.
    pub stamp: String,
    /// ETag of an object store.
    pub tag: Option<String>,
}

/// Returns true for URLs.
pub(crate) fn is_remote(location: &str) -> bool {
    location.contains("://")
}
