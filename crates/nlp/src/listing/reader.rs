//! Reads text files as documents of lines: plain text or JSON lines, gzipped or not.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use data2vec_core::{Error, Result};
use flate2::bufread::MultiGzDecoder;

use crate::config::{Documents, InvalidUtf8, TextDataConfig};
use crate::gzip::{CountingReader, LimitedReader};
use crate::pieces::{PIECE, cut};

/// File extensions of plain text.
pub(super) const PLAIN: [&str; 3] = ["txt", "text", "md"];
/// File extension of one JSON object, in a shard.
pub(super) const JSON: &str = "json";
/// File extensions of JSON lines.
pub(super) const JSON_LINES: [&str; 2] = ["jsonl", "ndjson"];
/// Longer plain lines are read in parts of about this many bytes.
const PART: usize = 1 << 20;
/// Longest accepted JSON line in bytes; parsing needs the complete line in memory.
const MAX_JSON_LINE: usize = 1 << 28;
/// Ends the reason why a file was read only up to a defect.
const REST_SKIPPED: &str = "; the rest is left out";

/// How files are read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReadOptions {
    pub documents: Documents,
    pub json_key: String,
    pub invalid_utf8: InvalidUtf8,
}

impl ReadOptions {
    /// Extracts the options from the settings of a dataset.
    pub fn new(config: &TextDataConfig) -> Self {
        let TextDataConfig { documents, json_key, invalid_utf8, .. } = config;
        Self { documents: *documents, json_key: json_key.clone(), invalid_utf8: *invalid_utf8 }
    }

    /// Returns a key of the options for caches; another text would invalidate existing caches.
    pub fn cache_key(&self) -> String {
        let Self { documents, json_key, invalid_utf8 } = self;
        format!(
            "Reading {{ documents: {documents:?}, json_key: {json_key:?}, \
             invalid_utf8: {invalid_utf8:?} }}"
        )
    }
}

/// Returns the lower-case extension without `.gz`, and true if the file is gzipped.
fn file_type(path: &Path) -> (String, bool) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let plain = name.strip_suffix(".gz");
    let stem = plain.unwrap_or(&name);
    (stem.rsplit_once('.').map_or("", |(_, end)| end).to_owned(), plain.is_some())
}

/// Returns true if the file name is that of plain text or JSON lines.
pub(super) fn is_text(path: &Path) -> bool {
    let (extension, _) = file_type(path);
    PLAIN.contains(&extension.as_str()) || JSON_LINES.contains(&extension.as_str())
}

/// Reads one file, plain or gzipped, as pretraining does: all lines that are not blank.
///
/// # Errors
/// Returns [`Error::Io`] or [`Error::File`] if the file cannot be read, is not UTF-8, or contains
/// no text.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let options = ReadOptions::new(&TextDataConfig::strict());
    let (path, mut text, mut defects) = (path.as_ref(), String::new(), Defects::default());
    read(path, &options, &AtomicU64::new(0), &mut defects, &mut |piece| {
        text.push_str(&piece.text);
        if piece.ends_line {
            text.push('\n');
        }
        true
    })?;
    match defects.invalid.into_iter().next() {
        Some(reason) => Err(Error::file(path, reason.trim_end_matches(REST_SKIPPED))),
        None if text.is_empty() => Err(Error::file(path, "no text in it")),
        None => Ok(text),
    }
}

/// A line of a document, or a part of a very long line.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    /// Index of the document in its file.
    pub document: u64,
    pub text: String,
    /// True for the last part of a line.
    pub ends_line: bool,
}

/// Defects found while reading.
#[derive(Debug, Default)]
pub(crate) struct Defects {
    /// Number of byte sequences that were not UTF-8 and were replaced by `U+FFFD`.
    pub replaced: u64,
    /// Reasons for lines that are not JSON objects with a text, and for files that end early.
    pub invalid: Vec<String>,
}

/// Passes the lines of the file at `path` to `sink` until it returns false; returns false if it
/// did.
///
/// `consumed` counts stored bytes, for progress. Defects after the file was opened are added to
/// `defects`; a defect that makes the rest unreadable ends the file.
///
/// # Errors
/// Returns [`Error::Io`] if the file cannot be opened, [`Error::File`] if it is not UTF-8 and the
/// options refuse that.
pub(super) fn read(
    path: &Path,
    options: &ReadOptions,
    consumed: &AtomicU64,
    defects: &mut Defects,
    sink: &mut dyn FnMut(Piece) -> bool,
) -> Result<bool> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let size = file.metadata().map_or(u64::MAX, |meta| meta.len());
    read_from(path, file, size, options, consumed, defects, sink)
}

