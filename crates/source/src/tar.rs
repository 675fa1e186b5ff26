//! Tar shards in WebDataset format: consecutive files with the same path up to the first dot of the
//! base name are one example; the rest of the name is the field.
//!
//! Nothing is extracted to paths named by an archive.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;

use crate::blob::{Blob, Cursor};
use crate::example::{Fields, Value};
use crate::index::{Entry, Kind, Part};

/// Maximum size of a sparse file, most of which the archive does not contain.
const MAX_SPARSE_BYTES: u64 = 1 << 27;

/// Passes the examples of a shard to `found`, until it returns false.
///
/// # Errors
/// The cause and byte offset if the shard is truncated or invalid.
pub(crate) fn scan(blob: &Arc<Blob>, found: &mut dyn FnMut(Entry) -> bool) -> Result<(), String> {
    let mut cursor = Cursor::new(blob, 0);
    let mut end = 0;
    let scanned = members(&mut cursor, &mut end, blob.len(), found);
    let offset = cursor.offset();
    match scanned {
        Ok(true) if cursor.at_end => Err(format!(
            "truncated at byte {offset}: the end-of-archive marker is missing; pack it again"
        )),
        Ok(_) => Ok(()),
        Err(reason) => Err(format!("at byte {end}: {reason}")),
    }
}

/// Returns true if all members were visited. `end` is set to the end of the last valid member.
fn members(
    cursor: &mut Cursor,
    end: &mut u64,
    len: u64,
    found: &mut dyn FnMut(Entry) -> bool,
) -> Result<bool, String> {
    let mut open: Option<Entry> = None;
    let mut archive = ::tar::Archive::new(cursor);
    for member in archive.entries_with_seek().map_err(|e| e.to_string())? {
        let mut member = member.map_err(|e| e.to_string())?;
        let kind = member.header().entry_type();
        if !(kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse()) {
            continue; // directories, links, global headers
        }
        let path = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let size = member.size();
        let sparse = kind.is_gnu_sparse();
        let (start, kind) = match sparse {
            true => (member.raw_header_position(), Kind::Sparse),
            false => (member.raw_file_position(), Kind::Plain),
        };
        if !sparse && start.checked_add(size).is_none_or(|end| end > len) {
            return Err(format!(
                "{path} has {size} bytes, which exceeds the shard: it is truncated"
            ));
        }
        if sparse && size > MAX_SPARSE_BYTES {
            return Err(format!("{path} is sparse with {size} bytes; pack it as a plain file"));
        }
        if is_pax_sparse(&mut member) {
            return Err(format!("{path} is sparse; pack it as a plain file"));
        }
        *end = if sparse { start } else { start + size };
        let Some((key, field)) = split(&path) else { continue };
        if open.as_ref().is_some_and(|entry| entry.key != key)
            && !open.take().is_none_or(&mut *found)
        {
            return Ok(false);
        }
        let entry = open.get_or_insert_with(|| Entry { key: key.into(), ..Entry::default() });
        if entry.parts.iter().any(|part| part.name == field) {
            return Err(format!("{path} is a duplicate field; rename one of the files"));
        }
        entry.parts.push(Part { name: field, start, size, kind });
    }
    Ok(open.is_none_or(found))
}

/// Returns true for PAX sparse files, whose content begins with a map of holes.
fn is_pax_sparse(member: &mut ::tar::Entry<impl Read>) -> bool {
    let Ok(Some(extensions)) = member.pax_extensions() else { return false };
    extensions.flatten().any(|extension| extension.key_bytes().starts_with(b"GNU.sparse"))
}

/// Splits a path into key and field; `None` without either, and for WebDataset's metadata files.
fn split(path: &str) -> Option<(&str, String)> {
    let base = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + path[base..].find('.')?;
    let (key, field) = (&path[..dot], &path[dot + 1..]);
    let is_metadata = path.starts_with("__") && path.ends_with("__");
    (dot > base && !field.is_empty() && !is_metadata).then(|| (key, field.to_lowercase()))
}

/// Reads the fields of an example, the plain ones with a single read.
///
/// # Errors
/// The cause and byte offset.
pub(crate) fn read(blob: &Arc<Blob>, entry: &Entry) -> Result<Fields, String> {
    let plain = || entry.parts.iter().filter(|part| part.kind == Kind::Plain);
    let start = plain().map(|part| part.start).min().unwrap_or(0);
    let end = plain().map(|part| part.start.saturating_add(part.size)).max().unwrap_or(0);
    let failed = |at: u64| move |error: std::io::Error| format!("at byte {at}: {error}");
    let all = Bytes::from(blob.read_range(start, end - start).map_err(failed(start))?);
    let mut fields = Vec::with_capacity(entry.parts.len());
    for part in &entry.parts {
        let bytes = if part.kind == Kind::Sparse {
            sparse(blob, part).map_err(failed(part.start))?
        } else {
            let from = (part.start - start) as usize;
            all.slice(from..from + part.size as usize)
        };
        fields.push((part.name.clone(), Value::Bytes(bytes)));
    }
    Ok(fields)
}

fn sparse(blob: &Arc<Blob>, part: &Part) -> std::io::Result<Bytes> {
    let mut archive = ::tar::Archive::new(Cursor::new(blob, part.start));
    let mut member = archive.entries()?.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
    let mut bytes = Vec::new();
    member.by_ref().take(MAX_SPARSE_BYTES).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == part.size {
        true => Ok(bytes.into()),
        false => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn splits_paths_like_webdataset() {
        let of = |path| split(path).map(|(key, field)| format!("{key} {field}"));
        assert_eq!(of("utt17.flac").as_deref(), Some("utt17 flac"));
        assert_eq!(of("a.b/utt17.seg.PNG").as_deref(), Some("a.b/utt17 seg.png"));
        assert_eq!(of("./a/1.5.wav").as_deref(), Some("./a/1 5.wav"));
        for none in ["readme", "a/readme", ".hidden", "a/.hidden", "a.", "__key.x__", ""] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
