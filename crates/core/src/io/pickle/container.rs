//! Containers of pickle and storages: a zip file, or the legacy sequential format.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::{Id, Node, Storage, invalid, machine};
use crate::{Error, Result};

/// Largest size of the pickle in bytes, without storages.
const MAX_PICKLE: u64 = 1 << 25;
/// Largest ratio of uncompressed to compressed size; `torch.save` does not compress.
const MAX_RATIO: u64 = 16;
/// First bytes of a legacy file: a pickle of a magic number.
const LEGACY: [u8; 15] =
    [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];

#[derive(Debug)]
pub(super) enum Container {
    /// A zip file with entries `PREFIX/data.pkl` and `PREFIX/data/KEY`.
    Zip { prefix: String },
    /// The legacy format, with the offset of each storage.
    Legacy { offsets: HashMap<String, u64> },
}

/// Opens a file and returns the pickle; in the legacy format, everything after the magic number.
pub(super) fn open(path: &Path) -> Result<(Container, Vec<u8>)> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut start = [0; LEGACY.len()];
    let read = read_start(&mut file, &mut start).map_err(|e| Error::io(path, e))?;
    if read == LEGACY.len() && start == LEGACY {
        return Ok((Container::Legacy { offsets: HashMap::new() }, rest(path, file)?));
    }
    if !start.starts_with(b"PK") {
        let reason = "is neither a safetensors nor a torch.save file";
        return Err(Error::file(path, reason));
    }
    let mut zip = archive(path)?;
    let name = pickle_entry(path, &mut zip)?;
    let prefix = name.trim_end_matches("data.pkl").to_owned();
    if let Ok(order) = entry(path, &mut zip, &format!("{prefix}byteorder"), 16)
        && order != b"little"
    {
        return Err(Error::file(path, "contains big-endian numbers; re-save it as little-endian"));
    }
    let pickle = entry(path, &mut zip, &name, MAX_PICKLE)?;
    Ok((Container::Zip { prefix }, pickle))
}

/// Fills `start` as far as the file has bytes and returns their number.
fn read_start(file: &mut File, start: &mut [u8]) -> std::io::Result<usize> {
    let mut read = 0;
    while read < start.len() {
        match file.read(&mut start[read..])? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

/// Opens the zip file and checks the declared sizes of its entries against its own size.
fn archive(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| zip_error(path, e))?;
    let mut declared: u64 = 0;
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|e| zip_error(path, e))?;
        declared = declared.saturating_add(entry.size());
    }
    if declared > len.saturating_mul(MAX_RATIO) {
        let reason = format!(
            "has {len} bytes, but its entries declare {declared} bytes uncompressed, \
             more than {MAX_RATIO} times as many"
        );
        return Err(Error::file(path, reason));
    }
    Ok(zip)
}

/// Returns the name of the entry of the pickle.
fn pickle_entry(path: &Path, zip: &mut ZipArchive<BufReader<File>>) -> Result<String> {
    for name in zip.file_names() {
        let name = name.map_err(|e| zip_error(path, e))?;
        if name == "data.pkl" || (name.ends_with("/data.pkl") && name.matches('/').count() == 1) {
            return Ok(name.into_owned());
        }
    }
    Err(Error::file(path, "is a zip file without data.pkl, so not a torch.save file"))
}

/// Reads the entry `name`, of at most `limit` bytes.
fn entry(
    path: &Path,
    zip: &mut ZipArchive<BufReader<File>>,
    name: &str,
    limit: u64,
) -> Result<Vec<u8>> {
    let file = zip.by_name(name).map_err(|e| zip_error(path, e))?;
    let size = file.size();
    if size > limit {
        let reason = format!("`{name}` has {size} bytes, at most {limit} are supported");
        return Err(Error::file(path, reason));
    }
    let mut bytes = Vec::new();
    let read = file.take(size.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|e| invalid(path, &format!("`{name}`: {e}")))?;
    if bytes.len() as u64 != size {
        let reason = format!("`{name}` does not have the {size} bytes that it declares");
        return Err(invalid(path, &reason));
    }
    Ok(bytes)
}

fn zip_error(path: &Path, error: ZipError) -> Error {
    match error {
        ZipError::Io(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            invalid(path, "its zip is truncated")
        }
        ZipError::Io(e) => Error::io(path, e),
        e => invalid(path, &e.to_string()),
    }
}

