//! A shard that is far away: read by blocks of one size, which are kept in the cache.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use object_store::GetOptions;

use super::{Place, Stores};
use crate::cache::Cache;
use crate::lru::Lru;
use crate::places::Shard;
use crate::{Error, Result};

/// Blocks of a shard that are kept open.
const OPEN: u64 = 16;
/// Blocks that are fetched ahead of one who reads from front to back.
const AHEAD: u64 = 4;

/// A shard in a store.
#[derive(Clone)]
pub(crate) struct Remote(Arc<Inner>);

struct Inner {
    shard: Shard,
    at: Place,
    stores: Arc<Stores>,
    cache: Arc<Cache>,
    open: Lru<u64, File>,
    /// The block that was read last.
    last: AtomicU64,
    /// Threads that fetch ahead.
    ahead: AtomicUsize,
}

impl Remote {
    pub fn open(shard: &Shard, stores: &Arc<Stores>, cache: &Arc<Cache>) -> Result<Self> {
        let at = stores.place(&shard.place);
        let at = at.map_err(|reason| Error::shard(&shard.name, reason))?;
        Ok(Self(Arc::new(Inner {
            shard: shard.clone(),
            at,
            stores: Arc::clone(stores),
            cache: Arc::clone(cache),
            open: Lru::new(OPEN),
            last: AtomicU64::new(u64::MAX),
            ahead: AtomicUsize::new(0),
        })))
    }

    pub fn len(&self) -> u64 {
        self.0.shard.bytes
    }

    /// Fills as much of `buffer` as there is from `at` on in one block; nothing at the end.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if at >= self.len() || buffer.is_empty() {
            return Ok(0);
        }
        let size = self.0.stores.block;
        let (number, offset) = (at / size, at % size);
        self.look_ahead(number);
        let file = self.0.block(number).map_err(io::Error::other)?;
        let most = buffer.len().min((self.block_end(number) - at) as usize);
        file.read_exact_at(&mut buffer[..most], offset)?;
        Ok(most)
    }

    /// Numbers of the blocks that hold a range of bytes.
    pub fn blocks(&self, start: u64, end: u64) -> std::ops::Range<u64> {
        let size = self.0.stores.block;
        start / size..end.min(self.len()).div_ceil(size)
    }

    /// Has a block in the cache; what goes wrong is told when it is read.
    pub fn fetch(&self, number: u64) {
        let _ = self.0.block(number);
    }

    fn block_end(&self, number: u64) -> u64 {
        self.len().min((number + 1) * self.0.stores.block)
    }

    /// Fetches what one who reads block after block wants next.
    fn look_ahead(&self, number: u64) {
        let last = self.0.last.swap(number, Ordering::Relaxed);
        if last.checked_add(1) != Some(number) {
            return;
        }
        let next = self.blocks(0, self.len()).end.min(number + 1 + AHEAD);
        for number in number + 1..next {
            if self.0.ahead.fetch_add(1, Ordering::Relaxed) >= AHEAD as usize {
                self.0.ahead.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let remote = self.clone();
            let fetch = move || {
                remote.fetch(number);
                remote.0.ahead.fetch_sub(1, Ordering::Relaxed);
            };
            if std::thread::Builder::new().name("read-ahead".into()).spawn(fetch).is_err() {
                self.0.ahead.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Inner {
    fn block(&self, number: u64) -> Result<Arc<File>> {
        self.open.get(number, || {
            let Shard { place, bytes, stamp, tag, .. } = &self.shard;
            let key = format!("{place} {bytes} {stamp} {tag:?} {} {number}", self.stores.block);
            let file = self.cache.file(&key, |out| {
                let start = number * self.stores.block;
                let block = self.get(start, (*bytes).min(start + self.stores.block));
                let block = block.map_err(|reason| {
                    Error::shard(&self.shard.name, format!("at byte {start}: {reason}"))
                })?;
                out.write_all(&block).map_err(|e| Error::io(self.cache.folder(), e))
            })?;
            Ok((file, 1))
        })
    }

    fn get(&self, start: u64, end: u64) -> std::result::Result<bytes::Bytes, String> {
        let tag = self.shard.tag.clone();
        // Weak tags never match; then the size has to tell.
        let tag = tag.filter(|tag| !tag.starts_with("W/"));
        let (size, name) = (self.shard.bytes, self.shard.name.clone());
        self.stores.attempt(|| {
            let (store, path) = (Arc::clone(&self.at.store), self.at.path.clone());
            let options = GetOptions::new().with_range(Some(start..end)).with_if_match(tag.clone());
            let name = name.clone();
            async move {
                let answer = store.get_opts(&path, options).await?;
                if answer.meta.size != size {
                    let source = format!("has {} bytes now, had {size}", answer.meta.size).into();
                    return Err(object_store::Error::Precondition { path: name, source });
                }
                let bytes = answer.bytes().await?;
                match bytes.len() as u64 == end - start {
                    true => Ok(bytes),
                    false => Err(object_store::Error::Generic {
                        store: "answer",
                        source: format!("{} bytes of {}", bytes.len(), end - start).into(),
                    }),
                }
            }
        })
    }
}
