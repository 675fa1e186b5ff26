//! Token ids of a whole corpus in one file, made once and read by pieces.
//!
//! `pread` does the reading. A memory map would spare one copy of 1 kB a block, and needs `unsafe`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use data2vec_core::{
    Error, Result,
    random::{Purpose, hash, seed_for},
};
use serde::{Deserialize, Serialize};

use crate::{
    Tokenizer,
    corpus::{Flaws, Piece, Reading},
    listing::Listing,
};

/// Last bytes of a cache; others mean another format.
const MAGIC: &[u8; 8] = b"d2vtoks1";
/// Bytes of text that are handed to a worker at once.
const BATCH: usize = 1 << 20;
/// Reasons that are kept; all flaws are counted.
const MOST_REASONS: usize = 10_000;

/// How far the making of a cache has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read, as they are on the disk.
    pub bytes: u64,
    /// Bytes to read.
    pub total: u64,
    /// Tokens written.
    pub tokens: u64,
}

/// A document in the cache, with the `</s>` of its own at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub start: u64,
    pub len: u64,
    /// Depends on the file's path below the root and the document's number in it.
    pub key: u64,
}

/// What making it has found; kept in the cache.
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

#[derive(Debug)]
pub(crate) struct Cache {
    file: File,
    path: PathBuf,
    pub documents: Vec<Document>,
    pub report: Report,
}

impl Cache {
    /// The cache at `path` if it is whole and was made of the same inputs.
    pub fn open(path: &Path, fingerprint: &str) -> Option<Self> {
        let read = || -> io::Result<Self> {
            let mut file = File::open(path)?;
            let end = file.seek(SeekFrom::End(-16))?;
            let mut tail = [0; 16];
            file.read_exact(&mut tail)?;
            let (len, magic) = tail.split_at(8);
            let json_len = u64::from_le_bytes(len.try_into().unwrap_or_default());
            let bad = || io::Error::other("another format");
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

    /// Makes the cache at `path`, whole or not at all, with all cores.
    pub fn build(
        path: &Path,
        fingerprint: &str,
        listing: &Listing,
        reading: &Reading,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let draft = path.with_extension(format!("{}.part", std::process::id()));
        let built = write(&draft, fingerprint, listing, reading, tokenizer, progress)
            .and_then(|()| fs::rename(&draft, path).map_err(|e| Error::io(path, e)));
        if let Err(error) = built {
            let _ = fs::remove_file(&draft); // what matters is the first error
            return Err(error);
        }
        Self::open(path, fingerprint)
            .ok_or_else(|| Error::file(path, "cannot be read back; is another run writing it?"))
    }

    /// `len` token ids from `start` on.
    pub fn read(&self, start: u64, len: usize) -> Result<Vec<i64>> {
        let width = self.report.width;
        let mut bytes = vec![0; len * width];
        let at = start * width as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(|e| Error::io(&self.path, e))?;
        let id = |b: &[u8]| b.iter().rev().fold(0, |id, &byte| (id << 8) | i64::from(byte));
        Ok(bytes.chunks_exact(width).map(id).collect())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Lines of text that go to a worker together, with the number of their file.
type Lines = Vec<(usize, Piece)>;

/// Token ids of the same; `(file, document, tokens)` of each document or part of one.
struct Encoded {
    ids: Vec<u32>,
    parts: Vec<(usize, u64, u64)>,
}

fn write(
    draft: &Path,
    fingerprint: &str,
    listing: &Listing,
    reading: &Reading,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let file = File::create(draft).map_err(|e| Error::io(draft, e))?;
    let width = if tokenizer.vocabulary() <= 1 << 16 { 2 } else { 4 };
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
    let flaws = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let to_workers = to_workers; // closed at the end
            feed(listing, reading, &consumed, &mut |batch| to_workers.send(batch).is_ok())
        });
        for _ in 0..threads {
            let (lines, to_writer) = (lines.clone(), to_writer.clone());
            scope.spawn(move || work(&lines, &to_writer, tokenizer));
        }
        drop((lines, to_writer));
        let written = out.all(&encoded, listing, tokenizer, draft, &mut |tokens| {
            let bytes = consumed.load(Ordering::Relaxed);
            progress(Progress { bytes, total: listing.bytes(), tokens });
        });
        drop(encoded); // after an error: everybody stops
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(read)
    })?;

