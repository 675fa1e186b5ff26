//! n-grams as a trie from the last word to the first. Each length is an array of bit-packed entries,
//! sorted by word below each parent.

use super::super::ngrams::{NGrams, Node, UNKNOWN, Weights};
use super::bytes::{Cursor, Header, f32_at, hash, u64_at};

/// Size of a unigram in bytes: two weights, and the index of its first child.
const UNIGRAM: usize = 16;
/// Bits of a probability, which is stored without its sign.
const PROB_BITS: usize = 31;
/// Bits of a back-off weight.
const BACKOFF_BITS: usize = 32;
const SIGN: u32 = 1 << 31;

pub(super) struct Trie {
    bytes: Vec<u8>,
    /// Start and number of the sorted hashes of words; the id of a word is its index + 1.
    words: (usize, usize),
    unigrams: usize,
    /// Bigrams and longer n-grams.
    levels: Vec<Level>,
}

/// n-grams of one length: word, weights, and the index of the first child in the next level.
struct Level {
    start: usize,
    entries: u64,
    word_bits: usize,
    /// `None` in the last level, which has no back-off weights either.
    next_bits: Option<usize>,
    entry_bits: usize,
}

impl Level {
    fn new(
        cursor: &mut Cursor,
        entries: u64,
        words: u64,
        longer: Option<u64>,
        what: &str,
    ) -> Result<Self, String> {
        let (word_bits, next_bits) = (bits(words), longer.map(bits));
        let weights = PROB_BITS + next_bits.map_or(0, |next| next + BACKOFF_BITS);
        let entry_bits = word_bits + weights;
        // One more entry holds the end of the last children; 8 more bytes allow unaligned reads.
        let size = (u128::from(entries + 1) * entry_bits as u128).div_ceil(8) + 8;
        let start = cursor.take(u64::try_from(size).unwrap_or(u64::MAX), what)?;
        Ok(Self { start, entries, word_bits, next_bits, entry_bits })
    }

    /// Reads `count` bits, at most 57, of an entry.
    fn read(&self, bytes: &[u8], entry: u64, from: usize, count: usize) -> u64 {
        let bit = entry as usize * self.entry_bits + from;
        let mask = (1 << count) - 1;
        (u64_at(bytes, self.start + bit / 8) >> (bit % 8)) & mask
    }

    fn word(&self, bytes: &[u8], entry: u64) -> u64 {
        self.read(bytes, entry, 0, self.word_bits)
    }

    fn weights(&self, bytes: &[u8], entry: u64) -> Weights {
        let prob = self.read(bytes, entry, self.word_bits, PROB_BITS) as u32 | SIGN;
        let backoff = match self.next_bits {
            Some(_) => self.read(bytes, entry, self.word_bits + PROB_BITS, BACKOFF_BITS) as u32,
            None => 0,
        };
        Weights { prob: Some(f32::from_bits(prob)), backoff: f32::from_bits(backoff) }
    }

    /// Returns the index of the first child of an entry, which is the end of the children of the entry
    /// before.
    fn next(&self, bytes: &[u8], entry: u64) -> u64 {
        let from = self.word_bits + PROB_BITS + BACKOFF_BITS;
        self.next_bits.map_or(0, |count| self.read(bytes, entry, from, count))
    }

    fn check(&self, bytes: &[u8], longer: u64, what: &str) -> Result<(), String> {
        let mut last = 0;
        for entry in 0..=self.entries {
            let next = self.next(bytes, entry);
            let Weights { prob, backoff } = self.weights(bytes, entry);
            // The entry after the last one has no valid weights.
            let valid =
                entry == self.entries || (backoff.is_finite() && prob.is_some_and(f32::is_finite));
            if next < last || next > longer || !valid {
                return Err(format!("is damaged in entry {entry} of {what}"));
            }
            last = next;
        }
        Ok(())
    }
}

/// Returns the number of bits of `largest`.
fn bits(largest: u64) -> usize {
    (u64::BITS - largest.leading_zeros()) as usize
}

impl Trie {
    pub(super) fn new(bytes: Vec<u8>, header: &Header) -> Result<Self, String> {
        let counts = &header.counts;
        let mut cursor = Cursor { at: header.end, end: bytes.len() };
        let count = cursor.take(8, "the number of words")?;
        // <unk> is counted and has no hash.
        let words = u64_at(&bytes, count);
        if words >= counts[0] {
            return Err(format!("is damaged: {words} words, but {} 1-grams", counts[0]));
        }
        let start = cursor.take(8 * counts[0], "the vocabulary")?;
        // One more for <unk>, if the model lacks it, and one for the end of the last children.
        let slots = counts[0] + 2;
        let unigrams = cursor.take(slots * UNIGRAM as u64, "the 1-grams")?;
        let mut levels = Vec::new();
        for (at, &count) in counts.iter().enumerate().skip(1) {
            let (longer, what) = (counts.get(at + 1).copied(), format!("the {}-grams", at + 1));
            levels.push(Level::new(&mut cursor, count, counts[0], longer, &what)?);
        }
        let trie = Self { bytes, words: (start, words as usize), unigrams, levels };
        trie.check(counts)?;
        Ok(trie)
    }

    fn check(&self, counts: &[u64]) -> Result<(), String> {
        let mut last = 0;
        for slot in 0..=counts[0] as usize {
            let at = self.unigrams + slot * UNIGRAM;
            let next = u64_at(&self.bytes, at + 8);
            let valid =
                f32_at(&self.bytes, at).is_finite() && f32_at(&self.bytes, at + 4).is_finite();
            if next < last || next > counts[1] || !valid {
                return Err(format!("is damaged at byte {at}, in the 1-grams"));
            }
            last = next;
        }
        for (at, level) in self.levels.iter().enumerate() {
            let longer = counts.get(at + 2).copied().unwrap_or(0);
            level.check(&self.bytes, longer, &format!("the {}-grams", at + 2))?;
        }
        Ok(())
    }
}

/// Returns the index in `low..high` of `wanted` in sorted numbers, by binary search.
fn search(low: u64, high: u64, wanted: u64, number: impl Fn(u64) -> u64) -> Option<u64> {
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = low + (high - low) / 2;
        match number(middle).cmp(&wanted) {
            std::cmp::Ordering::Equal => return Some(middle),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}

impl NGrams for Trie {
    fn order(&self) -> usize {
        self.levels.len() + 1
    }

    fn index(&self, word: &str) -> u32 {
        let (start, words) = self.words;
        let found =
            search(0, words as u64, hash(word), |at| u64_at(&self.bytes, start + 8 * at as usize));
        found.map_or(UNKNOWN, |at| at as u32 + 1)
    }

    fn unigram(&self, word: u32) -> (Weights, Node) {
        let at = self.unigrams + word as usize * UNIGRAM;
        let prob = -f32_at(&self.bytes, at).abs();
        let weights = Weights { prob: Some(prob), backoff: f32_at(&self.bytes, at + 4) };
        (weights, Node(u64_at(&self.bytes, at + 8), u64_at(&self.bytes, at + UNIGRAM + 8)))
    }

    fn extend(&self, node: Node, length: usize, word: u32) -> Option<(Weights, Node)> {
        let level = self.levels.get(length - 1)?;
        let entry =
            search(node.0, node.1, u64::from(word), |entry| level.word(&self.bytes, entry))?;
        let node = Node(level.next(&self.bytes, entry), level.next(&self.bytes, entry + 1));
        Some((level.weights(&self.bytes, entry), node))
    }
}
