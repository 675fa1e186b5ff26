//! Random access to all examples of a list of shards.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::{fmt, fs};

use crc32c::crc32c;
use sha2::{Digest, Sha256};

use crate::blob::Blob;
use crate::build::{Progress, build};
use crate::cache::Cache;
use crate::config::SourceConfig;
use crate::example::{Example, Field, Fields};
use crate::index::{Entry, Index, Kind};
use crate::lru::CostLru;
use crate::parquet::{Rows, Table};
use crate::remote::Stores;
use crate::shard::{Format, Shard, is_remote};
use crate::{Error, Result, jsonl, locations, tar};

/// Maximum number of open shards.
const MAX_OPEN_SHARDS: u64 = 64;

/// Maximum number of concurrent requests of [`Source::prefetch`], plus one.
const PREFETCH_THREADS: usize = 17;

/// The examples of a list of shards: indexed once, then read by index from any thread.
pub struct Source {
    index: Index,
    stores: Arc<Stores>,
    cache: Arc<Cache>,
    open: CostLru<u32, Opened>,
    groups: CostLru<(u32, usize), Rows>,
}

struct Opened {
    blob: Arc<Blob>,
    /// Footer of a Parquet shard.
    table: Option<Table>,
}

impl Source {
    /// Lists the shards and opens their index in the directory `cache`, or builds it.
    ///
    /// The index is reused if the shards' names, sizes, modification times and order are unchanged.
    ///
    /// # Errors
    /// [`Error::Config`] if the settings are invalid; [`Error::Shard`] if a location has no shards
    /// or a shard is invalid or truncated; [`Error::Io`] if a file cannot be read or the index
    /// cannot be written.
    pub fn open(
        config: &SourceConfig,
        cache: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        config.validate()?;
        let stores = Arc::new(Stores::new(config));
        let shards = locations::list_shards(&config.shards, &stores)?;
        let path = cache.join(index_name(&config.shards));
        let cache = Arc::new(Cache::new(cache.join("pieces"), config.cache_bytes));
        let index = match Index::open(&path, &shards) {
            Some(index) => index,
            None => build(&path, &shards, &stores, &cache, progress)?,
        };
        if index.examples == 0 {
            let reason = format!("no examples in {} shards", index.shards.len());
            return Err(Error::shard(config.shards.join(", "), reason));
        }
        let (open, groups) = (CostLru::new(MAX_OPEN_SHARDS), CostLru::new(config.memory_bytes));
        Ok(Self { index, stores, cache, open, groups })
    }

    /// Returns the number of examples, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.index.examples as usize
    }

    /// Returns an example's name for messages: its shard and key, independent of the shards'
    /// location.
    ///
    /// # Panics
    /// If `index` is out of range, as all methods that take an `index`.
    pub fn name(&self, index: usize) -> String {
        match self.index.entry(index as u64) {
            Ok(entry) => format!("{}/{}", self.shard(&entry).name, entry.key),
            Err(_) => format!("example {index}"), // reading it returns the error
        }
    }

    /// Returns an example's fields without reading them; for Parquet, the columns.
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

    /// Returns the class names of a column, if the first shard is Parquet with a Hugging Face
    /// `ClassLabel`.
    ///
    /// # Errors
    /// If the shard's footer cannot be read.
    pub fn classes(&self, column: &str) -> Result<Option<Vec<String>>> {
        if self.index.shards[0].format != Format::Parquet {
            return Ok(None);
        }
        Ok(self.opened(0)?.table.as_ref().and_then(|table| table.classes(column)))
    }

    /// Returns the index of an example's shard, and the example's path without a field.
    ///
    /// The path is the key in a tar shard; otherwise keys are line or row numbers, and the shard's
    /// name is prepended.
    pub(crate) fn shard_and_path(&self, index: usize) -> Result<(u32, String)> {
        let entry = self.index.entry(index as u64)?;
        let Shard { name, format, .. } = self.shard(&entry);
        match format {
            Format::Tar => Ok((entry.shard, entry.key)),
            Format::JsonLines | Format::Parquet => {
                Ok((entry.shard, format!("{name}/{}", entry.key)))
            }
        }
    }

    /// Returns a shard's name for messages.
    pub(crate) fn shard_name(&self, shard: u32) -> &str {
        &self.index.shards[shard as usize].name
    }

    /// Returns a number that changes when the shard changes.
    pub(crate) fn shard_stamp(&self, shard: u32) -> u64 {
        let Shard { stamp, tag, .. } = &self.index.shards[shard as usize];
        crc32c(format!("{stamp} {tag:?}").as_bytes()).into()
    }

    /// Reads an example.
    ///
    /// # Errors
    /// [`Error::Shard`] with the shard and key if the example does not match the index or is not
    /// valid JSON; [`Error::Io`] if the shard cannot be opened.
    pub fn read(&self, index: usize) -> Result<Example> {
        self.read_some(index, &|_| true)
    }

    /// Reads the fields of an example whose names are `wanted`; of a Parquet row, all fields.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_some(&self, index: usize, wanted: &dyn Fn(&str) -> bool) -> Result<Example> {
        let mut entry = self.index.entry(index as u64)?;
        // Reading an invalid part returns the cause.
        entry.parts.retain(|part| part.kind == Kind::Invalid || wanted(&part.name));
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

    /// Fetches the remote blocks that these examples need and the cache lacks, concurrently.
    ///
    /// Later reads of a batch then wait once instead of once per example. Errors are ignored here;
    /// [`read`](Self::read) returns them.
    pub fn prefetch(&self, indices: &[usize]) {
        let mut wanted = BTreeMap::new();
        for &index in indices {
            let Ok(entry) = self.index.entry(index as u64) else { continue };
            if !is_remote(&self.shard(&entry).location) {
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
        let threads = PREFETCH_THREADS.min(indices.len());
        std::thread::scope(|scope| (1..threads).for_each(|_| drop(scope.spawn(work))));
    }

    fn row(&self, table: &Table, entry: &Entry) -> std::result::Result<Fields, String> {
        let changed = || "the row does not exist; the shard has changed".to_owned();
        let (group, row) = table.locate(&entry.key).ok_or_else(changed)?;
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

/// Returns the index file name of a list of locations.
fn index_name(locations: &[String]) -> String {
    let mut digest = Sha256::new();
    for location in locations {
        // Relative and absolute paths share an index.
        let absolute = fs::canonicalize(location).map(|path| path.to_string_lossy().into_owned());
        let location = absolute.unwrap_or_else(|_| location.clone());
        digest.update((location.len() as u64).to_le_bytes());
        digest.update(location);
    }
    let hex: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("shards-{hex}.index")
}
