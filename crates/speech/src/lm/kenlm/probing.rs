//! n-grams in hash tables, one for each length. An n-gram's key is a hash of its words from the last
//! to the first.

use super::{
    super::{NGrams, Node, UNKNOWN, Weights},
    Cursor, Header, f32_at, hash, u32_at, u64_at,
};

/// Bytes of a unigram: two weights.
const UNIGRAM: usize = 8;

pub(super) struct Probing {
    bytes: Vec<u8>,
    /// From the hash of a word to its number.
    words: Table,
    /// Where the unigrams begin.
    unigrams: usize,
    /// For bigrams and longer ones. The longest have no back-off weight.
    tables: Vec<Table>,
}

/// A table of entries that begin with a key of 8 bytes; the key 0 marks an empty place. An entry
/// stands at the remainder of its key by the number of places, or behind it where that was taken.
struct Table {
    start: usize,
    places: u64,
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
        // In f32, as KenLM reckons.
        let places = ((multiplier * entries as f32) as u64).max(entries + 1);
        let size = places.saturating_mul(entry as u64);
        Ok(Self { start: cursor.take(size, what)?, places, entry })
    }

    fn place(&self, at: u64) -> usize {
        self.start + at as usize * self.entry
    }

    /// Where the content of a key's entry stands.
    fn find(&self, bytes: &[u8], key: u64) -> Option<usize> {
        let mut at = key % self.places;
        loop {
            // There is an empty place: `check` saw it.
            match u64_at(bytes, self.place(at)) {
                0 => return None,
                found if found == key => return Some(self.place(at) + 8),
                _ => at = (at + 1) % self.places,
            }
        }
    }

    /// Whether a search comes to an end, and every content is `sound`.
    fn check(&self, bytes: &[u8], what: &str, sound: impl Fn(usize) -> bool) -> Result<(), String> {
        let mut empty = false;
        for at in 0..self.places {
            let place = self.place(at);
            if u64_at(bytes, place) == 0 {
                empty = true;
            } else if !sound(place + 8) {
                return Err(format!("is damaged at byte {place}, in {what}"));
            }
        }
        if empty { Ok(()) } else { Err(format!("is damaged: no place is empty in {what}")) }
    }
}

impl Probing {
    pub(super) fn new(bytes: Vec<u8>, header: &Header) -> Result<Self, String> {
        let Header { multiplier, counts, end } = header;
        let mut cursor = Cursor { at: *end, end: bytes.len() };
        // The vocabulary has a header of its own: version and number of words.
        let bounds = cursor.take(8, "the vocabulary's header")?;
        if u32_at(&bytes, bounds) != 0 {
            return Err("has a vocabulary of an unknown version".into());
        }
        let words = Table::new(&mut cursor, counts[0], *multiplier, 12, "the vocabulary")?;
        let slots = counts[0] + 1; // one more for <unk>, should the model not have had it
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

    /// A probability's sign tells something else.
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
