//! Access to the bytes of a file: header, positions, numbers, hashes of words.

/// Content of the header.
pub(super) struct Header {
    /// Size of the hash tables relative to their content.
    pub(super) multiplier: f32,
    /// Number of n-grams of each length.
    pub(super) counts: Vec<u64>,
    /// Start of the vocabulary.
    pub(super) end: usize,
}

/// A position in a file.
pub(super) struct Cursor {
    pub(super) at: usize,
    pub(super) end: usize,
}

impl Cursor {
    /// Advances by `size` bytes and returns the position before them.
    pub(super) fn take(&mut self, size: u64, what: &str) -> Result<usize, String> {
        let start = self.at;
        let next = usize::try_from(size).ok().and_then(|size| start.checked_add(size));
        match next.filter(|&next| next <= self.end) {
            Some(next) => {
                self.at = next;
                Ok(start)
            }
            None => Err(format!("is truncated: {what} takes {size} bytes from byte {start} on")),
        }
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// Returns the hash of a word: MurmurHash64A by Austin Appleby with seed 0.
pub(super) fn hash(word: &str) -> u64 {
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