    let mut reasons = flaws.unusable;
    let unusable = reasons.len() as u64;
    reasons.truncate(MOST_REASONS);
    let report = Report {
        fingerprint: fingerprint.to_owned(),
        width,
        documents: out.documents.len(),
        tokens: out.tokens,
        replaced: flaws.replaced,
        unusable,
        reasons,
    };
    out.finish(&report).map_err(|e| Error::io(draft, e))
}

/// Reads all files in order, in batches of lines with their numbers.
pub(crate) fn feed(
    listing: &Listing,
    reading: &Reading,
    consumed: &AtomicU64,
    send: &mut dyn FnMut((u64, Lines)) -> bool,
) -> Result<Flaws> {
    let (mut flaws, mut number, mut bytes, mut batch) = (Flaws::default(), 0, 0, Lines::new());
    for file in 0..listing.files.len() {
        let path = listing.path(file);
        let before = flaws.unusable.len();
        let read = listing.read(file, reading, consumed, &mut flaws, &mut |piece| {
            bytes += piece.text.len();
            batch.push((file, piece));
            if bytes < BATCH {
                return true;
            }
            (number, bytes) = (number + 1, 0);
            send((number - 1, std::mem::take(&mut batch)))
        });
        let go_on = match read {
            Ok(go_on) => go_on,
            Err(Error::Io { source, .. }) => {
                flaws.unusable.push(source.to_string());
                true
            }
            Err(Error::Data(reason)) => {
                flaws.unusable.push(reason.to_string());
                true
            }
            Err(Error::File { path, reason }) => {
                let remedy = "data.invalid_utf8 = \"replace\" goes on without what is not";
                return Err(Error::file(path, format!("{reason}; {remedy}")));
            }
            Err(error) => return Err(error),
        };
        for reason in &mut flaws.unusable[before..] {
            *reason = format!("{}: {reason}", path.display());
        }
        if !go_on {
            return Ok(flaws);
        }
    }
    send((number, batch));
    Ok(flaws)
}

fn work(
    lines: &Receiver<(u64, Lines)>,
    to_writer: &Sender<(u64, Result<Encoded>)>,
    tokenizer: &Tokenizer,
) {
    let end = tokenizer.special().end;
    for (number, lines) in lines {
        let encode = || {
            let mut encoded = Encoded { ids: Vec::new(), parts: Vec::new() };
            for (file, Piece { document, text, ends_line }) in lines {
                let mut ids = tokenizer.encode(&text)?;
                ids.extend(ends_line.then_some(end));
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

struct Writer {
    out: BufWriter<File>,
    width: usize,
    tokens: u64,
    /// File and number of the document that is being written, and where it starts.
    open: Option<(usize, u64, u64)>,
    documents: Vec<Document>,
}

impl Writer {
    fn all(
        &mut self,
        encoded: &Receiver<(u64, Result<Encoded>)>,
        listing: &Listing,
        tokenizer: &Tokenizer,
        draft: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let end = tokenizer.special().end as u32;
        let (mut next, mut waiting) = (0, BTreeMap::new());
        for (number, batch) in encoded {
            waiting.insert(number, batch?);
            while let Some(batch) = waiting.remove(&next) {
                next += 1;
                self.batch(&batch, listing, end).map_err(|e| Error::io(draft, e))?;
                progress(self.tokens);
            }
        }
        self.close(listing, end).map_err(|e| Error::io(draft, e))
    }

    fn batch(&mut self, batch: &Encoded, listing: &Listing, end: u32) -> io::Result<()> {
        let mut ids = &batch.ids[..];
        for &(file, document, len) in &batch.parts {
            if self.open.is_some_and(|(f, d, _)| (f, d) != (file, document)) {
                self.close(listing, end)?;
            }
            self.open.get_or_insert((file, document, self.tokens));
            let (part, rest) = ids.split_at(len as usize);
            part.iter().try_for_each(|&id| self.token(id))?;
            ids = rest;
        }
        Ok(())
    }

    fn close(&mut self, listing: &Listing, end: u32) -> io::Result<()> {
        if let Some((file, document, start)) = self.open.take() {
            self.token(end)?;
            // The same corpus splits the same on every system.
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
