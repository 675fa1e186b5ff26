//! Builds an index: threads scan shards in parallel, one writer stores their entries in shard
//! order.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::blob::Blob;
use crate::cache::Cache;
use crate::index::{Entry, Index, Writer};
use crate::remote::Stores;
use crate::shard::{Format, Shard, is_remote};
use crate::{Error, Result, jsonl, parquet, tar, temp, varint};

/// Bytes of records per batch sent to the writer.
const BATCH: usize = 1 << 16;
/// Maximum number of queued batches per shard.
const QUEUE: usize = 16;

/// Progress of building an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Shards scanned.
    pub shards: usize,
    /// Total number of shards.
    pub total: usize,
    /// Examples found.
    pub examples: u64,
}

/// Length-prefixed records, or the error of the shard.
type Batch = Result<Vec<u8>>;

/// Builds the index at `path` atomically, by renaming a temporary file.
pub(crate) fn build(
    path: &Path,
    shards: &[Shard],
    stores: &Arc<Stores>,
    cache: &Arc<Cache>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Index> {
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = temp::create(folder, &name, ".part").map_err(|e| Error::io(folder, e))?;
    write(temp.path(), shards, stores, cache, progress)?;
    temp.persist(path).map_err(|e| Error::io(path, e.error))?;
    let location = path.display().to_string();
    Index::open(path, shards).ok_or_else(|| {
        Error::shard(location, "the new index cannot be read; is another run writing it?")
    })
}

fn write(
    path: &Path,
    shards: &[Shard],
    stores: &Arc<Stores>,
    cache: &Arc<Cache>,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let io = |error| Error::io(path, error);
    let mut writer = Writer::create(path).map_err(io)?;
    // Threads take shards in order, so the shard the writer waits for is always being scanned.
    let (senders, receivers): (Vec<Sender<Batch>>, Vec<Receiver<Batch>>) =
        shards.iter().map(|_| bounded(QUEUE)).unzip();
    let queue = Mutex::new(shards.iter().enumerate().zip(senders));
    let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
    if shards.iter().any(|shard| is_remote(&shard.location)) {
        threads *= 4; // bound by latency, not by compute
    }
    let threads = threads.min(shards.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(((number, shard), send)) = {
                    let mut queue = queue.lock().unwrap_or_else(|e| e.into_inner());
                    queue.next()
                } {
                    scan_shard(number as u32, shard, stores, cache, &send);
                }
            });
        }
        let total = shards.len();
        for (done, batches) in receivers.into_iter().enumerate() {
            for batch in batches {
                let batch = batch?;
                let mut bytes = varint::Bytes::new(&batch);
                while let Some(record) = bytes.record() {
                    writer.add(record).map_err(io)?;
                }
                progress(Progress { shards: done, total, examples: writer.examples });
            }
        }
        progress(Progress { shards: total, total, examples: writer.examples });
        Ok(())
    })?;
    writer.finish(shards).map_err(io)
}

/// Sends the entries of a shard in batches; stops if the receiver is gone.
fn scan_shard(
    number: u32,
    shard: &Shard,
    stores: &Arc<Stores>,
    cache: &Arc<Cache>,
    send: &Sender<Batch>,
) {
    let (mut batch, mut record) = (Vec::new(), Vec::new());
    let mut found = |mut entry: Entry| {
        entry.shard = number;
        record.clear();
        entry.encode(&mut record);
        varint::put(&mut batch, record.len() as u64);
        batch.extend_from_slice(&record);
        batch.len() < BATCH || send.send(Ok(std::mem::take(&mut batch))).is_ok()
    };
    let scanned = Blob::open(shard, stores, cache).and_then(|blob| {
        let scanned = match shard.format {
            Format::Tar => tar::scan(&blob, &mut found),
            Format::JsonLines => jsonl::scan(&blob, &mut found),
            Format::Parquet => parquet::scan(&blob, &mut found),
        };
        scanned.map_err(|reason| Error::shard(&shard.name, reason))
    });
    // The receiver is gone after an error in another shard.
    let _ = send.send(scanned.map(|()| batch));
}
