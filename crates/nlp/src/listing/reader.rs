//! How files become documents: plain text or JSON lines, gzipped or not.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    sync::atomic::AtomicU64,
};

use data2vec_core::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use crate::{
    pieces::{PIECE, cut},
    unpack::{Counted, LARGEST_RATIO, Limited},
};

/// Plain text, by file extension.
pub(crate) const TEXT: [&str; 3] = ["txt", "text", "md"];
/// One JSON object, in a shard.
pub(crate) const OBJECT: &str = "json";
/// One JSON object a line.
pub(crate) const JSON_LINES: [&str; 2] = ["jsonl", "ndjson"];
/// Longer lines are read in parts.
const PART: usize = 1 << 20;
/// A JSON line has to be held in memory as a whole; longer ones are refused.
const LONGEST_JSON: usize = 1 << 28;
/// What is said of a file that ends in the middle.
const LEFT_OUT: &str = "; the rest is left out";

/// What ends a document in plain text. In JSON lines each object is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    /// Each file is one.
    File,
    /// A line without text in it, as in fairseq's corpora.
    BlankLine,
    /// Each line is one.
    Line,
}

/// What becomes of bytes that are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvalidUtf8 {
    /// `U+FFFD` stands in their place, and they are counted.
    Replace,
    /// The corpus is refused.
    Refuse,
}

/// How files are read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Reading {
    pub documents: Documents,
    pub json_key: String,
    pub invalid_utf8: InvalidUtf8,
}

/// `name.jsonl.gz` to `jsonl`, and whether it is gzipped.
fn kind(path: &Path) -> (String, bool) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let plain = name.strip_suffix(".gz");
    let stem = plain.unwrap_or(&name);
    (stem.rsplit_once('.').map_or("", |(_, end)| end).to_owned(), plain.is_some())
}

pub(crate) fn is_text(path: &Path) -> bool {
    let (kind, _) = kind(path);
    TEXT.contains(&kind.as_str()) || JSON_LINES.contains(&kind.as_str())
}

/// The text of one file, plain or gzipped, as pretraining reads it: lines that have text in them.
///
/// # Errors
/// [`Error::Io`] or [`Error::File`] if it cannot be read, is not UTF-8, or has no text in it.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let reading = Reading {
        documents: Documents::File,
        json_key: "text".into(),
        invalid_utf8: InvalidUtf8::Refuse,
    };
    let (path, mut text, mut flaws) = (path.as_ref(), String::new(), Flaws::default());
    read(path, &reading, &AtomicU64::new(0), &mut flaws, &mut |piece| {
        text.push_str(&piece.text);
        if piece.ends_line {
            text.push('\n');
        }
        true
    })?;
    match flaws.unusable.into_iter().next() {
        Some(reason) => Err(Error::file(path, reason.trim_end_matches(LEFT_OUT))),
        None if text.is_empty() => Err(Error::file(path, "no text in it")),
        None => Ok(text),
    }
}

/// A line of a document, or a part of a very long one.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    /// Number of the document in its file.
    pub document: u64,
    pub text: String,
    /// Whether the line ends with it.
    pub ends_line: bool,
}

/// What was wrong in a file.
#[derive(Debug, Default)]
pub(crate) struct Flaws {
    /// Places where bytes were not UTF-8.
    pub replaced: u64,
    /// Of lines that are no JSON object with text in it, and of files that end in the middle.
    pub unusable: Vec<String>,
}

/// Reads `path` and hands its lines to `sink` until that returns false. `consumed` counts bytes on the
/// disk, for progress. Returns false if `sink` did.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened, [`Error::File`] if it is not UTF-8 and that is refused.
/// What goes wrong later ends the file, and is told in `flaws`.
pub(crate) fn read(
    path: &Path,
    reading: &Reading,
    consumed: &AtomicU64,
    flaws: &mut Flaws,
    sink: &mut dyn FnMut(Piece) -> bool,
) -> Result<bool> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let size = file.metadata().map_or(u64::MAX, |meta| meta.len());
    read_from(path, file, size, reading, consumed, flaws, sink)
}

