//! The interface of n-gram tables, which the file formats implement.

/// Id of all words that the model does not know.
pub(super) const UNKNOWN: u32 = 0;
/// log10 probability of unknown words if the model has none, as in KenLM.
pub(super) const UNKNOWN_PROB: f32 = -100.0;

/// A table of n-grams that is searched from the last word backwards.
pub(super) trait NGrams: Send + Sync {
    /// Returns the number of words in the longest n-gram.
    fn order(&self) -> usize;

    /// Returns the id of a word; [`UNKNOWN`] if there is none.
    fn index(&self, word: &str) -> u32;

    /// Returns the unigram of a word.
    fn unigram(&self, word: u32) -> (Weights, Node);

    /// Returns the n-gram that extends `node`, which has `length` words, by one word in front.
    fn extend(&self, node: Node, length: usize, word: u32) -> Option<(Weights, Node)>;
}

/// Location of an n-gram in its table.
#[derive(Clone, Copy)]
pub(super) struct Node(pub(super) u64, pub(super) u64);

/// log10 weights of an n-gram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weights {
    /// `None` if the n-gram exists only as the end of longer ones.
    pub(super) prob: Option<f32>,
    pub(super) backoff: f32,
}
