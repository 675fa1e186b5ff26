//! ARPA files: `\data\`, the numbers of n-grams, then a section per length with lines of log10
//! probability, words and log10 back-off weight.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use data2vec_core::{Error, Result};
use flate2::read::MultiGzDecoder;

use super::ngrams::{NGrams, Node, UNKNOWN, UNKNOWN_PROB, Weights};

/// Maximum length of a line in bytes.
const MAX_LINE: usize = 1 << 20;
/// Maximum number of words in an n-gram.
const MAX_ORDER: usize = 64;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A tree of n-grams from the last word to the first. The first nodes are the unigrams.
pub(super) struct Arpa {
    order: usize,
    words: HashMap<Box<str>, u32>,
    nodes: Vec<Weights>,
    /// Maps a node and the word before it to the node of both.
    longer: HashMap<(u32, u32), u32>,
}

impl NGrams for Arpa {
    fn order(&self) -> usize {
        self.order
    }

    fn index(&self, word: &str) -> u32 {
        self.words.get(word).copied().unwrap_or(UNKNOWN)
    }

    fn unigram(&self, word: u32) -> (Weights, Node) {
        (self.nodes[word as usize], Node(u64::from(word), 0))
    }

    fn extend(&self, node: Node, _length: usize, word: u32) -> Option<(Weights, Node)> {
        let next = *self.longer.get(&(node.0 as u32, word))?;
        Some((self.nodes[next as usize], Node(u64::from(next), 0)))
    }
}

/// Reads a file, plain or gzipped.
pub(super) fn read(path: &Path) -> Result<Arpa> {
    let open = || {
        let mut file = BufReader::new(File::open(path)?);
        let gzipped = file.fill_buf()?.starts_with(&GZIP);
        let plain: Box<dyn BufRead> = if gzipped {
            Box::new(BufReader::new(MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        Ok(plain)
    };
    let lines = Lines { path, input: open().map_err(|source| Error::io(path, source))?, number: 0 };
    Parser { lines, arpa: Arpa::new() }.parse()
}

struct Lines<'a> {
    path: &'a Path,
    input: Box<dyn BufRead>,
    number: usize,
}

impl Lines<'_> {
    /// Returns the next line, trimmed; `None` at the end of the file.
    fn next(&mut self) -> Result<Option<String>> {
        self.number += 1;
        let mut line = Vec::new();
        self.input
            .by_ref()
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(|source| self.error(format!("cannot be read: {source}")))?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.len() > MAX_LINE {
            return Err(self.error(format!("is longer than {MAX_LINE} bytes")));
        }
        match String::from_utf8(line) {
            Ok(line) => Ok(Some(line.trim_ascii().to_owned())),
            Err(_) => Err(self.error("is not UTF-8 text")),
        }
    }

    /// Returns the next line that is not empty.
    fn next_non_empty(&mut self, expected: &str) -> Result<String> {
        loop {
            match self.next()? {
                Some(line) if line.is_empty() => {}
                Some(line) => return Ok(line),
                None => {
                    let reason = format!("the file ends where {expected} should be");
                    return Err(self.error(reason));
                }
            }
        }
    }

    fn error(&self, reason: impl AsRef<str>) -> Error {
        Error::file(self.path, format!("line {}: {}", self.number, reason.as_ref()))
    }
}

struct Parser<'a> {
    lines: Lines<'a>,
    arpa: Arpa,
}

