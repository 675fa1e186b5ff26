//! Examples as they are stored, before anything is selected, cropped or mixed.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

/// The files at a path, to be inspected one by one.
pub struct RawDataset {
    /// Plural name of the examples, as in "recordings".
    pub noun: &'static str,
    /// Number of files, or of examples in one file.
    pub files: usize,
    /// What is measured of each example.
    pub measures: &'static [Measure],
    /// What a recipe does with examples whose first measure is in a range.
    pub filters: Vec<(String, Range<f64>)>,
    /// Further facts, one line each.
    pub notes: Vec<String>,
    /// Reads a file completely and describes it.
    pub inspect: Box<dyn Fn(usize) -> Result<FileStats> + Send + Sync>,
    /// Prepares a file for packing, or says why the data cannot be packed.
    pub shard_entry: std::result::Result<ShardEntries, String>,
    /// Unreadable files, `path: reason` each.
    pub broken: Vec<String>,
}

impl fmt::Debug for RawDataset {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "RawDataset({} {}, {} broken)", self.files, self.noun, self.broken.len())
    }
}

/// A measure of examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Name with its unit.
    pub name: &'static str,
    /// Whether the sum over examples has a meaning.
    pub has_total: bool,
}

/// Prepares files for packing, by index.
pub type ShardEntries = Box<dyn Fn(usize) -> Result<ShardEntry> + Send + Sync>;

/// A file to be packed into a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardEntry {
    /// Relative path, with `/` between its parts.
    pub path: String,
    /// Extension, without the dot.
    pub field: String,
    /// Content of the file.
    pub content: Vec<u8>,
    /// Further fields of the example: names and contents.
    pub sidecars: Vec<(&'static str, String)>,
}

/// Statistics of one file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileStats {
    /// Kind of its examples, as in "16000 Hz, 1 channel".
    pub kind: String,
    /// Measures of its examples, one example after another.
    pub sizes: Vec<f64>,
    /// Number of examples per label.
    pub labels: BTreeMap<String, u64>,
    /// Unusable parts, each with place and reason.
    pub broken: Vec<String>,
}

/// Returns a relative path with `/` between its parts.
///
/// # Errors
/// [`Error::File`] if the path is not UTF-8.
pub fn portable_path(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(name) => Ok(name.replace('\\', "/").trim_start_matches('/').to_owned()),
        None => Err(Error::file(path, "its name is not UTF-8; rename it")),
    }
}
