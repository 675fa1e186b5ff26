//! A lexicon: the allowed words as a prefix tree of their spellings.

use std::collections::BTreeMap;
use std::path::Path;

use data2vec_core::{Error, Result};

use super::labels::{BLANK, Labels, SEPARATOR};
use crate::text_file::read_text;

/// Words and their spellings in labels.
#[derive(Clone, Debug)]
pub struct Lexicon {
    words: Vec<String>,
    nodes: Vec<Node>,
    left_out: usize,
}

#[derive(Clone, Debug, Default)]
struct Node {
    children: BTreeMap<usize, u32>,
    /// Ids of the words with this spelling.
    words: Vec<u32>,
}

impl Lexicon {
    /// Reads a list of words, one per line, or a lexicon of flashlight or fairseq,
    /// `word<TAB>s p e l l i n g |` (a space instead of the tab works too). A word can have several
    /// spellings, and a spelling several words.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the file cannot be read, and [`Error::File`] if `labels` can spell no
    /// word.
    pub fn read(path: impl AsRef<Path>, labels: &Labels) -> Result<Self> {
        let path = path.as_ref();
        let text = read_text(path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lexicon = Self::new(lines, labels)?;
        if lexicon.words.is_empty() {
            let reason = format!(
                "none of its {} words can be spelled with the labels of the model; check the letter \
                 case",
                lexicon.left_out
            );
            return Err(Error::file(path, reason));
        }
        Ok(lexicon)
    }

    /// Creates a lexicon from lines; see [`read`](Self::read).
    ///
    /// # Errors
    /// Returns [`Error::Config`] if `labels` has no separator.
    pub fn new<'a>(lines: impl IntoIterator<Item = &'a str>, labels: &Labels) -> Result<Self> {
        if labels.separator().is_none() {
            let reason =
                format!("needs a label `{SEPARATOR}` between words, but the model has none");
            return Err(Error::config("lexicon", reason));
        }
        let mut lexicon = Self { words: Vec::new(), nodes: vec![Node::default()], left_out: 0 };
        let mut known: BTreeMap<String, u32> = BTreeMap::new();
        for line in lines {
            let mut fields = line.split_whitespace();
            let Some(word) = fields.next() else { continue };
            let mut spelling: Vec<&str> = fields.filter(|&letter| letter != SEPARATOR).collect();
            if spelling.is_empty() {
                spelling = word.split_inclusive(|_| true).collect();
            }
            let letters = spelling
                .iter()
                .map(|letter| labels.find(letter).filter(|&label| labels.text(label).is_some()));
            let Some(letters) = letters.collect::<Option<Vec<usize>>>() else {
                lexicon.left_out += 1;
                continue;
            };
            let id = *known.entry(word.to_owned()).or_insert_with(|| {
                lexicon.words.push(word.to_owned());
                lexicon.words.len() as u32 - 1
            });
            lexicon.insert(&letters, id);
        }
        Ok(lexicon)
    }

    /// Returns the number of words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Returns true if there are no words.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Returns the number of lines that were left out because their spelling has a symbol that is no
    /// label.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    fn insert(&mut self, letters: &[usize], word: u32) {
        debug_assert!(!letters.contains(&BLANK));
        let mut at = 0;
        for &letter in letters {
            let new = self.nodes.len() as u32;
            let next = *self.nodes[at].children.entry(letter).or_insert(new);
            if next == new {
                self.nodes.push(Node::default());
            }
            at = next as usize;
        }
        if !self.nodes[at].words.contains(&word) {
            self.nodes[at].words.push(word);
        }
    }

    /// Returns the word with an id.
    pub(super) fn word(&self, word: u32) -> &str {
        &self.words[word as usize]
    }

    /// Returns the child of `node` for `label`; the root is 0.
    pub(super) fn child(&self, node: u32, label: usize) -> Option<u32> {
        self.nodes[node as usize].children.get(&label).copied()
    }

    /// Returns the ids of the words that end at `node`.
    pub(super) fn words_at(&self, node: u32) -> &[u32] {
        &self.nodes[node as usize].words
    }
}
