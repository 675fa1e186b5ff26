//! All examples of a list of shards, by number.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::{fmt, fs};

use crc32c::crc32c;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::blob::Blob;
use crate::build::build;
use crate::cache::Cache;
use crate::example::{Example, Field, Fields};
use crate::index::{Entry, Index, Kind};
use crate::lru::Lru;
use crate::parquet::{Rows, Table};
use crate::places::{self, Format, Shard, is_remote};
use crate::remote::Stores;
use crate::{Error, Result, jsonl, tar};

/// Shards that are kept open.
const OPEN: u64 = 64;

/// Requests that [`Source::prefetch`] makes at once.
const REQUESTS: usize = 17;

/// Where shards are, and what may be spent on reading them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Folders (with shards anywhere below), files, names with `{000..017}`, `{a,b}`, `*` and `?`, or
    /// `.txt` and `.list` files that name one of these a line, relative to themselves. On this machine, or
    /// behind `s3://BUCKET/`, `gs://BUCKET/`, `az://CONTAINER/` or `https://`; the last cannot list folders
    /// or stars.
    pub shards: Vec<String>,
    /// Bytes on disk of what is kept of shards, for all processes that share the folder: blocks of those
    /// that are read over a network, and in whole those that are compressed as a whole.
    pub cache_bytes: u64,
    /// Bytes that are asked for at once over a network.
    pub block_bytes: u64,
    /// How long an answer over a network may take.
    pub timeout_seconds: u64,
    /// How often a request that failed is made again, after 0.1 s, 0.2 s, … and at most 20 s.
    pub retries: u32,
    /// Bytes in memory of decoded row groups of Parquet; the newest is kept whatever its size.
    pub memory_bytes: u64,
}

impl Default for SourceConfig {
    /// No shards, 32 GiB of disk and 1 GiB of memory, blocks of 4 MiB, a minute, 8 times.
    fn default() -> Self {
        Self {
            shards: Vec::new(),
            cache_bytes: 32 << 30,
            block_bytes: 4 << 20,
            timeout_seconds: 60,
            retries: 8,
            memory_bytes: 1 << 30,
        }
    }
}

impl SourceConfig {
    /// What can be checked without looking at shards.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn validate(&self) -> Result<()> {
        if self.shards.is_empty() {
            return Err(Error::config("shards", "name at least one place where shards are"));
        }
        if !(1 << 12..=1 << 30).contains(&self.block_bytes) {
            return Err(Error::config("block_bytes", "must be from 4096 to 2^30"));
        }
        if self.cache_bytes < self.block_bytes {
            return Err(Error::config("cache_bytes", "must be at least block_bytes"));
        }
        if self.timeout_seconds == 0 {
            return Err(Error::config("timeout_seconds", "must be at least 1"));
        }
        Ok(())
    }
}

/// How far the making of an index has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Shards looked through.
    pub shards: usize,
    /// Shards in all.
    pub total: usize,
    /// Examples found.
    pub examples: u64,
}

/// The examples of a list of shards, found once and then read by number from any thread.
pub struct Source {
    index: Index,
    stores: Arc<Stores>,
    cache: Arc<Cache>,
    open: Lru<u32, Opened>,
    groups: Lru<(u32, usize), Rows>,
}

struct Opened {
    blob: Arc<Blob>,
    /// Of Parquet, its footer.
    table: Option<Table>,
}

impl Source {
    /// Lists the shards, and looks through them unless the index in the folder `cache` is of just these:
    /// the same names, sizes and times of change, in the same order.
    ///
    /// # Errors
    /// [`Error::Config`] if no place is named; [`Error::Shard`] if one holds no shard or a shard is
    /// broken or cut off; [`Error::Io`] if something cannot be read, or the index not be written.
    pub fn open(
        config: &SourceConfig,
        cache: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        config.validate()?;
        let stores = Arc::new(Stores::new(config));
        let shards = places::shards(&config.shards, &stores)?;
        let path = cache.join(index_name(&config.shards));
        let cache = Arc::new(Cache::new(cache.join("pieces"), config.cache_bytes));
        let index = match Index::open(&path, &shards) {
            Some(index) => index,
            None => build(&path, &shards, &stores, &cache, progress)?,
        };
        if index.examples == 0 {
            let reason = format!("no example in {} shards", index.shards.len());
            return Err(Error::shard(config.shards.join(", "), reason));
        }
        let (open, groups) = (Lru::new(OPEN), Lru::new(config.memory_bytes));
        Ok(Self { index, stores, cache, open, groups })
    }

