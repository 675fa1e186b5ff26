//! n-grams in hash tables, one per length. The key of an n-gram is a hash of its words from the last
//! to the first.

use super::super::ngrams::{NGrams, Node, UNKNOWN, Weights};
use super::bytes::{Cursor, Header, f32_at, hash, u32_at, u64_at};

/// Size of a unigram in bytes: two weights.
const UNIGRAM: usize = 8;

pub(super) struct Probing {
    bytes: Vec<u8>,
    /// Maps the hash of a word to its id.
    words: Table,
    /// Start of the unigrams.
    unigrams: usize,
    /// Tables of bigrams and longer n-grams. The longest have no back-off weight.
    tables: Vec<Table>,
}

/// A hash table with linear probing. Entries begin with a key of 8 bytes; key 0 marks an empty slot.
struct Table {
    start: usize,
    slots: u64,
    entry: usize,
}

impl Table {
    fn new(
        cursor: &mut Cursor,
        entries: u64,
        multiplier: f32,
        entry: usize,
        what: &str,
    ) -> Result<Self, String> {
        // Computed in f32, like KenLM.
        let slots = ((multiplier * entries as f32) as u64).max(entries + 1);
        let size = slots.saturating_mul(entry as u64);
        Ok(Self { start: cursor.take(size, what)?, slots, entry })
    }

    fn position(&self, at: u64) -> usize {
        self.start + at as usize * self.entry
    }

    /// Returns the position of the value of a key.
    fn find(&self, bytes: &[u8], key: u64) -> Option<usize> {
        let mut at = key % self.slots;
        loop {
            // Ends, because `check` found an empty slot.
            match u64_at(bytes, self.position(at)) {
                0 => return None,
                found if found == key => return Some(self.position(at) + 8),
                _ => at = (at + 1) % self.slots,
            }
        }
    }

    /// Checks that there is an empty slot and that every value is `valid`.
    fn check(&self, bytes: &[u8], what: &str, valid: impl Fn(usize) -> bool) -> Result<(), String> {
        let mut empty = false;
        for at in 0..self.slots {
            let position = self.position(at);
            if u64_at(bytes, position) == 0 {
                empty = true;
            } else if !valid(position + 8) {
                return Err(format!("is damaged at byte {position}, in {what}"));
            }
        }
        if empty { Ok(()) } else { Err(format!("is damaged: {what} has no empty slot")) }
    }
}

impl Probing {
    pub(super) fn new(bytes: Vec<u8>, header: &Header) -> Result<Self, String> {
        let Header { multiplier, counts, end } = header;
        let mut cursor = Cursor { at: *end, end: bytes.len() };
        // The vocabulary has its own header: version and number of words.
        let bounds = cursor.take(8, "the vocabulary's header")?;
        if u32_at(&bytes, bounds) != 0 {
            return Err("has a vocabulary of an unknown version".into());
        }
        let words = Table::new(&mut cursor, counts[0], *multiplier, 12, "the vocabulary")?;
        let slots = counts[0] + 1; // one more for <unk>, if the model lacks it
        let unigrams = cursor.take(slots * UNIGRAM as u64, "the table of 1-grams")?;
        let mut tables = Vec::new();
        for (at, &count) in counts.iter().enumerate().skip(1) {
            let entry = if at + 1 == counts.len() { 12 } else { 16 };
            let what = format!("the table of {}-grams", at + 1);
            tables.push(Table::new(&mut cursor, count, *multiplier, entry, &what)?);
        }
        words.check(&bytes, "the vocabulary", |at| u64::from(u32_at(&bytes, at)) < slots)?;
        let finite = |at: usize| f32_at(&bytes, at).is_finite();
        for slot in 0..slots as usize {
            let at = unigrams + slot * UNIGRAM;
            if !(finite(at) && finite(at + 4)) {
                return Err(format!("is damaged at byte {at}, in the table of 1-grams"));
            }
        }
        for (at, table) in tables.iter().enumerate() {
            let what = format!("the table of {}-grams", at + 2);
            table.check(&bytes, &what, |at| finite(at) && (table.entry == 12 || finite(at + 4)))?;
        }
        Ok(Self { bytes, words, unigrams, tables })
    }

    /// Reads weights. The sign bit of a probability is a flag.
    fn weights(&self, at: usize, has_backoff: bool) -> Weights {
        let backoff = if has_backoff { f32_at(&self.bytes, at + 4) } else { 0.0 };
        Weights { prob: Some(-f32_at(&self.bytes, at).abs()), backoff }
    }
}

impl NGrams for Probing {
    fn order(&self) -> usize {
        self.tables.len() + 1
    }

    fn index(&self, word: &str) -> u32 {
        let found = self.words.find(&self.bytes, hash(word));
        found.map_or(UNKNOWN, |at| u32_at(&self.bytes, at))
    }

    fn unigram(&self, word: u32) -> (Weights, Node) {
        let at = self.unigrams + word as usize * UNIGRAM;
        (self.weights(at, true), Node(u64::from(word), 0))
    }

    fn extend(&self, node: Node, length: usize, word: u32) -> Option<(Weights, Node)> {
        let table = self.tables.get(length - 1)?;
        let key = node.0.wrapping_mul(8_978_948_897_894_561_157)
            ^ u64::from(word.wrapping_add(1)).wrapping_mul(17_894_857_484_156_487_943);
        let at = table.find(&self.bytes, key)?;
        Some((self.weights(at, table.entry == 16), Node(key, 0)))
    }
}
