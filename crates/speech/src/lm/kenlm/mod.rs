//! KenLM's binary files (Heafield 2011), version 5: a header, the vocabulary as hashes of words, the
//! n-grams. All numbers are little-endian.

mod probing;
mod trie;

use std::{fs, path::Path};

use data2vec_core::{Error, Result};

use super::NGrams;

/// How all of them begin.
pub(super) const MAGIC: &[u8] = b"mmap lm http://kheafield.com/code ";
const VERSION: &[u8] = b"format version 5\n\0";
/// Magic, rounded up to 8 bytes, and the numbers that prove that the byte order is the same: 0, 1 and
/// −0.5 as f32, 1 and the largest u32, 4 bytes of padding, 1 as u64.
const MAGIC_SIZE: usize = (MAGIC.len() + VERSION.len() + 1).next_multiple_of(8);
const PROOF: [u8; 32] = {
    let mut proof = [0; 32];
    (proof[6], proof[7]) = (0x80, 0x3f);
    proof[11] = 0xbf;
    proof[12] = 1;
    (proof[16], proof[17], proof[18], proof[19]) = (0xff, 0xff, 0xff, 0xff);
    proof[24] = 1;
    proof
};
/// Order, multiplier of the hash tables, kind, whether words are written at the end, version of the kind.
const FIXED: usize = MAGIC_SIZE + PROOF.len();
const COUNTS: usize = FIXED + 20;

const KINDS: [&str; 6] = [
    "probing hash tables",
    "probing hash tables with rest costs",
    "a trie",
    "a trie with quantization",
    "a trie with compressed pointers",
    "a trie with quantization and compressed pointers",
];

/// What the header tells.
struct Header {
    multiplier: f32,
    /// n-grams of each length.
    counts: Vec<u64>,
    /// Where the vocabulary begins.
    end: usize,
}

/// Reads and checks a whole file, after which no lookup can go astray.
pub(super) fn read(path: &Path) -> Result<Box<dyn NGrams>> {
    let bytes = fs::read(path).map_err(|source| Error::io(path, source))?;
    let wrong = |reason: String| Error::file(path, reason);
    let (kind, header) = header(&bytes).map_err(wrong)?;
    match kind {
        0 => Ok(Box::new(probing::Probing::new(bytes, &header).map_err(wrong)?)),
        2 => Ok(Box::new(trie::Trie::new(bytes, &header).map_err(wrong)?)),
        kind => Err(wrong(format!(
            "holds {}, which are not read here; make it anew from the ARPA file with `build_binary probing` \
             or `build_binary trie`, without -q, -b and -a",
            KINDS.get(kind as usize).unwrap_or(&"an unknown kind of model")
        ))),
    }
}

fn header(bytes: &[u8]) -> std::result::Result<(u32, Header), String> {
    let after = &bytes[MAGIC.len().min(bytes.len())..];
    if after.starts_with(b"incomplete") {
        return Err("was never finished by KenLM's build_binary".into());
    }
    if !after.starts_with(VERSION) {
        return Err(
            "is a KenLM file of another version than 5; make it anew from the ARPA file".into()
        );
    }
    if bytes.len() < COUNTS {
        return Err("is cut off in its header".into());
    }
    if bytes[MAGIC_SIZE..FIXED] != PROOF {
        return Err("is damaged, or was written on a machine of another kind".into());
    }
    let order = usize::from(bytes[FIXED]);
    let (multiplier, kind) = (f32_at(bytes, FIXED + 4), u32_at(bytes, FIXED + 8));
    if order < 2 {
        return Err(format!("claims n-grams of up to {order} words; it takes 2 at least"));
    }
    if !(multiplier >= 1.0 && multiplier.is_finite()) {
        return Err(format!("claims hash tables {multiplier} times as large as their content"));
    }
    let end = (COUNTS + 8 * order).next_multiple_of(8);
    if bytes.len() < end {
        return Err("is cut off in its header".into());
    }
    let counts: Vec<u64> = (0..order).map(|at| u64_at(bytes, COUNTS + 8 * at)).collect();
    // No n-gram takes less than a byte; sizes of tables cannot overflow then.
    if let Some(count) = counts.iter().find(|&&count| count > bytes.len() as u64) {
        return Err(format!("claims {count} n-grams, more than it has bytes: damaged or cut off"));
    }
    Ok((kind, Header { multiplier, counts, end }))
}

/// The next `size` bytes of a file, as places in it.
struct Cursor {
    at: usize,
    end: usize,
}

impl Cursor {
    fn take(&mut self, size: u64, what: &str) -> std::result::Result<usize, String> {
        let start = self.at;
        let next = usize::try_from(size).ok().and_then(|size| start.checked_add(size));
        match next.filter(|&next| next <= self.end) {
            Some(next) => {
                self.at = next;
                Ok(start)
            }
            None => Err(format!("is cut off: {what} takes {size} bytes from byte {start} on")),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// How words are told apart: Austin Appleby's MurmurHash64A with seed 0.
fn hash(word: &str) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let bytes = word.as_bytes();
    let mut hash = (bytes.len() as u64).wrapping_mul(M);
    let blocks = bytes.chunks_exact(8);
    let rest = blocks.remainder();
    for block in blocks {
        let k = u64_at(block, 0).wrapping_mul(M);
        hash = (hash ^ (k ^ (k >> 47)).wrapping_mul(M)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(last)).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 47)).wrapping_mul(M);
    hash ^ (hash >> 47)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_size_of_the_original() {
        assert_eq!((MAGIC_SIZE, FIXED, COUNTS), (56, 88, 108));
    }
}
