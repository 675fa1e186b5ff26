//! Examples as they are stored, before anything is chosen, cut or mixed.

use std::collections::BTreeMap;
use std::ops::Range;

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
