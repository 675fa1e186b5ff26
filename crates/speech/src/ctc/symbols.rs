//! Decoder of CTC outputs for evaluations.

use data2vec_core::Result;
use data2vec_core::eval::score::SequenceDecoder;
use ndarray::ArrayView2;

use super::beam::BeamSearch;
use super::greedy::greedy;
use super::labels::{Labels, SEPARATOR};

/// A [`SequenceDecoder`]: greedy, or a beam search.
#[derive(Debug)]
pub struct SymbolDecoder {
    labels: Labels,
    search: Option<BeamSearch>,
}

impl SymbolDecoder {
    /// Creates a greedy decoder.
    pub fn greedy(labels: Labels) -> Self {
        Self { labels, search: None }
    }

    /// Creates a decoder with a beam search over the same labels.
    pub fn with_search(labels: Labels, search: BeamSearch) -> Self {
        Self { labels, search: Some(search) }
    }
}

impl SequenceDecoder for SymbolDecoder {
    fn decode(&self, log_probs: ArrayView2<f32>) -> Result<String> {
        match &self.search {
            Some(search) => Ok(search.decode(log_probs)?.swap_remove(0).text),
            None => Ok(greedy(log_probs, &self.labels)?.text),
        }
    }

    fn spell(&self, ids: &[i64]) -> String {
        let letters: String =
            ids.iter().map(|&id| self.labels.names()[id as usize].as_str()).collect();
        letters.split(SEPARATOR).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }
}
