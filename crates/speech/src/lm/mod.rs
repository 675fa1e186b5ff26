//! n-gram language models: ARPA files and binary files of KenLM.

mod arpa;
mod kenlm;
mod ngrams;

use std::io::Read;
use std::path::Path;
use std::{fmt, fs};

use data2vec_core::{Error, Result};
use ngrams::{NGrams, UNKNOWN, UNKNOWN_PROB};

const BEGIN: &str = "<s>";
const END: &str = "</s>";

/// A back-off n-gram model. All logarithms are to base 10, as in the files.
///
/// The probability of a word is that of the longest known n-gram that ends in it, times the back-off
/// weights of the longer contexts.
pub struct LanguageModel {
    ngrams: Box<dyn NGrams>,
    begin: u32,
    end: u32,
}

/// Context of a language model: the last words, newest first, each with the back-off weight of the
/// context that begins with it.
///
/// The default is the empty context.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LmState {
    context: Vec<(u32, f32)>,
}

impl LanguageModel {
    /// Loads an ARPA file, plain or gzipped, or a binary file of KenLM (probing hash tables, or a
    /// trie without quantization and compressed pointers). The format is detected from the content.
    ///
    /// The model takes about the size of the file in memory, somewhat more for ARPA files.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the file cannot be read, and [`Error::File`], with the line of an ARPA
    /// file, if it is invalid.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Checked before opening: opening a named pipe without a writer would block.
        let meta = fs::metadata(path).map_err(|source| Error::io(path, source))?;
        if !meta.is_file() {
            return Err(Error::file(path, "is not a file"));
        }
        let mut start = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(kenlm::MAGIC.len() as u64).read_to_end(&mut start))
            .map_err(|source| Error::io(path, source))?;
        let ngrams: Box<dyn NGrams> =
            if start == kenlm::MAGIC { kenlm::read(path)? } else { Box::new(arpa::read(path)?) };
        let (begin, end) = (ngrams.index(BEGIN), ngrams.index(END));
        for (name, word) in [(BEGIN, begin), (END, end)] {
            if word == UNKNOWN {
                return Err(Error::file(
                    path,
                    format!("lacks the word {name}, which every model must have"),
                ));
            }
        }
        Ok(Self { ngrams, begin, end })
    }

    /// Returns the number of words in the longest n-gram.
    pub fn order(&self) -> usize {
        self.ngrams.order()
    }

    /// Returns true if the model knows the word.
    pub fn contains(&self, word: &str) -> bool {
        self.ngrams.index(word) != UNKNOWN
    }

    /// Returns the state at the beginning of a sentence.
    pub fn begin(&self) -> LmState {
        self.score(&LmState::default(), self.begin).1
    }

    /// Returns the log10 probability of a word after `state`, and the state after it.
    pub fn word(&self, state: &LmState, word: &str) -> (f32, LmState) {
        self.score(state, self.ngrams.index(word))
    }

    /// Returns the log10 probability that a sentence ends after `state`.
    pub fn end(&self, state: &LmState) -> f32 {
        self.score(state, self.end).0
    }

    /// Returns the log10 probability of the words in `text`, after the beginning of a sentence if
    /// `begin`, and including its end if `end`; equals `score(text, bos, eos)` of KenLM's Python
    /// package.
    pub fn sentence(&self, text: &str, begin: bool, end: bool) -> f32 {
        let mut state = if begin { self.begin() } else { LmState::default() };
        let mut total = 0.0;
        for word in text.split_ascii_whitespace() {
            let (log10, next) = self.word(&state, word);
            total += log10;
            state = next;
        }
        if end { total + self.end(&state) } else { total }
    }

    fn score(&self, state: &LmState, word: u32) -> (f32, LmState) {
        let (weights, mut node) = self.ngrams.unigram(word);
        let mut prob = weights.prob.unwrap_or(UNKNOWN_PROB);
        let mut context = Vec::with_capacity(self.ngrams.order());
        let mut used = 0; // words of the state in the longest known n-gram
        if self.ngrams.order() > 1 {
            context.push((word, weights.backoff));
        }
        for (at, &(before, _)) in state.context.iter().enumerate() {
            let Some((weights, next)) = self.ngrams.extend(node, at + 1, before) else { break };
            node = next;
            if let Some(longer) = weights.prob {
                (prob, used) = (longer, at + 1);
            }
            if at + 2 < self.ngrams.order() {
                context.push((before, weights.backoff));
            }
        }
        prob += state.context[used..].iter().map(|(_, backoff)| backoff).sum::<f32>();
        (prob, LmState { context })
    }
}

impl fmt::Debug for LanguageModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LanguageModel").field("order", &self.order()).finish_non_exhaustive()
    }
}
