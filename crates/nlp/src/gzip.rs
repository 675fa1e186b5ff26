//! Reading with a count and with a limit.

use std::{
    io::{self, Read},
    sync::atomic::{AtomicU64, Ordering},
};

/// Text shrinks to a third or a fourth; what grows more than this is made to fill disks.
pub(crate) const LARGEST_RATIO: u64 = 200;

/// Counts what is read.
pub(crate) struct Counted<'a, R> {
    pub inner: R,
    pub consumed: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.consumed.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

/// Fails where a gzip file becomes implausibly large.
pub(crate) struct Limited<R> {
    pub inner: R,
    pub left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)? as u64;
        self.left = self.left.checked_sub(got).ok_or_else(|| {
            io::Error::other(format!("unpacks to more than {LARGEST_RATIO} times its size"))
        })?;
        Ok(got as usize)
    }
}
