//! Language models as text: `\data\`, the numbers of n-grams, then a section for each length with
//! lines of log10 probability, words, and log10 back-off weight.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use data2vec_core::{Error, Result};
use flate2::read::MultiGzDecoder;

use super::{NGrams, Node, UNKNOWN, UNKNOWN_PROB, Weights};

/// Longer lines are no n-grams.
const MAX_LINE: usize = 1 << 20;
/// Longer n-grams are in no model.
const MAX_ORDER: usize = 64;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A tree from the last word to the first. The first nodes are the words themselves.
pub(super) struct Arpa {
    order: usize,
    words: HashMap<Box<str>, u32>,
    nodes: Vec<Weights>,
    /// From a node and the word before it to the node of both.
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

/// Reads a whole file, gzipped or not.
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
    /// The next line without the white space around it; `None` at the end of the file.
    fn next(&mut self) -> Result<Option<String>> {
        self.number += 1;
        let mut line = Vec::new();
        self.input
            .by_ref()
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(|source| self.wrong(format!("cannot be read: {source}")))?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.len() > MAX_LINE {
            return Err(self.wrong(format!("is longer than {MAX_LINE} bytes")));
        }
        match String::from_utf8(line) {
            Ok(line) => Ok(Some(line.trim_ascii().to_owned())),
            Err(_) => Err(self.wrong("is not UTF-8 text")),
        }
    }

    /// The next line with something in it.
    fn filled(&mut self, expected: &str) -> Result<String> {
        loop {
            match self.next()? {
                Some(line) if line.is_empty() => {}
                Some(line) => return Ok(line),
                None => {
                    let reason = format!("the file ends where {expected} should be");
                    return Err(self.wrong(reason));
                }
            }
        }
    }

    fn wrong(&self, reason: impl AsRef<str>) -> Error {
        Error::file(self.path, format!("line {}: {}", self.number, reason.as_ref()))
    }
}

struct Parser<'a> {
    lines: Lines<'a>,
    arpa: Arpa,
}

impl Parser<'_> {
    fn parse(mut self) -> Result<Arpa> {
        // What stands before is a comment; a file that is something else altogether has no such line.
        while self.lines.filled("`\\data\\`, with which an ARPA file begins,")? != "\\data\\" {}
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

    /// The numbers of n-grams of each length, and the line after them.
    fn counts(&mut self) -> Result<(Vec<u64>, String)> {
        let mut counts = Vec::new();
        loop {
            let line = self.lines.filled("`ngram 1=…`")?;
            let Some(told) = line.strip_prefix("ngram ") else {
                return match counts.len() {
                    0 => Err(self.expected("ngram 1=…", &line)),
                    1..=MAX_ORDER => Ok((counts, line)),
                    order => {
                        let reason = format!("n-grams of up to {order} words; {MAX_ORDER} will do");
                        Err(self.lines.wrong(reason))
                    }
                };
            };
            let count = told.split_once('=').and_then(|(length, count)| {
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
            let line = self.lines.filled("the next section")?;
            // An n-gram begins with a number.
            if line.starts_with('\\') {
                if found != count {
                    let reason = format!("{found} {length}-grams, the header promises {count}");
                    return Err(self.lines.wrong(reason));
                }
                return Ok(line);
            }
            found += 1;
            if found > count {
                let reason =
                    format!("more {length}-grams than the {count} that the header promises");
                return Err(self.lines.wrong(reason));
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
            let expected = format!("a log10 of at most 0, {length} words, and maybe a log10");
            return Err(self.expected(&expected, line));
        };
        // A sum of a few dozen of them stays finite.
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
            return Err(self.lines.wrong(format!("the word {word:?} for the second time")));
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
                    return Err(self.lines.wrong(reason));
                }
            };
            if at == 0 {
                node = id;
                continue;
            }
            // Some models lack the ends of their n-grams.
            let new = u32::try_from(nodes.len());
            let new =
                new.map_err(|_| Error::file(self.lines.path, "has more than 2^32 n-grams"))?;
            node = *longer.entry((node, id)).or_insert(new);
            if node == new {
                nodes.push(Weights { prob: None, backoff: 0.0 });
            }
        }
        let place = &mut nodes[node as usize];
        if place.prob.is_some() {
            return Err(self.lines.wrong("the same n-gram for the second time"));
        }
        *place = weights;
        Ok(())
    }

    fn expected(&self, expected: &str, found: &str) -> Error {
        let found: String = found.chars().take(80).collect();
        self.lines.wrong(format!("should be `{expected}`, not {found:?}"))
    }
}

impl Arpa {
    fn new() -> Self {
        let unknown = Weights { prob: Some(UNKNOWN_PROB), backoff: 0.0 };
        Self { order: 0, words: HashMap::new(), nodes: vec![unknown], longer: HashMap::new() }
    }
}
