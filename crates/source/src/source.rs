//! All examples of a list of shards, by number.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::blob::Blob;
use crate::build::build;
use crate::example::{Example, Field};
use crate::index::{Entry, Index};
use crate::lru::Lru;
use crate::places::{self, Format};
use crate::{Error, Result, tar};

/// Shards that are kept open.
const OPEN: u64 = 64;

/// Where shards are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Folders (with shards anywhere below), files, names with `{000..017}`, `{a,b}`, `*` and `?`, or
    /// `.txt` and `.list` files that name one of these a line, relative to themselves.
    pub shards: Vec<String>,
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
#[derive(Debug)]
pub struct Source {
    index: Index,
    open: Lru<u32, Blob>,
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
        if config.shards.is_empty() {
            return Err(Error::config("shards", "name at least one place where shards are"));
        }
        let shards = places::shards(&config.shards)?;
        let path = cache.join(index_name(&config.shards));
        let index = match Index::open(&path, &shards) {
            Some(index) => index,
            None => build(&path, &shards, progress)?,
        };
        if index.examples == 0 {
            let reason = format!("no example in {} shards", index.shards.len());
            return Err(Error::shard(config.shards.join(", "), reason));
        }
        Ok(Self { index, open: Lru::new(OPEN) })
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
            Ok(entry) => format!("{}/{}", self.index.shards[entry.shard as usize].name, entry.key),
            Err(_) => format!("example {index}"), // reading it tells what is wrong
        }
    }

    /// What fields an example has, without reading them.
    ///
    /// # Errors
    /// [`Error`] if the index cannot be read any more.
    pub fn fields(&self, index: usize) -> Result<Vec<Field>> {
        let entry = self.index.entry(index as u64)?;
        let field = |part: crate::index::Part| Field { name: part.name, size: Some(part.size) };
        Ok(entry.parts.into_iter().map(field).collect())
    }

    /// Reads an example.
    ///
    /// # Errors
    /// [`Error::Shard`] that names shard, example and byte if it is not what the index says;
    /// [`Error::Io`] if the shard cannot be opened.
    pub fn read(&self, index: usize) -> Result<Example> {
        let entry = self.index.entry(index as u64)?;
        let shard = &self.index.shards[entry.shard as usize];
        let blob = self.open.get(entry.shard, || Ok::<_, Error>((Blob::open(shard)?, 1)))?;
        let fields = match shard.format {
            Format::Tar => tar::read(&blob, &entry),
        };
        let Entry { key, .. } = entry;
        match fields {
            Ok(fields) => Ok(Example { key, fields }),
            Err(reason) => Err(Error::shard(format!("{}/{key}", shard.name), reason)),
        }
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
