//! The index: a file with the position of every example, read block by block instead of loaded into
//! memory.
//!
//! ```text
//! blocks     64 examples each: varints and names
//! table      for each block: offset (8 bytes), checksum (4 bytes)
//! metadata   JSON: the shards, the number of examples
//! tail       checksum of the metadata, its length, the magic number
//! ```
//!
//! Blocks are verified when they are read, so opening takes constant time.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crc32c::{crc32c, crc32c_append};
use serde::{Deserialize, Serialize};

use crate::shard::Shard;
use crate::varint::{self, Bytes};
use crate::{Error, Result};

/// Last bytes of an index; identifies the format version.
const MAGIC: &[u8; 8] = b"d2vindx1";
/// Examples per block: about 3 kB, close to the page size of a disk.
const BLOCK: u64 = 64;
/// Bytes of a table entry.
const TABLE_ENTRY: u64 = 12;
const TAIL: u64 = 20;

/// Position of an example.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Index of its shard.
    pub shard: u32,
    pub key: String,
    pub parts: Vec<Part>,
}

/// Position of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub name: String,
    /// Offset of its bytes in the shard; of a sparse file, of its header.
    pub start: u64,
    pub size: u64,
    pub kind: Kind,
}

/// Encoding of a field's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stored as they are.
    #[default]
    Plain,
    /// A sparse file of a tar shard, whose holes are not stored.
    Sparse,
    /// A line that is not a JSON object.
    Invalid,
}

impl Entry {
    pub fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.shard.into());
        varint::put_str(out, &self.key);
        varint::put(out, self.parts.len() as u64);
        // Fields are close together: the first offset is absolute, the others are relative.
        let mut end = 0;
        for part in &self.parts {
            varint::put_str(out, &part.name);
            varint::put_signed(out, part.start.wrapping_sub(end) as i64);
            varint::put(out, part.size << 2 | part.kind as u64);
            end = part.start.wrapping_add(part.size);
        }
    }

    /// Returns the byte range of all its fields.
    pub fn range(&self) -> Option<(u64, u64)> {
        let start = self.parts.iter().map(|part| part.start).min()?;
        let end = self.parts.iter().map(|part| part.start.saturating_add(part.size)).max()?;
        Some((start, end))
    }

    fn decode(bytes: &mut Bytes) -> Option<Self> {
        let shard = bytes.number()?.try_into().ok()?;
        let key = bytes.str()?.to_owned();
        let count = bytes.number()?;
        let (mut parts, mut end) = (Vec::new(), 0_u64);
        for _ in 0..count {
            let name = bytes.str()?.to_owned();
            let start = end.wrapping_add(bytes.signed()? as u64);
            let number = bytes.number()?;
            let kind = match number & 3 {
                0 => Kind::Plain,
                1 => Kind::Sparse,
                2 => Kind::Invalid,
                _ => return None,
            };
            let size = number >> 2;
            parts.push(Part { name, start, size, kind });
            end = start.wrapping_add(size);
        }
        Some(Self { shard, key, parts })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    shards: Vec<Shard>,
    examples: u64,
}

