//! Remote shards: read in blocks of fixed size, which are cached on disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use object_store::GetOptions;

use super::{StoreLocation, Stores};
use crate::cache::Cache;
use crate::lru::CostLru;
use crate::shard::Shard;
use crate::{Error, Result};

/// Maximum number of open blocks per shard.
const MAX_OPEN_BLOCKS: u64 = 16;
/// Number of blocks fetched ahead of sequential reads.
const READ_AHEAD: u64 = 4;

/// A shard in a store.
#[derive(Clone)]
pub(crate) struct Remote(Arc<Inner>);

struct Inner {
    shard: Shard,
    location: StoreLocation,
    stores: Arc<Stores>,
    cache: Arc<Cache>,
    open: CostLru<u64, File>,
    /// The last block read.
    last: AtomicU64,
    /// Number of running read-ahead threads.
    read_ahead_threads: AtomicUsize,
}

impl Remote {
    pub fn open(shard: &Shard, stores: &Arc<Stores>, cache: &Arc<Cache>) -> Result<Self> {
        let location = stores.locate(&shard.location);
        let location = location.map_err(|reason| Error::shard(&shard.name, reason))?;
        Ok(Self(Arc::new(Inner {
            shard: shard.clone(),
            location,
            stores: Arc::clone(stores),
            cache: Arc::clone(cache),
            open: CostLru::new(MAX_OPEN_BLOCKS),
            last: AtomicU64::new(u64::MAX),
            read_ahead_threads: AtomicUsize::new(0),
        })))
    }

    pub fn len(&self) -> u64 {
        self.0.shard.bytes
    }

    /// Reads from `offset` to the end of its block at most; returns 0 at the end of the shard.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if offset >= self.len() || buffer.is_empty() {
            return Ok(0);
        }
        let size = self.0.stores.block_bytes;
        let (number, start) = (offset / size, offset % size);
        self.read_ahead(number);
        let file = self.0.block(number).map_err(io::Error::other)?;
        let len = buffer.len().min((self.block_end(number) - offset) as usize);
        file.read_exact_at(&mut buffer[..len], start)?;
        Ok(len)
    }

    /// Returns the blocks that contain a range of bytes.
    pub fn blocks(&self, start: u64, end: u64) -> std::ops::Range<u64> {
        let size = self.0.stores.block_bytes;
        start / size..end.min(self.len()).div_ceil(size)
    }

    /// Fetches a block into the cache; errors are ignored here and returned when it is read.
    pub fn fetch(&self, number: u64) {
        let _ = self.0.block(number);
    }

    fn block_end(&self, number: u64) -> u64 {
        self.len().min((number + 1) * self.0.stores.block_bytes)
    }

    /// Fetches the next blocks in the background if the shard is read sequentially.
    fn read_ahead(&self, number: u64) {
        let last = self.0.last.swap(number, Ordering::Relaxed);
        if last.checked_add(1) != Some(number) {
            return;
        }
        let next = self.blocks(0, self.len()).end.min(number + 1 + READ_AHEAD);
        for number in number + 1..next {
            if self.0.read_ahead_threads.fetch_add(1, Ordering::Relaxed) >= READ_AHEAD as usize {
                self.0.read_ahead_threads.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let remote = self.clone();
            let fetch = move || {
                remote.fetch(number);
                remote.0.read_ahead_threads.fetch_sub(1, Ordering::Relaxed);
            };
            if std::thread::Builder::new().name("read-ahead".into()).spawn(fetch).is_err() {
                self.0.read_ahead_threads.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Inner {
    fn block(&self, number: u64) -> Result<Arc<File>> {
        self.open.get(number, || {
            let Shard { location, bytes, stamp, tag, .. } = &self.shard;
            let size = self.stores.block_bytes;
            let key = format!("{location} {bytes} {stamp} {tag:?} {size} {number}");
            let file = self.cache.file(&key, |out| {
                let start = number * size;
                let block = self.get(start, (*bytes).min(start + size));
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
        // Weak ETags never match; then only the size reveals changes.
        let tag = tag.filter(|tag| !tag.starts_with("W/"));
        let (size, name) = (self.shard.bytes, self.shard.name.clone());
        self.stores.with_retries(|| {
            let (store, path) = (Arc::clone(&self.location.store), self.location.path.clone());
            let options = GetOptions::new().with_range(Some(start..end)).with_if_match(tag.clone());
            let name = name.clone();
            async move {
                let response = store.get_opts(&path, options).await?;
                if response.meta.size != size {
                    let source = format!(
                        "has {} bytes but had {size} when it was listed",
                        response.meta.size
                    )
                    .into();
                    return Err(object_store::Error::Precondition { path: name, source });
                }
                let bytes = response.bytes().await?;
                match bytes.len() as u64 == end - start {
                    true => Ok(bytes),
                    false => Err(object_store::Error::Generic {
                        store: "response",
                        source: format!("got {} of {} bytes", bytes.len(), end - start).into(),
                    }),
                }
            }
        })
    }
}