impl Parser<'_> {
    fn parse(mut self) -> Result<Arpa> {
        // The lines before it are comments.
        while self.lines.next_non_empty("`\\data\\`")? != "\\data\\" {}
        let (counts, mut line) = self.counts()?;
        self.arpa.order = counts.len();
        for (at, &count) in counts.iter().enumerate() {
            let header = format!("\\{}-grams:", at + 1);
            if line != header {
                return Err(self.expected(&header, &line));
            }
            line = self.section(at + 1, count)?;
        }
        if line != "\\end\\" {
            return Err(self.expected("\\end\\", &line));
        }
        Ok(self.arpa)
    }

    /// Reads the numbers of n-grams of each length; returns them and the line after them.
    fn counts(&mut self) -> Result<(Vec<u64>, String)> {
        let mut counts = Vec::new();
        loop {
            let line = self.lines.next_non_empty("`ngram 1=…`")?;
            let Some(entry) = line.strip_prefix("ngram ") else {
                return match counts.len() {
                    0 => Err(self.expected("ngram 1=…", &line)),
                    1..=MAX_ORDER => Ok((counts, line)),
                    order => {
                        let reason =
                            format!("n-grams of {order} words; at most {MAX_ORDER} are supported");
                        Err(self.lines.error(reason))
                    }
                };
            };
            let count = entry.split_once('=').and_then(|(length, count)| {
                let length: usize = length.trim().parse().ok()?;
                (length == counts.len() + 1).then(|| count.trim().parse().ok())?
            });
            match count {
                Some(count) => counts.push(count),
                None => {
                    let expected = format!("ngram {}=…", counts.len() + 1);
                    return Err(self.expected(&expected, &line));
                }
            }
        }
    }

    /// Reads the n-grams of one length; returns the line after them.
    fn section(&mut self, length: usize, count: u64) -> Result<String> {
        let mut found = 0;
        loop {
            let line = self.lines.next_non_empty("the next section")?;
            // An n-gram begins with a number.
            if line.starts_with('\\') {
                if found != count {
                    let reason = format!("{found} {length}-grams, but the header says {count}");
                    return Err(self.lines.error(reason));
                }
                return Ok(line);
            }
            found += 1;
            if found > count {
                let reason = format!("more {length}-grams than the {count} in the header");
                return Err(self.lines.error(reason));
            }
            self.ngram(&line, length)?;
        }
    }

    fn ngram(&mut self, line: &str, length: usize) -> Result<()> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |text: &str| text.parse().ok().filter(|x: &f32| x.is_finite());
        let prob = number(fields[0]).filter(|&prob| prob <= 0.0);
        let backoff = match fields.len() - 1 {
            words if words == length => Some(0.0),
            words if words == length + 1 => number(fields[words]),
            _ => None,
        };
        let (Some(prob), Some(backoff)) = (prob, backoff) else {
            let expected = format!("a log10 of at most 0, {length} words, and optionally a log10");
            return Err(self.expected(&expected, line));
        };
        // Clamped so that the sum over a sentence stays finite.
        let backoff = backoff.clamp(-1e30, 1e30);
        let weights = Weights { prob: Some(prob.max(-1e30)), backoff };
        let words = &fields[1..=length];
        if length == 1 { self.word(words[0], weights) } else { self.longer(words, weights) }
    }

    fn word(&mut self, word: &str, weights: Weights) -> Result<()> {
        let nodes = &mut self.arpa.nodes;
        if word == "<unk>" || word == "<UNK>" {
            nodes[UNKNOWN as usize] = weights;
            return Ok(());
        }
        let id = u32::try_from(nodes.len());
        let id = id.map_err(|_| Error::file(self.lines.path, "has more than 2^32 n-grams"))?;
        if self.arpa.words.insert(word.into(), id).is_some() {
            return Err(self.lines.error(format!("the word {word:?} occurs twice")));
        }
        nodes.push(weights);
        Ok(())
    }

    fn longer(&mut self, words: &[&str], weights: Weights) -> Result<()> {
        let Arpa { words: known, nodes, longer, .. } = &mut self.arpa;
        let mut node = UNKNOWN;
        for (at, word) in words.iter().rev().enumerate() {
            let id = match (known.get(*word), *word) {
                (Some(&id), _) => id,
                (None, "<unk>" | "<UNK>") => UNKNOWN,
                (None, _) => {
                    let reason = format!("the word {word:?} is not among the 1-grams");
                    return Err(self.lines.error(reason));
                }
            };
            if at == 0 {
                node = id;
                continue;
            }
            // Some models lack the suffixes of their n-grams.
            let new = u32::try_from(nodes.len());
            let new =
                new.map_err(|_| Error::file(self.lines.path, "has more than 2^32 n-grams"))?;
            node = *longer.entry((node, id)).or_insert(new);
            if node == new {
                nodes.push(Weights { prob: None, backoff: 0.0 });
            }
        }
        let entry = &mut nodes[node as usize];
        if entry.prob.is_some() {
            return Err(self.lines.error("the n-gram occurs twice"));
        }
        *entry = weights;
        Ok(())
    }

    fn expected(&self, expected: &str, found: &str) -> Error {
        let found: String = found.chars().take(80).collect();
        self.lines.error(format!("should be `{expected}`, not {found:?}"))
    }
}

impl Arpa {
    fn new() -> Self {
        let unknown = Weights { prob: Some(UNKNOWN_PROB), backoff: 0.0 };
        Self { order: 0, words: HashMap::new(), nodes: vec![unknown], longer: HashMap::new() }
    }
}
