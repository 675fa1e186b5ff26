//! From log-probabilities of labels, frame by frame, to words: connectionist temporal classification
//! (Graves et al. 2006), decoded.
//!
//! Frames say one label each; equal neighbours count once, and the blank, label 0, parts labels that
//! are to count twice. [`greedy`] takes each frame's best label, [`BeamSearch`] adds up all ways to
//! say a text and weighs texts with a language model. Neither needs LibTorch.

mod beam;
mod greedy;
mod hypothesis;
mod lexicon;
mod trace;

use std::collections::HashMap;

use data2vec_core::{Error, Result};
use ndarray::ArrayView2;

pub use beam::{BeamConfig, BeamSearch};
pub use greedy::greedy;
pub use lexicon::Lexicon;

/// The blank's label.
pub const BLANK: usize = 0;
/// What the label between words is called.
pub const SEPARATOR: &str = "|";
/// What the label for everything without one is called.
pub const UNKNOWN: &str = "<unk>";
/// The first labels of every vocabulary, in order.
pub const SPECIAL: [&str; 5] = ["<pad>", "<s>", "</s>", UNKNOWN, SEPARATOR];
/// How an unknown symbol is shown.
const SHOWN_UNKNOWN: &str = "\u{fffd}";

/// What the outputs of a recogniser mean, the blank first.
///
/// Without a label [`SEPARATOR`] every symbol is a word of its own, and texts have no spaces.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    names: Vec<String>,
    numbers: HashMap<String, usize>,
    separator: Option<usize>,
}

impl Labels {
    /// Labels in the order of the outputs.
    ///
    /// # Errors
    /// [`Error::Config`] if there is none besides the blank, or one stands there twice.
    pub fn new(names: Vec<String>) -> Result<Self> {
        if names.len() < 2 {
            return Err(Error::config("labels", "a blank and one label more are needed at least"));
        }
        let mut numbers = HashMap::with_capacity(names.len());
        for (number, name) in names.iter().enumerate() {
            if numbers.insert(name.clone(), number).is_some() {
                return Err(Error::config("labels", format!("{name:?} stands there twice")));
            }
        }
        let separator = numbers.get(SEPARATOR).copied().filter(|&number| number != BLANK);
        Ok(Self { names, numbers, separator })
    }

    /// The labels in the order of the outputs.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The label between words, if there is one.
    pub fn separator(&self) -> Option<usize> {
        self.separator
    }

    /// The label called `name`, unless it is the blank.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied().filter(|&number| number != BLANK)
    }

    /// What a label adds to a word; nothing for the blank, the separator and the ends of sentences.
    fn shown(&self, label: usize) -> Option<&str> {
        match self.names[label].as_str() {
            _ if label == BLANK || Some(label) == self.separator => None,
            "<s>" | "</s>" => None,
            UNKNOWN => Some(SHOWN_UNKNOWN),
            name => Some(name),
        }
    }

    /// What stands between words.
    fn space(&self) -> &'static str {
        if self.separator.is_some() { " " } else { "" }
    }

    fn check(&self, log_probs: &ArrayView2<f32>) -> Result<()> {
        let (frames, columns) = log_probs.dim();
        if columns != self.names.len() {
            let labels = self.names.len();
            return Err(Error::Input(format!("{columns} outputs a frame, but {labels} labels")));
        }
        // Minus infinity is a probability of 0.
        match log_probs.indexed_iter().find(|(_, x)| x.is_nan() || **x == f32::INFINITY) {
            Some(((frame, _), x)) => {
                Err(Error::Input(format!("frame {frame} of {frames} has the log-probability {x}")))
            }
            None => Ok(()),
        }
    }
}

/// A word and where it was said.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedWord {
    /// The word.
    pub text: String,
    /// First frame of its first symbol.
    pub start: usize,
    /// Frame after the last one of its last symbol.
    pub end: usize,
    /// How sure the recogniser is, 0 to 1: the geometric mean, over its symbols, of each symbol's
    /// highest probability in its frames.
    pub score: f32,
}

/// A text that log-probabilities were decoded to.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Its words, one after the other.
    pub words: Vec<DecodedWord>,
    /// The words with what stands between them.
    pub text: String,
    /// By what texts are ranked: natural logarithm of a probability, and what [`BeamConfig`] adds.
    pub score: f64,
}
