//! Token ids of a complete corpus in one file, built once and read by ranges.
//!
//! Reads use `pread`. A memory map would save one copy of 1 kB per block, but needs `unsafe`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use data2vec_core::random::{Purpose, hash, seed_for};
use data2vec_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::listing::{Defects, Listing, Piece, ReadOptions};
use crate::tokenizer::Tokenizer;

/// Last bytes of a cache file; identify the format.
const MAGIC: &[u8; 8] = b"d2vtoks1";
/// Bytes of text per batch for a worker.
const BATCH: usize = 1 << 20;
/// Number of reasons that are kept; all invalid lines are counted.
const MAX_REASONS: usize = 10_000;

/// Progress of building a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Stored bytes read so far.
    pub bytes: u64,
    /// Stored bytes of all files.
    pub total: u64,
    /// Tokens written so far.
    pub tokens: u64,
}

/// A document in the cache; ends with an additional `</s>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub start: u64,
    pub len: u64,
    /// Hash of the file's relative path and the document's index in the file.
    pub key: u64,
}

/// Statistics of the corpus, stored in the cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    fingerprint: String,
    width: usize,
    documents: usize,
    pub tokens: u64,
    pub replaced: u64,
    pub unusable: u64,
    pub reasons: Vec<String>,
}

/// An open cache file.
#[derive(Debug)]
pub(crate) struct Cache {
    file: File,
    path: PathBuf,
    pub documents: Vec<Document>,
    pub report: Report,
}

impl Cache {
    /// Opens the cache at `path`; returns `None` if it is missing, damaged, or was built from other
    /// inputs.
    pub fn open(path: &Path, fingerprint: &str) -> Option<Self> {
        let read = || -> io::Result<Self> {
            let mut file = File::open(path)?;
            let end = file.seek(SeekFrom::End(-16))?;
            let mut tail = [0; 16];
            file.read_exact(&mut tail)?;
            let (len, magic) = tail.split_at(8);
            let json_len = u64::from_le_bytes(len.try_into().unwrap_or_default());
            let bad = || io::Error::other("damaged, or another format");
            let at = end.checked_sub(json_len).filter(|_| magic == MAGIC).ok_or_else(bad)?;
            let mut json = vec![0; json_len as usize];
            file.read_exact_at(&mut json, at)?;
            let report: Report = serde_json::from_slice(&json)?;
            let table = (report.documents as u64).checked_mul(24).ok_or_else(bad)?;
            let tokens = report.tokens.checked_mul(report.width as u64).ok_or_else(bad)?;
            if tokens.checked_add(table) != Some(at) || !matches!(report.width, 2 | 4) {
                return Err(bad());
            }
            let mut bytes = vec![0; table as usize];
            file.read_exact_at(&mut bytes, tokens)?;
            let number = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap_or_default());
            let document = |b: &[u8]| Document {
                start: number(&b[..8]),
                len: number(&b[8..16]),
                key: number(&b[16..]),
            };
            let documents = bytes.chunks_exact(24).map(document).collect();
            Ok(Self { file, path: path.to_owned(), documents, report })
        };
        read().ok().filter(|cache| cache.report.fingerprint == fingerprint)
    }

    /// Builds the cache at `path` on all cores; writes it atomically.
    pub fn build(
        path: &Path,
        fingerprint: &str,
        listing: &Listing,
        options: &ReadOptions,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let draft = path.with_extension(format!("{}.part", std::process::id()));
        let built = write(&draft, fingerprint, listing, options, tokenizer, progress)
            .and_then(|()| fs::rename(&draft, path).map_err(|e| Error::io(path, e)));
        if let Err(error) = built {
            let _ = fs::remove_file(&draft); // the first error matters
            return Err(error);
        }
        Self::open(path, fingerprint)
            .ok_or_else(|| Error::file(path, "cannot be read back; is another run writing it?"))
    }

    /// Reads `len` token ids from index `start` on.
    pub fn read(&self, start: u64, len: usize) -> Result<Vec<i64>> {
        let width = self.report.width;
        let mut bytes = vec![0; len * width];
        let at = start * width as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(|e| Error::io(&self.path, e))?;
        let id = |b: &[u8]| b.iter().rev().fold(0, |id, &byte| (id << 8) | i64::from(byte));
        Ok(bytes.chunks_exact(width).map(id).collect())
    }

    /// Returns the path of the cache file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A batch of lines for a worker, each with the index of its file.
