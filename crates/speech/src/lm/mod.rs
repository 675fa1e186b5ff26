//! n-gram language models: ARPA files and KenLM's binary ones.

mod arpa;
mod kenlm;

use std::{fmt, fs, io::Read, path::Path};

use data2vec_core::{Error, Result};

/// Word 0: every word that the model does not know.
const UNKNOWN: u32 = 0;
/// The logarithm to base 10 of an unknown word where the model does not tell it, as in KenLM.
const UNKNOWN_PROB: f32 = -100.0;
const BEGIN: &str = "<s>";
const END: &str = "</s>";

/// A back-off n-gram model. All its logarithms are to base 10, as in its files.
///
/// The probability of a word is that of the longest n-gram known that ends in it, times the back-off
/// weights of the longer contexts that were not found.
pub struct LanguageModel {
    ngrams: Box<dyn NGrams>,
    begin: u32,
    end: u32,
}

/// What a model keeps in mind: the last words, the newest first, each with the back-off weight of the
/// context from it on.
///
/// The default is to know nothing of what came before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LmState {
    context: Vec<(u32, f32)>,
}

/// n-grams, found from their last word on.
trait NGrams: Send + Sync {
    /// Words in the longest n-gram.
    fn order(&self) -> usize;

    /// A word's number; [`UNKNOWN`] if there is none.
    fn index(&self, word: &str) -> u32;

    /// The n-gram of a word alone.
    fn unigram(&self, word: u32) -> (Weights, Node);

    /// The n-gram with one word more in front than `node`, which has `length` words.
    fn extend(&self, node: Node, length: usize, word: u32) -> Option<(Weights, Node)>;
}

/// Where an n-gram stands in its model.
#[derive(Clone, Copy)]
struct Node(u64, u64);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Weights {
    /// `None` if the n-gram is only there as the end of longer ones.
    prob: Option<f32>,
    backoff: f32,
}

impl LanguageModel {
    /// Reads an ARPA file, plain or gzipped, or a binary file of KenLM (probing hash tables, or a
    /// trie without quantization and without compressed pointers). Its content tells which it is.
    ///
    /// A file takes about its own size in memory, an ARPA file somewhat more.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`], the latter with the line of an ARPA file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Asked before it is opened: a pipe that nobody writes to would be waited for.
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
                return Err(Error::file(path, format!("does not know {name}, as models must")));
            }
        }
        Ok(Self { ngrams, begin, end })
    }

    /// Words in its longest n-gram.
    pub fn order(&self) -> usize {
        self.ngrams.order()
    }

    /// Whether it knows the word.
    pub fn contains(&self, word: &str) -> bool {
        self.ngrams.index(word) != UNKNOWN
    }

    /// The state at the beginning of a sentence.
    pub fn begin(&self) -> LmState {
        self.score(&LmState::default(), self.begin).1
    }

    /// log10 of a word's probability after `state`, and the state after it.
    pub fn word(&self, state: &LmState, word: &str) -> (f32, LmState) {
        self.score(state, self.ngrams.index(word))
    }

    /// log10 of the probability that a sentence ends after `state`.
    pub fn end(&self, state: &LmState) -> f32 {
        self.score(state, self.end).0
    }

    /// log10 of the probability of words with spaces between them, from the beginning of a sentence if
    /// `begin`, and with its end if `end`: as `score(text, bos, eos)` of KenLM's Python package.
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
        let mut used = 0; // words of the state that the longest n-gram found contains
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
