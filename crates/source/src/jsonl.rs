//! JSON lines: one object per line, each of its keys is a field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::blob::{Blob, Cursor};
use crate::example::Fields;
use crate::index::{Entry, Kind, Part};

/// Maximum length of a line, which is held in memory.
const MAX_LINE_BYTES: u64 = 1 << 28;

/// Passes the lines of a shard and the positions of their values to `found`, until it returns
/// false.
///
/// Blank lines are skipped. A line that is not a JSON object is an entry too; reading it is an
/// error.
///
/// # Errors
/// The cause and line number if a line is too long or the shard ends in the middle of a line.
pub(crate) fn scan(blob: &Arc<Blob>, found: &mut dyn FnMut(Entry) -> bool) -> Result<(), String> {
    let mut reader = BufReader::with_capacity(1 << 16, Cursor::new(blob, 0));
    let (mut start, mut number, mut line) = (0, 0_u64, Vec::new());
    loop {
        line.clear();
        number += 1;
        let failed = |error| format!("line {number}, at byte {start}: {error}");
        let got = reader
            .by_ref()
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        if got == 0 {
            return Ok(());
        }
        let is_terminated = line.ends_with(b"\n");
        if got as u64 > MAX_LINE_BYTES {
            return Err(format!("line {number} is longer than {MAX_LINE_BYTES} bytes"));
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            let parts = match columns(&line) {
                Ok(columns) => parts(&line, start, columns),
                Err(reason) if !is_terminated => {
                    return Err(format!("ends in the middle of line {number}: {reason}"));
                }
                Err(_) => {
                    let (name, size) = (String::new(), got as u64);
                    vec![Part { name, start, size, kind: Kind::Invalid }]
                }
            };
            if !found(Entry { key: number.to_string(), parts, ..Entry::default() }) {
                return Ok(());
            }
        }
        start += got as u64;
    }
}

/// Reads the fields of a line.
///
/// # Errors
/// The cause if it is not a JSON object or cannot be read.
pub(crate) fn read(blob: &Blob, entry: &Entry) -> Result<Fields, String> {
    let mut fields = Vec::with_capacity(entry.parts.len());
    for part in &entry.parts {
        let text = blob.read_range(part.start, part.size).map_err(|error| error.to_string())?;
        if part.kind == Kind::Invalid {
            let reason = columns(&text).map(|_| ()).err();
            return Err(reason.unwrap_or_else(|| "the shard has changed".into()));
        }
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        fields.push((part.name.clone(), value));
    }
    fields.retain(|(_, value)| *value != serde_json::Value::Null);
    Ok(fields.into_iter().map(|(name, value)| (name, value.into())).collect())
}

fn columns(line: &[u8]) -> Result<Columns<'_>, String> {
    serde_json::from_slice(line)
        .map_err(|error| format!("not a JSON object such as {{\"text\": …}}: {error}"))
}

/// Returns the positions of the values of a line that starts at byte `start`.
fn parts(line: &[u8], start: u64, columns: Columns) -> Vec<Part> {
    let part = |(Name(name), value): (Name, &RawValue)| {
        let text = value.get();
        let offset = text.as_ptr().addr() - line.as_ptr().addr();
        let (start, size) = (start + offset as u64, text.len() as u64);
        Part { name: name.into_owned(), start, size, kind: Kind::Plain }
    };
    columns.into_iter().map(part).collect()
}

/// The sorted keys of an object and the raw text of their values; the last value of a duplicate
/// key.
type Columns<'a> = BTreeMap<Name<'a>, &'a RawValue>;

/// A key, copied only if it has escapes.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