/// Reads everything after the magic number.
fn rest(path: &Path, mut file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(LEGACY.len() as u64))
        .and_then(|_| file.read_to_end(&mut bytes))
        .map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// Parses the legacy format: pickles of version, system information, object and storage keys, then
/// each storage as its number of elements and the elements.
pub(super) fn legacy(path: &Path, bytes: &[u8], nodes: &mut Vec<Node>) -> Result<(Id, Container)> {
    let mut at = 0;
    let mut next = |nodes: &mut Vec<Node>| {
        let limit = bytes.len().min(at + MAX_PICKLE as usize);
        let (id, used) = machine::run(&bytes[at..limit], nodes).map_err(|e| invalid(path, &e))?;
        at += used;
        Ok::<Id, Error>(id)
    };
    let (_version, _system) = (next(nodes)?, next(nodes)?);
    let (root, keys) = (next(nodes)?, next(nodes)?);
    let Node::List(keys) = &nodes[keys] else {
        return Err(invalid(path, "its list of storages is missing"));
    };
    let storage = |node: &Node| match node {
        Node::Storage(Storage { key, kind: Some(kind), .. }) => {
            Some((key.clone(), kind.elt_size_in_bytes() as u64))
        }
        _ => None,
    };
    let widths: HashMap<String, u64> = nodes.iter().filter_map(storage).collect();
    let (mut offsets, mut at) = (HashMap::new(), at as u64);
    for key in keys {
        let key = match &nodes[*key] {
            Node::String(key) => key.clone(),
            _ => return Err(invalid(path, "the key of a storage is not a string")),
        };
        let Some(width) = widths.get(&key) else {
            return Err(invalid(path, &format!("storage {key} has an unsupported type")));
        };
        let count = bytes.get(at as usize..at as usize + 8).and_then(|b| b.try_into().ok());
        let count = count.map(u64::from_le_bytes);
        let end = count.and_then(|n| n.checked_mul(*width)).and_then(|n| n.checked_add(at + 8));
        let Some(end) = end.filter(|&end| end <= bytes.len() as u64) else {
            return Err(invalid(path, "its storages are truncated"));
        };
        offsets.insert(key, at + 8 + LEGACY.len() as u64);
        at = end;
    }
    Ok((root, Container::Legacy { offsets }))
}

/// Reads the storages of a file.
pub(super) struct Storages<'a> {
    path: &'a Path,
    source: Source<'a>,
}

enum Source<'a> {
    Zip(Box<ZipArchive<BufReader<File>>>, &'a str),
    Legacy(File, &'a HashMap<String, u64>),
}

impl<'a> Storages<'a> {
    pub(super) fn open(path: &'a Path, container: &'a Container) -> Result<Self> {
        let source = match container {
            Container::Zip { prefix } => Source::Zip(Box::new(archive(path)?), prefix),
            Container::Legacy { offsets } => {
                Source::Legacy(File::open(path).map_err(|e| Error::io(path, e))?, offsets)
            }
        };
        Ok(Self { path, source })
    }

    /// Reads the first `len` bytes of the storage `key`.
    pub(super) fn read(&mut self, key: &str, len: u64) -> Result<Vec<u8>> {
        let path = self.path;
        let missing = || invalid(path, &format!("storage {key} is missing or truncated"));
        match &mut self.source {
            Source::Zip(zip, prefix) => {
                let bytes = entry(path, zip, &format!("{prefix}data/{key}"), u64::MAX);
                let mut bytes = bytes.map_err(|_| missing())?;
                if (bytes.len() as u64) < len {
                    return Err(missing());
                }
                bytes.truncate(len as usize);
                Ok(bytes)
            }
            Source::Legacy(file, offsets) => {
                let at = *offsets.get(key).ok_or_else(missing)?;
                let file_len = file.metadata().map_err(|e| Error::io(path, e))?.len();
                if at.checked_add(len).is_none_or(|end| end > file_len) {
                    return Err(missing());
                }
                let mut bytes = vec![0; len as usize];
                file.seek(SeekFrom::Start(at))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(|e| Error::io(path, e))?;
                Ok(bytes)
            }
        }
    }
}