type Lines = Vec<(usize, Piece)>;

/// Token ids of a batch, and (file, document, number of tokens) of each part of a document in it.
struct Encoded {
    ids: Vec<u32>,
    parts: Vec<(usize, u64, u64)>,
}

/// Writes the cache to `draft`: one thread reads, all cores tokenize, this thread writes.
fn write(
    draft: &Path,
    fingerprint: &str,
    listing: &Listing,
    options: &ReadOptions,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let file = File::create(draft).map_err(|e| Error::io(draft, e))?;
    let width = if tokenizer.vocab_size() <= 1 << 16 { 2 } else { 4 };
    let mut out = Writer {
        out: BufWriter::with_capacity(BATCH, file),
        width,
        tokens: 0,
        open: None,
        documents: Vec::new(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let consumed = AtomicU64::new(0);
    let (to_workers, lines) = bounded::<(u64, Lines)>(2 * threads);
    let (to_writer, encoded) = bounded::<(u64, Result<Encoded>)>(2 * threads);
    let defects = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let to_workers = to_workers; // dropped at the end, which stops the workers
            read_all(listing, options, &consumed, &mut |batch| to_workers.send(batch).is_ok())
        });
        for _ in 0..threads {
            let (lines, to_writer) = (lines.clone(), to_writer.clone());
            scope.spawn(move || tokenize(&lines, &to_writer, tokenizer));
        }
        drop((lines, to_writer));
        let written = out.write_all(&encoded, listing, tokenizer, draft, &mut |tokens| {
            let bytes = consumed.load(Ordering::Relaxed);
            progress(Progress { bytes, total: listing.bytes(), tokens });
        });
        drop(encoded); // after an error, this stops all threads
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(read)
    })?;

    let mut reasons = defects.invalid;
    let unusable = reasons.len() as u64;
    reasons.truncate(MAX_REASONS);
    let report = Report {
        fingerprint: fingerprint.to_owned(),
        width,
        documents: out.documents.len(),
        tokens: out.tokens,
        replaced: defects.replaced,
        unusable,
        reasons,
    };
    out.finish(&report).map_err(|e| Error::io(draft, e))
}

/// Reads all files in order and passes their lines to `send` in numbered batches, until it returns
/// false.
pub(crate) fn read_all(
    listing: &Listing,
    options: &ReadOptions,
    consumed: &AtomicU64,
    send: &mut dyn FnMut((u64, Lines)) -> bool,
) -> Result<Defects> {
    let (mut defects, mut number, mut bytes, mut batch) = (Defects::default(), 0, 0, Lines::new());
    for file in 0..listing.files.len() {
        let path = listing.path(file);
        let before = defects.invalid.len();
        let read = listing.read(file, options, consumed, &mut defects, &mut |piece| {
            bytes += piece.text.len();
            batch.push((file, piece));
            if bytes < BATCH {
                return true;
            }
            (number, bytes) = (number + 1, 0);
            send((number - 1, std::mem::take(&mut batch)))
        });
        let more = match read {
            Ok(more) => more,
            Err(Error::Io { source, .. }) => {
                defects.invalid.push(source.to_string());
                true
            }
            Err(Error::Data(reason)) => {
                defects.invalid.push(reason.to_string());
                true
            }
            Err(Error::File { path, reason }) => {
                let remedy = "data.invalid_utf8 = \"replace\" replaces invalid bytes";
                return Err(Error::file(path, format!("{reason}; {remedy}")));
            }
            Err(error) => return Err(error),
        };
        for reason in &mut defects.invalid[before..] {
            *reason = format!("{}: {reason}", path.display());
        }
        if !more {
            return Ok(defects);
        }
    }
    send((number, batch));
    Ok(defects)
}

