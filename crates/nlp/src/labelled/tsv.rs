//! Reads labelled texts from files: tab-separated without quoting, or JSON lines.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use data2vec_core::{Error, HeadTask, Result};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::glue::{Columns, find_names};
use super::listing::FileKind;
use super::record::{Record, Skipped};
use crate::gzip::LimitedReader;
use crate::listing::is_utf16;

/// Reads the records of a file; reasons for invalid lines are added to `skipped`.
pub(crate) fn read(path: &Path, task: HeadTask, skipped: &mut Skipped) -> Result<Vec<Record>> {
    let bytes = content(path)?;
    if is_utf16(&bytes) {
        return Err(Error::file(path, "is UTF-16 or UTF-32; convert it to UTF-8"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut lines = (1..)
        .zip(bytes.split(|&byte| byte == b'\n'))
        .map(|(number, line)| {
            (number, std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)))
        })
        .filter(|(_, line)| line.is_err() || line.is_ok_and(|line| !line.trim().is_empty()))
        .peekable();
    let first = match lines.peek() {
        Some((_, Ok(first))) => *first,
        Some((number, Err(_))) => {
            return Err(Error::file(path, format!("line {number}: not UTF-8")));
        }
        None => return Err(Error::file(path, "no text in it")),
    };
    let parser = Parser::new(FileKind::of(path), first, task)
        .map_err(|reason| Error::file(path, format!("line 1: {reason}")))?;
    if parser.has_header() {
        lines.next();
    }
    let mut records = Vec::new();
    for (line, text) in lines {
        let parsed = text.map_err(|_| "not UTF-8".to_owned()).and_then(|text| parser.parse(text));
        let location = format!("line {line}");
        match parsed {
            Ok((texts, label)) => records.push(Record { location, texts, label }),
            Err(reason) => skipped.add(format!("{location}: {reason}")),
        }
    }
    Ok(records)
}

/// Reads a complete file, decompressed.
fn content(path: &Path) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gz")) {
        let mut decoder = LimitedReader::new(MultiGzDecoder::new(file), meta.len());
        decoder.read_to_end(&mut bytes).map_err(|e| Error::file(path, e.to_string()))?;
    } else {
        (&file).read_to_end(&mut bytes).map_err(io)?;
    }
    Ok(bytes)
}

/// Extracts texts and label from a line.
enum Parser {
    Table(Columns),
    Json { texts: &'static [&'static str], label: &'static str },
}

impl Parser {
    /// Chooses columns or keys by the first line.
    fn new(kind: FileKind, first: &str, task: HeadTask) -> std::result::Result<Self, String> {
        Ok(match kind {
            FileKind::Ratings => Self::Table(Columns::of_ratings()),
            FileKind::Json => {
                let object = object(first)?;
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                let (texts, label) = find_names(&keys, task)?;
                Self::Json { texts, label }
            }
            FileKind::Table | FileKind::Other => {
                let columns: Vec<&str> = first.split('\t').map(str::trim).collect();
                Self::Table(Columns::of_table(&columns, task)?)
            }
        })
    }

    fn has_header(&self) -> bool {
        matches!(self, Self::Table(Columns { header: true, .. }))
    }

    fn parse(&self, line: &str) -> std::result::Result<(Vec<String>, String), String> {
        let (texts, label) = match self {
            Self::Table(columns) => {
                let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
                if fields.len() != columns.count {
                    return Err(format!("{} columns, not {}", fields.len(), columns.count));
                }
                let texts = columns.texts.iter().map(|&at| fields[at].to_owned()).collect();
                (texts, fields[columns.label].to_owned())
            }
            Self::Json { texts, label } => {
                let object = object(line)?;
                let text = |name: &&str| match object.get(*name) {
                    Some(Value::String(text)) => Ok(text.trim().to_owned()),
                    _ => Err(format!("no string {name:?}")),
                };
                let label = match object.get(*label) {
                    Some(Value::String(label)) => label.trim().to_owned(),
                    Some(label @ (Value::Number(_) | Value::Bool(_))) => label.to_string(),
                    _ => return Err(format!("no string, number or bool {label:?}")),
                };
                (texts.iter().map(text).collect::<std::result::Result<Vec<_>, _>>()?, label)
            }
        };
        if texts.iter().all(String::is_empty) {
            return Err("no text".into());
        }
        if label.is_empty() {
            return Err("no label".into());
        }
        Ok((texts, label))
    }
}

fn object(line: &str) -> std::result::Result<Map<String, Value>, String> {
    serde_json::from_str(line).map_err(|error| {
        let text = error.to_string();
        let cause = text.rsplit_once(" at line ").map_or(text.as_str(), |(cause, _)| cause);
        format!("byte {}: no JSON object: {cause}", error.column())
    })
}
