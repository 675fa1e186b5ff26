//! Lines of labelled texts: tab-separated without quoting, or JSON objects.

use std::{fs::File, io::Read, path::Path};

use data2vec_core::{Error, HeadTask, Result};
use data2vec_source::is_of_shards;
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::{
    corpus::is_utf16,
    glue::{Columns, Kind, kind, names},
    labelled_shards,
    unpack::{LARGEST_RATIO, Limited},
};

/// Reasons that are kept; the others are counted.
const MOST_REASONS: usize = 10_000;

/// A line of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its line, or its name in shards.
    pub place: String,
    /// One, or two of a pair.
    pub texts: Vec<String>,
    pub label: String,
}

/// Lines of no use, each with its reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Skipped {
    reasons: Vec<String>,
    more: usize,
}

impl Skipped {
    pub fn add(&mut self, reason: impl Into<String>) {
        if self.reasons.len() < MOST_REASONS {
            self.reasons.push(reason.into());
        } else {
            self.more += 1;
        }
    }

    /// One line each; the last one may tell of several.
    pub fn list(&self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("and {} more", self.more));
        self.reasons.iter().cloned().chain(more).collect()
    }
}

/// The records of a file or of shards.
pub(crate) fn read(path: &Path, task: HeadTask, skipped: &mut Skipped) -> Result<Vec<Record>> {
    let is_table = kind(path) != Kind::Other && path.is_file();
    if path.is_dir() || (is_of_shards(path) && !is_table) {
        return labelled_shards::read(path, task, skipped);
    }
    let bytes = content(path)?;
    if is_utf16(&bytes) {
        return Err(Error::file(path, "is UTF-16 or UTF-32: convert it to UTF-8"));
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
    let parser = Parser::of(kind(path), first, task)
        .map_err(|reason| Error::file(path, format!("line 1: {reason}")))?;
    if parser.has_header() {
        lines.next();
    }
    let mut records = Vec::new();
    for (line, text) in lines {
        let parsed = text.map_err(|_| "not UTF-8".to_owned()).and_then(|text| parser.parse(text));
        let place = format!("line {line}");
        match parsed {
            Ok((texts, label)) => records.push(Record { place, texts, label }),
            Err(reason) => skipped.add(format!("{place}: {reason}")),
        }
    }
    Ok(records)
}

/// All of a file, unpacked.
fn content(path: &Path) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(Error::file(path, "is no file"));
    }
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gz")) {
        let limit = meta.len().saturating_mul(LARGEST_RATIO).max(1 << 24);
        let mut unpacked = Limited { inner: MultiGzDecoder::new(file), left: limit };
        unpacked.read_to_end(&mut bytes).map_err(|e| Error::file(path, e.to_string()))?;
    } else {
        { file }.read_to_end(&mut bytes).map_err(io)?;
    }
    Ok(bytes)
}

/// From a line to its texts and its label.
enum Parser {
    Table(Columns),
    Json { texts: &'static [&'static str], label: &'static str },
}

impl Parser {
    fn of(kind: Kind, first: &str, task: HeadTask) -> std::result::Result<Self, String> {
        Ok(match kind {
            Kind::Ratings => Self::Table(Columns::of_ratings()),
            Kind::Json => {
                let object = object(first)?;
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                let (texts, label) = names(&keys, task)?;
                Self::Json { texts, label }
            }
            Kind::Table | Kind::Other => {
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
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        format!("byte {}: no JSON object: {what}", error.column())
    })
}
