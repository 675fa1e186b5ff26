//! Where every example is, in a file that is read by pieces: however many there are, it takes no memory.
//!
//! ```text
//! blocks     of 64 examples each, as numbers of 7 bits a byte and names
//! table      8 bytes where a block starts, 4 bytes its checksum, for each
//! about      JSON: the shards, how many examples
//! tail       checksum of `about`, its length, the magic number
//! ```
//!
//! A block is checked whenever it is read, so opening takes as long for ten million examples as for ten.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crc32c::{crc32c, crc32c_append};
use serde::{Deserialize, Serialize};

use crate::places::Shard;
use crate::varint::{self, Bytes};
use crate::{Error, Result};

/// Last bytes of an index; others mean another format.
const MAGIC: &[u8; 8] = b"d2vindx1";
/// Examples of a block: about 3 kB, which is what a disk reads at once.
const BLOCK: u64 = 64;
/// Bytes of a line of the table.
const LINE: u64 = 12;
const TAIL: u64 = 20;

/// Where an example is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Number of its shard.
    pub shard: u32,
    pub key: String,
    pub parts: Vec<Part>,
}

/// A field of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub name: String,
    /// Where its bytes start in the shard; of a sparse file, its header.
    pub start: u64,
    pub size: u64,
    pub kind: Kind,
}

/// How a field's bytes are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As they are.
    #[default]
    Plain,
    /// A file of a tar shard with holes that the shard does not hold.
    Sparse,
    /// A line that is none.
    Broken,
}

impl Entry {
    pub fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.shard.into());
        varint::put_str(out, &self.key);
        varint::put(out, self.parts.len() as u64);
        // Fields follow each other closely: the first place is large, the others are steps.
        let mut end = 0;
        for part in &self.parts {
            varint::put_str(out, &part.name);
            varint::put_signed(out, part.start.wrapping_sub(end) as i64);
            varint::put(out, part.size << 2 | part.kind as u64);
            end = part.start.wrapping_add(part.size);
        }
    }

    /// Where in the shard all its fields are.
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
                2 => Kind::Broken,
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
struct About {
    shards: Vec<Shard>,
    examples: u64,
}

/// An index that is whole.
#[derive(Debug)]
pub(crate) struct Index {
    file: File,
    path: PathBuf,
    pub shards: Vec<Shard>,
    pub examples: u64,
    /// Where the table starts.
    table: u64,
    /// The block that was read last, for those who go through all.
    last: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl Index {
    /// The index at `path` if it is whole and of these shards.
    pub fn open(path: &Path, shards: &[Shard]) -> Option<Self> {
        Self::read(path).ok().filter(|index| index.shards == shards)
    }

    fn read(path: &Path) -> io::Result<Self> {
        let bad = || io::Error::other("another format");
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
        let About { shards, examples } = serde_json::from_slice(&json)?;
        let lines = examples.div_ceil(BLOCK).checked_mul(LINE).ok_or_else(bad)?;
        let table = at.checked_sub(lines).ok_or_else(bad)?;
        Ok(Self { file, path: path.to_owned(), shards, examples, table, last: Mutex::default() })
    }

    /// Where example `number` is.
    ///
    /// # Errors
    /// If the file was damaged since it was written.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn entry(&self, number: u64) -> Result<Entry> {
        assert!(number < self.examples, "example {number} of {}", self.examples);
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
        // This line of the table and the start of the next block, or of the table after the last.
        let at = self.table + number * LINE;
        let is_last = (number + 1) * BLOCK >= self.examples;
        let line = read(at, if is_last { LINE } else { 2 * LINE }).map_err(io)?;
        let place = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap_or_default());
        let start = place(&line[..8]);
        let end = if is_last { self.table } else { place(&line[12..20]) };
        let len = end.checked_sub(start).filter(|_| end <= self.table);
        let block = read(start, len.ok_or_else(|| self.damaged())?).map_err(io)?;
        if checksum(number, &block).to_le_bytes() != line[8..12] {
            return Err(self.damaged());
        }
        let block: Arc<[u8]> = block.into();
        *self.last.lock().unwrap_or_else(|e| e.into_inner()) = Some((number, block.clone()));
        Ok(block)
    }

    fn damaged(&self) -> Error {
        let place = self.path.display().to_string();
        Error::shard(place, "this index is damaged: remove it, the next run makes it again")
    }
}

/// Depends on the place as well: blocks that changed places are found.
fn checksum(number: u64, block: &[u8]) -> u32 {
    crc32c_append(crc32c(&number.to_le_bytes()), block)
}

/// Writes an index from front to back.
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
        let number = self.table.len() as u64 / LINE;
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
        let about = About { shards: shards.to_vec(), examples: self.examples };
        let json = serde_json::to_vec(&about)?;
        self.out.write_all(&json)?;
        self.out.write_all(&crc32c(&json).to_le_bytes())?;
        self.out.write_all(&(json.len() as u64).to_le_bytes())?;
        self.out.write_all(MAGIC)?;
        // Not forced onto the disk: should the machine stop now, the checksums tell.
        self.out.flush()
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
