//! Makes an index: all cores look through shards, one writes what they find in the order of the shards.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::blob::Blob;
use crate::cache::Cache;
use crate::index::{Entry, Index, Writer};
use crate::places::{Format, Shard, is_remote};
use crate::remote::Stores;
use crate::{Error, Progress, Result, jsonl, parquet, tar, varint};

/// Bytes of records that go to the writer at once.
const BATCH: usize = 1 << 16;
/// Batches of a shard that may wait.
const QUEUE: usize = 16;

/// Records behind their lengths, or why the shard has none.
type Batch = Result<Vec<u8>>;

/// Makes the index at `path`, whole or not at all.
pub(crate) fn build(
    path: &Path,
    shards: &[Shard],
    stores: &Arc<Stores>,
    cache: &Arc<Cache>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Index> {
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let draft = path.with_extension(format!("{}.part", std::process::id()));
    let built = write(&draft, shards, stores, cache, progress)
        .and_then(|()| fs::rename(&draft, path).map_err(|e| Error::io(path, e)));
    if let Err(error) = built {
        let _ = fs::remove_file(&draft); // what matters is the first error
        return Err(error);
    }
    let place = path.display().to_string();
    Index::open(path, shards)
        .ok_or_else(|| Error::shard(place, "cannot be read back; is another run writing it?"))
}

fn write(
    draft: &Path,
    shards: &[Shard],
    stores: &Arc<Stores>,
    cache: &Arc<Cache>,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let io = |error| Error::io(draft, error);
    let mut writer = Writer::create(draft).map_err(io)?;
    // A shard's turn comes in order, so the one that is waited for is always being looked through.
    let (senders, receivers): (Vec<Sender<Batch>>, Vec<Receiver<Batch>>) =
        shards.iter().map(|_| bounded(QUEUE)).unzip();
    let turns = Mutex::new(shards.iter().enumerate().zip(senders));
    let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
    if shards.iter().any(|shard| is_remote(&shard.place)) {
        threads *= 4; // they wait more than they compute
    }
    let threads = threads.min(shards.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(((number, shard), send)) = {
                    let mut turns = turns.lock().unwrap_or_else(|e| e.into_inner());
                    turns.next()
                } {
                    look_through(number as u32, shard, stores, cache, &send);
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

/// Finds the examples of a shard; stops when nobody wants them any more.
fn look_through(
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
    // Nobody may be listening any more, after an error elsewhere.
    let _ = send.send(scanned.map(|()| batch));
}