/// An open index.
#[derive(Debug)]
pub(crate) struct Index {
    file: File,
    path: PathBuf,
    pub shards: Vec<Shard>,
    pub examples: u64,
    /// Offset of the table.
    table: u64,
    /// The last block read, for sequential access.
    last: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl Index {
    /// Opens the index at `path`; `None` unless it is valid and of exactly these shards.
    pub fn open(path: &Path, shards: &[Shard]) -> Option<Self> {
        Self::read(path).ok().filter(|index| index.shards == shards)
    }

    fn read(path: &Path) -> io::Result<Self> {
        let bad = || io::Error::other("invalid index");
        let file = File::open(path)?;
        let tail_at = file.metadata()?.len().checked_sub(TAIL).ok_or_else(bad)?;
        let mut tail = [0; TAIL as usize];
        file.read_exact_at(&mut tail, tail_at)?;
        let (crc, rest) = tail.split_at(4);
        let (len, magic) = rest.split_at(8);
        let len = u64::from_le_bytes(len.try_into().unwrap_or_default());
        let at = tail_at.checked_sub(len).filter(|_| magic == MAGIC).ok_or_else(bad)?;
        let mut json = vec![0; len as usize];
        file.read_exact_at(&mut json, at)?;
        if crc32c(&json).to_le_bytes() != crc {
            return Err(bad());
        }
        let Metadata { shards, examples } = serde_json::from_slice(&json)?;
        let table_bytes = examples.div_ceil(BLOCK).checked_mul(TABLE_ENTRY).ok_or_else(bad)?;
        let table = at.checked_sub(table_bytes).ok_or_else(bad)?;
        Ok(Self { file, path: path.to_owned(), shards, examples, table, last: Mutex::default() })
    }

    /// Returns the position of example `number`.
    ///
    /// # Errors
    /// If the file is damaged or unreadable.
    ///
    /// # Panics
    /// If `number` is out of range.
    pub fn entry(&self, number: u64) -> Result<Entry> {
        assert!(number < self.examples, "example {number} is out of range for {}", self.examples);
        let block = self.block(number / BLOCK)?;
        let mut bytes = Bytes::new(&block);
        for _ in 0..number % BLOCK {
            bytes.record().ok_or_else(|| self.damaged())?;
        }
        let entry = bytes.record().and_then(|record| Entry::decode(&mut Bytes::new(record)));
        entry
            .filter(|entry| (entry.shard as usize) < self.shards.len())
            .ok_or_else(|| self.damaged())
    }

    fn block(&self, number: u64) -> Result<Arc<[u8]>> {
        let known = self.last.lock().unwrap_or_else(|e| e.into_inner()).clone();
        if let Some((_, block)) = known.filter(|(known, _)| *known == number) {
            return Ok(block);
        }
        let read = |at: u64, len: u64| {
            let mut bytes = vec![0; len as usize];
            self.file.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        let io = |error| Error::io(&self.path, error);
        // This table entry, and the next one's offset: a block ends where the next block or the
        // table starts.
        let at = self.table + number * TABLE_ENTRY;
        let is_last = (number + 1) * BLOCK >= self.examples;
        let entry = read(at, if is_last { TABLE_ENTRY } else { 2 * TABLE_ENTRY }).map_err(io)?;
        let offset = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap_or_default());
        let start = offset(&entry[..8]);
        let end = if is_last { self.table } else { offset(&entry[12..20]) };
        let len = end.checked_sub(start).filter(|_| end <= self.table);
        let block = read(start, len.ok_or_else(|| self.damaged())?).map_err(io)?;
        if checksum(number, &block).to_le_bytes() != entry[8..12] {
            return Err(self.damaged());
        }
        let block: Arc<[u8]> = block.into();
        *self.last.lock().unwrap_or_else(|e| e.into_inner()) = Some((number, block.clone()));
        Ok(block)
    }

    fn damaged(&self) -> Error {
        let location = self.path.display().to_string();
        Error::shard(location, "the index is damaged; remove it, and the next run rebuilds it")
    }
}

/// Checksum of a block and its number, so that swapped blocks are detected.
fn checksum(number: u64, block: &[u8]) -> u32 {
    crc32c_append(crc32c(&number.to_le_bytes()), block)
}

/// Sequential writer of an index.
#[derive(Debug)]
pub(crate) struct Writer {
    out: BufWriter<File>,
    at: u64,
    block: Vec<u8>,
    table: Vec<u8>,
    pub examples: u64,
}

impl Writer {
    pub fn create(path: &Path) -> io::Result<Self> {
        let out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        Ok(Self { out, at: 0, block: Vec::new(), table: Vec::new(), examples: 0 })
    }

    /// Adds an example's [`Entry::encode`].
    pub fn add(&mut self, record: &[u8]) -> io::Result<()> {
        varint::put(&mut self.block, record.len() as u64);
        self.block.extend_from_slice(record);
        self.examples += 1;
        if self.examples.is_multiple_of(BLOCK) { self.close_block() } else { Ok(()) }
    }

    fn close_block(&mut self) -> io::Result<()> {
        let number = self.table.len() as u64 / TABLE_ENTRY;
        self.table.extend(self.at.to_le_bytes());
        self.table.extend(checksum(number, &self.block).to_le_bytes());
        self.out.write_all(&self.block)?;
        self.at += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    pub fn finish(mut self, shards: &[Shard]) -> io::Result<()> {
        if !self.block.is_empty() {
            self.close_block()?;
        }
        self.out.write_all(&self.table)?;
        let metadata = Metadata { shards: shards.to_vec(), examples: self.examples };
        let json = serde_json::to_vec(&metadata)?;
        self.out.write_all(&json)?;
        self.out.write_all(&crc32c(&json).to_le_bytes())?;
        self.out.write_all(&(json.len() as u64).to_le_bytes())?;
        self.out.write_all(MAGIC)?;
        // No fsync: after a crash the checksums reveal a damaged index.
        self.out.flush()
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
