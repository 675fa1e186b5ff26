//! Decoding of connectionist temporal classification (CTC; Graves et al. 2006): log-probabilities of
//! labels in each frame to words.
//!
//! A frame emits one label. Equal neighbours are merged, and the blank, label 0, separates equal
//! labels that are to count twice. [`greedy`] takes the best label of each frame, [`BeamSearch`] sums
//! over all alignments of a text and scores texts with a language model. Neither needs LibTorch.

mod beam;
mod decoded;
mod greedy;
mod hypothesis;
mod labels;
mod lexicon;
mod symbols;

pub use beam::{BeamConfig, BeamSearch};
pub use decoded::{Decoded, DecodedWord};
pub use greedy::greedy;
pub use labels::{BLANK, Labels, SEPARATOR, SPECIAL, UNKNOWN};
pub use lexicon::Lexicon;
pub use symbols::SymbolDecoder;
