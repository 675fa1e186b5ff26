//! Labels of the outputs of a CTC head.

use std::collections::HashMap;

use data2vec_core::{Error, Result};
use ndarray::ArrayView2;

/// Id of the blank.
pub const BLANK: usize = 0;
/// Name of the label between words.
pub const SEPARATOR: &str = "|";
/// Name of the label for unknown symbols.
pub const UNKNOWN: &str = "<unk>";
/// First labels of every vocabulary, in order.
pub const SPECIAL: [&str; 5] = ["<pad>", "<s>", "</s>", UNKNOWN, SEPARATOR];
/// Text of an unknown symbol.
const UNKNOWN_TEXT: &str = "\u{fffd}";

/// Labels of the outputs of a CTC head, the blank first.
///
/// Without a label [`SEPARATOR`], every symbol is a word and texts have no spaces.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    names: Vec<String>,
    ids: HashMap<String, usize>,
    separator: Option<usize>,
}

impl Labels {
    /// Creates labels from their names in the order of the outputs.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if there is no label besides the blank, or a name occurs twice.
    pub fn new(names: Vec<String>) -> Result<Self> {
        if names.len() < 2 {
            return Err(Error::config("labels", "must be a blank and at least one more label"));
        }
        let mut ids = HashMap::with_capacity(names.len());
        for (id, name) in names.iter().enumerate() {
            if ids.insert(name.clone(), id).is_some() {
                return Err(Error::config("labels", format!("{name:?} occurs twice")));
            }
        }
        let separator = ids.get(SEPARATOR).copied().filter(|&id| id != BLANK);
        Ok(Self { names, ids, separator })
    }

    /// Returns the names in the order of the outputs.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the id of the label between words, if there is one.
    pub fn separator(&self) -> Option<usize> {
        self.separator
    }

    /// Returns the id of the label `name`; `None` for the blank.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.ids.get(name).copied().filter(|&id| id != BLANK)
    }

    /// Returns true if `label` is [`UNKNOWN`].
    pub(super) fn is_unknown(&self, label: usize) -> bool {
        self.names[label] == UNKNOWN
    }

    /// Returns the text that a label adds to a word; `None` for the blank, the separator and the
    /// sentence boundaries.
    pub(super) fn text(&self, label: usize) -> Option<&str> {
        match self.names[label].as_str() {
            _ if label == BLANK || Some(label) == self.separator => None,
            "<s>" | "</s>" => None,
            UNKNOWN => Some(UNKNOWN_TEXT),
            name => Some(name),
        }
    }

    /// Returns the text between words.
    pub(super) fn space(&self) -> &'static str {
        if self.separator.is_some() { " " } else { "" }
    }

    /// Checks that log-probabilities `(T, C)` fit the labels.
    pub(super) fn check(&self, log_probs: &ArrayView2<f32>) -> Result<()> {
        let (frames, columns) = log_probs.dim();
        if columns != self.names.len() {
            let labels = self.names.len();
            return Err(Error::Input(format!("{columns} outputs per frame, but {labels} labels")));
        }
        // Minus infinity is valid: a probability of 0.
        match log_probs.indexed_iter().find(|(_, x)| x.is_nan() || **x == f32::INFINITY) {
            Some(((frame, _), x)) => {
                Err(Error::Input(format!("frame {frame} of {frames} has log-probability {x}")))
            }
            None => Ok(()),
        }
    }
}