/// Passes the lines of `file` (of `size` bytes, named `path`) to `sink`, see [`read`].
pub(super) fn read_from(
    path: &Path,
    file: impl Read,
    size: u64,
    options: &ReadOptions,
    consumed: &AtomicU64,
    defects: &mut Defects,
    sink: &mut dyn FnMut(Piece) -> bool,
) -> Result<bool> {
    let (extension, gzipped) = file_type(path);
    let counted = CountingReader { inner: file, consumed };
    let mut lines: Box<dyn BufRead + '_> = match gzipped {
        false => Box::new(BufReader::with_capacity(PART, counted)),
        true => {
            let decoder = MultiGzDecoder::new(BufReader::with_capacity(PART, counted));
            Box::new(BufReader::with_capacity(PART, LimitedReader::new(decoder, size)))
        }
    };
    let is_json = JSON_LINES.contains(&extension.as_str()) || extension == JSON;
    let max_bytes = if is_json { MAX_JSON_LINE } else { PART };
    let mut parser =
        LineReader { path, options, number: 0, document: 0, in_document: false, is_json };
    let mut buffer = Vec::new();
    loop {
        let wanted = (max_bytes - buffer.len()) as u64;
        let count = match (&mut lines).take(wanted).read_until(b'\n', &mut buffer) {
            Ok(count) => count,
            Err(error) => {
                defects.invalid.push(format!("{error}{REST_SKIPPED}"));
                return Ok(true);
            }
        };
        let ends_line = count == 0 || buffer.last() == Some(&b'\n');
        if buffer.is_empty() {
            return Ok(true);
        }
        if is_json && !ends_line && buffer.len() == max_bytes {
            let line = parser.number + 1;
            let reason = format!("line {line}: longer than {MAX_JSON_LINE} bytes{REST_SKIPPED}");
            defects.invalid.push(reason);
            return Ok(true);
        }
        if !ends_line && buffer.len() < max_bytes {
            continue; // the file, or a part of it, ends without a line feed
        }
        if parser.number == 0 && is_utf16(&buffer) {
            let reason = "is UTF-16 or UTF-32; convert it to UTF-8";
            if options.invalid_utf8 == InvalidUtf8::Refuse {
                return Err(Error::file(path, reason));
            }
            defects.invalid.push(reason.into());
            return Ok(true);
        }
        let take = if ends_line { buffer.len() } else { part_len(&buffer) };
        let rest = buffer.split_off(take);
        if !parser.line(&buffer, ends_line, defects, sink)? {
            return Ok(false);
        }
        buffer = rest;
    }
}

/// Returns true if a text starts like UTF-16 or UTF-32: with a byte order mark, or with letters
/// next to zero bytes.
pub(crate) fn is_utf16(bytes: &[u8]) -> bool {
    match *bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 0, 0xfe, 0xff, ..] => true,
        [a, 0, b, 0, ..] | [0, a, 0, b, ..] => a != 0 && b != 0,
        _ => false,
    }
}

/// Returns how many bytes of an incomplete line to take: up to the end of a word, or at least of a
/// character.
fn part_len(bytes: &[u8]) -> usize {
    let valid = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(e) if e.error_len().is_none() => e.valid_up_to(), // ends within a character
        Err(_) => return bytes.len(),
    };
    let text = std::str::from_utf8(&bytes[..valid]).unwrap_or_default();
    match cut(text, PIECE) {
        0 => bytes.len(),
        at => at,
    }
}

/// Splits lines into documents.
struct LineReader<'a> {
    path: &'a Path,
    options: &'a ReadOptions,
    /// Number of complete lines so far.
    number: u64,
    document: u64,
    in_document: bool,
    is_json: bool,
}

impl LineReader<'_> {
    /// Passes on a line, or a part of one.
    fn line(
        &mut self,
        bytes: &[u8],
        ends_line: bool,
        defects: &mut Defects,
        sink: &mut dyn FnMut(Piece) -> bool,
    ) -> Result<bool> {
        let bytes = if self.number == 0 {
            bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
        } else {
            bytes
        };
        self.number += u64::from(ends_line);
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(error) if self.options.invalid_utf8 == InvalidUtf8::Refuse => {
                let (line, at) = (self.number + u64::from(!ends_line), error.valid_up_to() + 1);
                return Err(Error::file(self.path, format!("line {line}, byte {at}: not UTF-8")));
            }
            Err(_) => {
                defects.replaced +=
                    bytes.utf8_chunks().filter(|c| !c.invalid().is_empty()).count() as u64;
                String::from_utf8_lossy(bytes).into_owned()
            }
        };
        if self.is_json {
            return Ok(self.json_line(&text, defects, sink));
        }
        let text = if ends_line { text.trim_end() } else { &text };
        if text.is_empty() {
            if self.options.documents == Documents::BlankLine && self.in_document {
                (self.in_document, self.document) = (false, self.document + 1);
            }
            return Ok(true);
        }
        self.in_document = true;
        let more = sink(Piece { document: self.document, text: text.to_owned(), ends_line });
        self.document += u64::from(self.options.documents == Documents::Line && ends_line);
        Ok(more)
    }

    /// Passes on the lines of the text in a JSON line.
    fn json_line(
        &mut self,
        line: &str,
        defects: &mut Defects,
        sink: &mut dyn FnMut(Piece) -> bool,
    ) -> bool {
        if line.trim().is_empty() {
            return true;
        }
        let key = &self.options.json_key;
        let object = serde_json::from_str::<serde_json::Value>(line);
        let text = match &object {
            Ok(object) => object
                .get(key)
                .and_then(|text| text.as_str())
                .ok_or_else(|| format!("no object with a string {key:?} (data.json_key)")),
            Err(error) => {
                let text = error.to_string();
                let cause = text.rsplit_once(" at line ").map_or(text.as_str(), |(cause, _)| cause);
                Err(format!("byte {}: {cause}", error.column()))
            }
        };
        let text = match text {
            Ok(text) => text,
            Err(reason) => {
                defects.invalid.push(format!("line {}: {reason}", self.number));
                return true;
            }
        };
        self.document += 1;
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).all(|line| {
            sink(Piece { document: self.document - 1, text: line.to_owned(), ends_line: true })
        })
    }
}
