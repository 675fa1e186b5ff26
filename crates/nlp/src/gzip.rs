//! Readers for compressed files: one counts bytes, one limits the decompressed size.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

/// Largest accepted ratio of decompressed to compressed size. Text shrinks to a third or a fourth;
/// a larger ratio means a decompression bomb.
const MAX_RATIO: u64 = 200;
/// Decompressed size that is always accepted, in bytes.
const MIN_LIMIT: u64 = 1 << 24;

/// Adds the number of bytes read to `consumed`.
pub(crate) struct CountingReader<'a, R> {
    pub inner: R,
    pub consumed: &'a AtomicU64,
}

impl<R: Read> Read for CountingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.consumed.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Fails once more bytes are read than a gzip file of its size can plausibly contain.
pub(crate) struct LimitedReader<R> {
    inner: R,
    left: u64,
}

impl<R> LimitedReader<R> {
    /// Limits `inner`, the decompressed content of a file of `compressed_size` bytes.
    pub fn new(inner: R, compressed_size: u64) -> Self {
        Self { inner, left: compressed_size.saturating_mul(MAX_RATIO).max(MIN_LIMIT) }
    }
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)? as u64;
        self.left = self.left.checked_sub(count).ok_or_else(|| {
            io::Error::other(format!("decompresses to more than {MAX_RATIO} times its size"))
        })?;
        Ok(count as usize)
    }
}