    /// How many examples there are, at least one.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.index.examples as usize
    }

    /// What to call an example in a message: its shard and its key. It does not depend on where the
    /// shards lie.
    ///
    /// # Panics
    /// If there are not so many; so does everything that takes an `index`.
    pub fn name(&self, index: usize) -> String {
        match self.index.entry(index as u64) {
            Ok(entry) => format!("{}/{}", self.shard(&entry).name, entry.key),
            Err(_) => format!("example {index}"), // reading it tells what is wrong
        }
    }

    /// What fields an example has, without reading them; those of Parquet that it can have.
    ///
    /// # Errors
    /// If the index, or a Parquet shard's footer, cannot be read.
    pub fn fields(&self, index: usize) -> Result<Vec<Field>> {
        let entry = self.index.entry(index as u64)?;
        if self.shard(&entry).format == Format::Parquet {
            let opened = self.opened(entry.shard)?;
            let columns = opened.table.iter().flat_map(Table::columns);
            return Ok(columns.map(|name| Field { name, size: None }).collect());
        }
        let parts = entry.parts.into_iter();
        Ok(parts.map(|part| Field { name: part.name, size: Some(part.size) }).collect())
    }

    /// What the numbers in a column of classes mean, if the first shard is Parquet whose writer noted it as
    /// Hugging Face's `ClassLabel` does.
    ///
    /// # Errors
    /// If the shard's footer cannot be read.
    pub fn classes(&self, column: &str) -> Result<Option<Vec<String>>> {
        if self.index.shards[0].format != Format::Parquet {
            return Ok(None);
        }
        Ok(self.opened(0)?.table.as_ref().and_then(|table| table.classes(column)))
    }

    /// The number of an example's shard, and the example's path, without the name of a field: its key in a tar
    /// shard; else, since keys are numbers of lines and rows, that below the shard's name.
    pub(crate) fn place(&self, index: usize) -> Result<(u32, String)> {
        let entry = self.index.entry(index as u64)?;
        let Shard { name, format, .. } = self.shard(&entry);
        match format {
            Format::Tar => Ok((entry.shard, entry.key)),
            Format::JsonLines | Format::Parquet => {
                Ok((entry.shard, format!("{name}/{}", entry.key)))
            }
        }
    }

    /// What messages call a shard.
    pub(crate) fn shard_name(&self, shard: u32) -> &str {
        &self.index.shards[shard as usize].name
    }

    /// Another number when the shard was changed.
    pub(crate) fn shard_stamp(&self, shard: u32) -> u64 {
        let Shard { stamp, tag, .. } = &self.index.shards[shard as usize];
        crc32c(format!("{stamp} {tag:?}").as_bytes()).into()
    }

    /// Reads an example.
    ///
    /// # Errors
    /// [`Error::Shard`] that names shard and example if it is not what the index says, or no JSON;
    /// [`Error::Io`] if the shard cannot be opened.
    pub fn read(&self, index: usize) -> Result<Example> {
        self.read_some(index, &|_| true)
    }

    /// Reads the fields of an example whose names are `wanted`; of a row, all.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_some(&self, index: usize, wanted: &dyn Fn(&str) -> bool) -> Result<Example> {
        let mut entry = self.index.entry(index as u64)?;
        // Reading what is broken tells why.
        entry.parts.retain(|part| part.kind == Kind::Broken || wanted(&part.name));
        let shard = self.shard(&entry);
        let opened = self.opened(entry.shard)?;
        let fields = match (&opened.table, shard.format) {
            (Some(table), _) => self.row(table, &entry),
            (None, Format::Tar) => tar::read(&opened.blob, &entry),
            (None, _) => jsonl::read(&opened.blob, &entry),
        };
        let Entry { key, .. } = entry;
        match fields {
            Ok(fields) => Ok(Example { key, fields }),
            Err(reason) => Err(Error::shard(format!("{}/{key}", shard.name), reason)),
        }
    }

    /// Has what these examples need fetched, all of it at once, if it is far away and not in the cache yet: one who
    /// is going to read them waits once and not for each. What goes wrong is told by [`read`](Self::read).
    pub fn prefetch(&self, indices: &[usize]) {
        let mut wanted = BTreeMap::new();
        for &index in indices {
            let Ok(entry) = self.index.entry(index as u64) else { continue };
            if !is_remote(&self.shard(&entry).place) {
                continue;
            }
            let Ok(opened) = self.opened(entry.shard) else { continue };
            let Some(remote) = opened.blob.remote() else { continue };
            let range = match &opened.table {
                Some(table) => table.range(&entry.key),
                None => entry.range(),
            };
            for block in range.map(|(start, end)| remote.blocks(start, end)).into_iter().flatten() {
                wanted.insert((entry.shard, block), Arc::clone(&opened));
            }
        }
        let wanted = Mutex::new(wanted.into_iter());
        let next = || wanted.lock().unwrap_or_else(|e| e.into_inner()).next();
        let work = || {
            while let Some(((_, block), opened)) = next() {
                if let Some(remote) = opened.blob.remote() {
                    remote.fetch(block);
                }
            }
        };
        let threads = REQUESTS.min(indices.len());
        std::thread::scope(|scope| (1..threads).for_each(|_| drop(scope.spawn(work))));
    }

    fn row(&self, table: &Table, entry: &Entry) -> std::result::Result<Fields, String> {
        let changed = || "is not there: the shard has changed".to_owned();
        let (group, row) = table.place(&entry.key).ok_or_else(changed)?;
        let rows = self.groups.get((entry.shard, group), || table.row_group(group))?;
        rows.get(row).cloned().ok_or_else(changed)
    }

    fn shard(&self, entry: &Entry) -> &Shard {
        &self.index.shards[entry.shard as usize]
    }

    fn opened(&self, number: u32) -> Result<Arc<Opened>> {
        self.open.get(number, || {
            let shard = &self.index.shards[number as usize];
            let blob = Blob::open(shard, &self.stores, &self.cache)?;
            let table = match shard.format {
                Format::Tar | Format::JsonLines => None,
                Format::Parquet => Some(Table::open(&blob)),
            };
            let table = table.transpose().map_err(|reason| Error::shard(&shard.name, reason))?;
            Ok((Opened { blob, table }, 1))
        })
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (shards, examples) = (self.index.shards.len(), self.index.examples);
        f.debug_struct("Source").field("shards", &shards).field("examples", &examples).finish()
    }
}

/// The same places have the same index file, which is made again when the shards there change.
fn index_name(places: &[String]) -> String {
    let mut digest = Sha256::new();
    for place in places {
        // Whence it is named must not matter.
        let whole = fs::canonicalize(place).map(|path| path.to_string_lossy().into_owned());
        let place = whole.unwrap_or_else(|_| place.clone());
        digest.update((place.len() as u64).to_le_bytes());
        digest.update(place);
    }
    let hex: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("shards-{hex}.index")
}
