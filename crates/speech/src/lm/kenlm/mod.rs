//! Binary files of KenLM (Heafield 2011), version 5: a header, the vocabulary as hashes of words, the
//! n-grams. All numbers are little-endian.

mod bytes;
mod probing;
mod trie;

use std::fs;
use std::path::Path;

use bytes::{Header, f32_at, u32_at, u64_at};
use data2vec_core::{Error, Result};

use super::ngrams::NGrams;

/// First bytes of every file.
pub(super) const MAGIC: &[u8] = b"mmap lm http://kheafield.com/code ";
const VERSION: &[u8] = b"format version 5\n\0";
/// Size of the magic bytes and the version, rounded up to 8.
const MAGIC_SIZE: usize = (MAGIC.len() + VERSION.len() + 1).next_multiple_of(8);
/// Numbers that show the byte order and float format: 0, 1 and −0.5 as f32, 1 and the largest u32, 4
/// bytes of padding, 1 as u64.
const PROOF: [u8; 32] = {
    let mut proof = [0; 32];
    (proof[6], proof[7]) = (0x80, 0x3f);
    proof[11] = 0xbf;
    proof[12] = 1;
    (proof[16], proof[17], proof[18], proof[19]) = (0xff, 0xff, 0xff, 0xff);
    proof[24] = 1;
    proof
};
/// Start of the parameters: order, multiplier of the hash tables, kind, whether the words are written
/// at the end, version of the kind.
const FIXED: usize = MAGIC_SIZE + PROOF.len();
/// Start of the numbers of n-grams.
const COUNTS: usize = FIXED + 20;

/// Names of the kinds of tables.
const KINDS: [&str; 6] = [
    "probing hash tables",
    "probing hash tables with rest costs",
    "a trie",
    "a trie with quantization",
    "a trie with compressed pointers",
    "a trie with quantization and compressed pointers",
];

/// Reads a file and checks all of it, so that every lookup stays in bounds and ends.
pub(super) fn read(path: &Path) -> Result<Box<dyn NGrams>> {
    let bytes = fs::read(path).map_err(|source| Error::io(path, source))?;
    let invalid = |reason: String| Error::file(path, reason);
    let (kind, header) = header(&bytes).map_err(invalid)?;
    match kind {
        0 => Ok(Box::new(probing::Probing::new(bytes, &header).map_err(invalid)?)),
        2 => Ok(Box::new(trie::Trie::new(bytes, &header).map_err(invalid)?)),
        kind => Err(invalid(format!(
            "holds {}, which are not supported; rebuild it from the ARPA file with `build_binary \
             probing` or `build_binary trie`, without -q, -b and -a",
            KINDS.get(kind as usize).unwrap_or(&"an unknown kind of model")
        ))),
    }
}

fn header(bytes: &[u8]) -> std::result::Result<(u32, Header), String> {
    let after = &bytes[MAGIC.len().min(bytes.len())..];
    if after.starts_with(b"incomplete") {
        return Err("is incomplete; run KenLM's build_binary again".into());
    }
    if !after.starts_with(VERSION) {
        return Err(
            "is a KenLM file of another version than 5; rebuild it from the ARPA file".into()
        );
    }
    if bytes.len() < COUNTS {
        return Err("is truncated in its header".into());
    }
    if bytes[MAGIC_SIZE..FIXED] != PROOF {
        return Err("is damaged, or was written on another kind of machine".into());
    }
    let order = usize::from(bytes[FIXED]);
    let (multiplier, kind) = (f32_at(bytes, FIXED + 4), u32_at(bytes, FIXED + 8));
    if order < 2 {
        return Err(format!("has n-grams of at most {order} words; at least 2 are needed"));
    }
    if !(multiplier >= 1.0 && multiplier.is_finite()) {
        return Err(format!("has hash tables of {multiplier} times the size of their content"));
    }
    let end = (COUNTS + 8 * order).next_multiple_of(8);
    if bytes.len() < end {
        return Err("is truncated in its header".into());
    }
    let counts: Vec<u64> = (0..order).map(|at| u64_at(bytes, COUNTS + 8 * at)).collect();
    // An n-gram takes at least a byte; with this check, sizes of tables cannot overflow.
    if let Some(count) = counts.iter().find(|&&count| count > bytes.len() as u64) {
        return Err(format!(
            "is damaged or truncated: its header says {count} n-grams, more than it has bytes"
        ));
    }
    Ok((kind, Header { multiplier, counts, end }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_size_of_reference() {
        assert_eq!((MAGIC_SIZE, FIXED, COUNTS), (56, 88, 108));
    }
}