/// The same of `file`, of so many bytes, that is called as `path` tells.
pub(crate) fn read_from(
    path: &Path,
    file: impl Read,
    size: u64,
    reading: &Reading,
    consumed: &AtomicU64,
    flaws: &mut Flaws,
    sink: &mut dyn FnMut(Piece) -> bool,
) -> Result<bool> {
    let (kind, gzipped) = kind(path);
    let counted = Counted { inner: file, consumed };
    let mut lines: Box<dyn BufRead + '_> = match gzipped {
        false => Box::new(BufReader::with_capacity(PART, counted)),
        true => {
            let limit = size.saturating_mul(LARGEST_RATIO).max(1 << 24);
            let unpacked = MultiGzDecoder::new(BufReader::with_capacity(PART, counted));
            Box::new(BufReader::with_capacity(PART, Limited { inner: unpacked, left: limit }))
        }
    };
    let json = JSON_LINES.contains(&kind.as_str()) || kind == OBJECT;
    let longest = if json { LONGEST_JSON } else { PART };
    let mut reader = LineReader { path, reading, number: 0, document: 0, in_document: false, json };
    let mut buffer = Vec::new();
    loop {
        let wanted = (longest - buffer.len()) as u64;
        let got = match (&mut lines).take(wanted).read_until(b'\n', &mut buffer) {
            Ok(got) => got,
            Err(error) => {
                flaws.unusable.push(format!("{error}{LEFT_OUT}"));
                return Ok(true);
            }
        };
        let ends_line = got == 0 || buffer.last() == Some(&b'\n');
        if buffer.is_empty() {
            return Ok(true);
        }
        if json && !ends_line && buffer.len() == longest {
            let line = reader.number + 1;
            let reason = format!("line {line}: longer than {LONGEST_JSON} bytes{LEFT_OUT}");
            flaws.unusable.push(reason);
            return Ok(true);
        }
        if !ends_line && buffer.len() < longest {
            continue; // the end of the file, or of a part of it, without a line feed
        }
        if reader.number == 0 && is_utf16(&buffer) {
            let reason = "is UTF-16 or UTF-32: convert it to UTF-8";
            if reading.invalid_utf8 == InvalidUtf8::Refuse {
                return Err(Error::file(path, reason));
            }
            flaws.unusable.push(reason.into());
            return Ok(true);
        }
        let take = if ends_line { buffer.len() } else { part(&buffer) };
        let rest = buffer.split_off(take);
        if !reader.line(&buffer, ends_line, flaws, sink)? {
            return Ok(false);
        }
        buffer = rest;
    }
}

/// Whether a text begins as one of 16 or 32 bits a character: with their mark, or with letters that
/// have a zero beside them.
pub(crate) fn is_utf16(bytes: &[u8]) -> bool {
    match *bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 0, 0xfe, 0xff, ..] => true,
        [a, 0, b, 0, ..] | [0, a, 0, b, ..] => a != 0 && b != 0,
        _ => false,
    }
}

/// How much of a line that goes on to take: up to a word's end, and whole characters.
fn part(bytes: &[u8]) -> usize {
    let valid = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(e) if e.error_len().is_none() => e.valid_up_to(), // a character that is not all there yet
        Err(_) => return bytes.len(),
    };
    let text = std::str::from_utf8(&bytes[..valid]).unwrap_or_default();
    match cut(text, PIECE) {
        0 => bytes.len(),
        at => at,
    }
}

struct LineReader<'a> {
    path: &'a Path,
    reading: &'a Reading,
    number: u64,
    document: u64,
    in_document: bool,
    json: bool,
}

impl LineReader<'_> {
    fn line(
        &mut self,
        bytes: &[u8],
        ends_line: bool,
        flaws: &mut Flaws,
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
            Err(error) if self.reading.invalid_utf8 == InvalidUtf8::Refuse => {
                let (line, at) = (self.number + u64::from(!ends_line), error.valid_up_to() + 1);
                return Err(Error::file(self.path, format!("line {line}, byte {at}: not UTF-8")));
            }
            Err(_) => {
                flaws.replaced +=
                    bytes.utf8_chunks().filter(|c| !c.invalid().is_empty()).count() as u64;
                String::from_utf8_lossy(bytes).into_owned()
            }
        };
        if self.json {
            return Ok(self.object(&text, flaws, sink));
        }
        let text = if ends_line { text.trim_end() } else { &text };
        if text.is_empty() {
            if self.reading.documents == Documents::BlankLine && self.in_document {
                (self.in_document, self.document) = (false, self.document + 1);
            }
            return Ok(true);
        }
        self.in_document = true;
        let go_on = sink(Piece { document: self.document, text: text.to_owned(), ends_line });
        self.document += u64::from(self.reading.documents == Documents::Line && ends_line);
        Ok(go_on)
    }

    fn object(
        &mut self,
        line: &str,
        flaws: &mut Flaws,
        sink: &mut dyn FnMut(Piece) -> bool,
    ) -> bool {
        if line.trim().is_empty() {
            return true;
        }
        let key = &self.reading.json_key;
        let object = serde_json::from_str::<serde_json::Value>(line);
        let text = match &object {
            Ok(object) => object
                .get(key)
                .and_then(|text| text.as_str())
                .ok_or_else(|| format!("no object with a string {key:?} (data.json_key)")),
            Err(error) => {
                let text = error.to_string();
                let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
                Err(format!("byte {}: {what}", error.column()))
            }
        };
        let text = match text {
            Ok(text) => text,
            Err(reason) => {
                flaws.unusable.push(format!("line {}: {reason}", self.number));
                return true;
            }
        };
        self.document += 1;
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).all(|line| {
            sink(Piece { document: self.document - 1, text: line.to_owned(), ends_line: true })
        })
    }
}