/// Tokenizes batches until there are no more.
fn tokenize(
    lines: &Receiver<(u64, Lines)>,
    to_writer: &Sender<(u64, Result<Encoded>)>,
    tokenizer: &Tokenizer,
) {
    let eos = tokenizer.special().eos;
    for (number, lines) in lines {
        let encode = || {
            let mut encoded = Encoded { ids: Vec::new(), parts: Vec::new() };
            for (file, Piece { document, text, ends_line }) in lines {
                let mut ids = tokenizer.encode(&text)?;
                ids.extend(ends_line.then_some(eos));
                let len = ids.len() as u64;
                encoded.ids.extend(ids.into_iter().map(|id| id as u32));
                match encoded.parts.last_mut() {
                    Some(last) if (last.0, last.1) == (file, document) => last.2 += len,
                    _ => encoded.parts.push((file, document, len)),
                }
            }
            Ok(encoded)
        };
        if to_writer.send((number, encode())).is_err() {
            return;
        }
    }
}

/// Writes batches in the order of their numbers.
struct Writer {
    out: BufWriter<File>,
    width: usize,
    tokens: u64,
    /// File, index and start of the document that is being written.
    open: Option<(usize, u64, u64)>,
    documents: Vec<Document>,
}

impl Writer {
    fn write_all(
        &mut self,
        encoded: &Receiver<(u64, Result<Encoded>)>,
        listing: &Listing,
        tokenizer: &Tokenizer,
        draft: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let eos = tokenizer.special().eos as u32;
        let (mut next, mut waiting) = (0, BTreeMap::new());
        for (number, batch) in encoded {
            waiting.insert(number, batch?);
            while let Some(batch) = waiting.remove(&next) {
                next += 1;
                self.batch(&batch, listing, eos).map_err(|e| Error::io(draft, e))?;
                progress(self.tokens);
            }
        }
        self.close(listing, eos).map_err(|e| Error::io(draft, e))
    }

    fn batch(&mut self, batch: &Encoded, listing: &Listing, eos: u32) -> io::Result<()> {
        let mut ids = &batch.ids[..];
        for &(file, document, len) in &batch.parts {
            if self.open.is_some_and(|(f, d, _)| (f, d) != (file, document)) {
                self.close(listing, eos)?;
            }
            self.open.get_or_insert((file, document, self.tokens));
            let (part, rest) = ids.split_at(len as usize);
            part.iter().try_for_each(|&id| self.token(id))?;
            ids = rest;
        }
        Ok(())
    }

    /// Ends the open document.
    fn close(&mut self, listing: &Listing, eos: u32) -> io::Result<()> {
        if let Some((file, document, start)) = self.open.take() {
            self.token(eos)?;
            // A corpus splits the same way on every operating system.
            let path = listing.files[file].path.to_string_lossy().replace('\\', "/");
            let key = seed_for(0, Purpose::Split, &[hash(path.as_bytes()), document]);
            self.documents.push(Document { start, len: self.tokens - start, key });
        }
        Ok(())
    }

    fn token(&mut self, id: u32) -> io::Result<()> {
        self.tokens += 1;
        self.out.write_all(&id.to_le_bytes()[..self.width])
    }

    /// Writes the table of documents, the report and the magic number.
    fn finish(mut self, report: &Report) -> io::Result<()> {
        for Document { start, len, key } in &self.documents {
            for number in [start, len, key] {
                self.out.write_all(&number.to_le_bytes())?;
            }
        }
        let json = serde_json::to_vec(report)?;
        self.out.write_all(&json)?;
        self.out.write_all(&(json.len() as u64).to_le_bytes())?;
        self.out.write_all(MAGIC)?;
        self.out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}
