//! Examples as they are stored, before anything is chosen, cut or mixed.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

/// What is at a place, to be looked at one file after the other.
pub struct Stored {
    /// What examples are called.
    pub noun: &'static str,
    /// How many files there are, or images in one file.
    pub files: usize,
    /// What is measured of each example.
    pub measures: &'static [Measure],
    /// What a recipe does to examples whose first measure is in a range.
    pub fates: Vec<(String, Range<f64>)>,
    /// What else is known.
    pub notes: Vec<String>,
    /// Reads all of a file.
    pub look: Box<dyn Fn(usize) -> data2vec_core::Result<Sight> + Send + Sync>,
    /// A file as it can be packed, or why none can be.
    pub parcel: Result<Parcels, String>,
    /// What could not be looked into, each with its reason.
    pub broken: Vec<String>,
}

/// What is measured.
pub struct Measure {
    /// With its unit.
    pub name: &'static str,
    /// Whether a sum over examples means something.
    pub adds_up: bool,
}

/// Files on their way into shards, by number.
pub type Parcels = Box<dyn Fn(usize) -> data2vec_core::Result<Parcel> + Send + Sync>;

/// A file on its way into a shard.
pub struct Parcel {
    /// Relative, with `/` between its parts.
    pub path: String,
    /// What its name ends in, after a dot.
    pub field: String,
    /// All of it.
    pub content: Bytes,
    /// Other fields of its example: names and contents.
    pub beside: Vec<(&'static str, String)>,
}

/// What is in a file.
#[derive(Default)]
pub struct Sight {
    /// Of which kind its examples are.
    pub kind: String,
    /// The measures of its examples, one example after the other.
    pub sizes: Vec<f64>,
    /// How many examples there are of each label.
    pub labels: BTreeMap<String, u64>,
    /// What in it is of no use, each with its place and reason.
    pub broken: Vec<String>,
}
