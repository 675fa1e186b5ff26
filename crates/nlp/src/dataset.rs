//! Texts as examples for pretraining: blocks of tokens of equal length.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam_channel::bounded;
use data2vec_core::data::split::empty_side;
use data2vec_core::io::checkpoint::hex;
use data2vec_core::random::{Purpose, hash, seed_for};
use data2vec_core::{Batch, Dataset, Error, Result};
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};
use tch::Tensor;

use crate::blocks::{Blocks, split_long};
use crate::cache::{Cache, Document, Progress, read_all};
use crate::config::{TextDataConfig, TokenizerSource};
use crate::listing::{Listing, ReadOptions};
use crate::tokenizer::Tokenizer;

/// Blocks of tokens: an example is token ids, a batch `(B, T)` i64, padded with `<pad>`.
///
/// Clones and both sides of a [`split`](Self::split) share the token cache on disk.
#[derive(Clone, Debug)]
pub struct TextDataset {
    corpus: Arc<Corpus>,
    blocks: Arc<Blocks>,
    config: TextDataConfig,
}

#[derive(Debug)]
struct Corpus {
    path: PathBuf,
    cache: Cache,
    tokenizer: Tokenizer,
    /// Skipped files and directories, `path: reason` each.
    skipped: Vec<String>,
}

impl TextDataset {
    /// Lists, tokenizes and packs the texts at `path`.
    ///
    /// `path` is one of: a directory with `.txt`, `.text`, `.md`, `.jsonl` and `.ndjson` files,
    /// gzipped or not, anywhere below it; one file; shards ([`data2vec_source`]) with a field or
    /// column `txt`, `text`, or the one named by `json_key`.
    ///
    /// Token ids, and a tokenizer trained on the corpus, are stored in the directory `cache`. They
    /// are rebuilt when a file, its size or modification time, the tokenizer or a setting changes;
    /// `progress` is called meanwhile. Unreadable files and lines are skipped, see
    /// [`skipped`](Self::skipped).
    ///
    /// # Errors
    /// Returns [`Error::Config`] if a setting is invalid, [`Error::Io`] or [`Error::File`] if a
    /// file cannot be read or written, or there is no text.
    pub fn open(
        path: impl AsRef<Path>,
        config: &TextDataConfig,
        cache: impl AsRef<Path>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let (path, cache_dir) = (path.as_ref(), cache.as_ref());
        config.validate()?;
        let options = ReadOptions::new(config);
        let listing = Listing::open(path, &options, Some(cache_dir))?;
        let inputs = fingerprint(&listing, &options);
        let tokenizer = match &config.tokenizer {
            TokenizerSource::File(path) if !path.exists() => {
                let reason = format!(
                    "there is no {}; put a tokenizer there, or set data.tokenizer, features.vocabulary \
                     and features.mask to train one on the data, as nlp-tiny does",
                    path.display()
                );
                return Err(Error::config("data.tokenizer", reason));
            }
            TokenizerSource::File(path) => Tokenizer::load(path)?,
            TokenizerSource::Train(size) => {
                let file = cache_dir.join(format!("tokenizer-{size}-{}.json", &inputs[..16]));
                match file.is_file() {
                    true => Tokenizer::load(&file)?,
                    false => {
                        let trained = train_on(path, &listing, &options, *size)?;
                        std::fs::create_dir_all(cache_dir).map_err(|e| Error::io(cache_dir, e))?;
                        trained.save_json(&file)?;
                        trained
                    }
                }
            }
        };
        // One cache file per path, tokenizer and settings; a changed corpus replaces it.
        let location = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let key = format!("{location:?} {} {}", options.cache_key(), tokenizer.fingerprint());
        let file = cache_dir.join(format!("tokens-{:016x}.bin", hash(key.as_bytes())));
        let contents = format!("{inputs} {}", tokenizer.fingerprint());
        let cache = match Cache::open(&file, &contents) {
            Some(cache) => cache,
            None => Cache::build(&file, &contents, &listing, &options, &tokenizer, progress)?,
        };
        if cache.documents.is_empty() {
            return Err(no_text(path, &cache.report.reasons));
        }
        let documents = split_long(&cache.documents, config);
        let skipped = listing.skipped();
        let corpus = Corpus { path: path.to_owned(), cache, tokenizer, skipped };
        let eos = corpus.tokenizer.special().eos;
        let blocks = Blocks::new(&documents, &corpus.cache, eos, config)?;
        Ok(Self { corpus: Arc::new(corpus), blocks: Arc::new(blocks), config: config.clone() })
    }

    /// Splits off about `share` of the documents, in `[0, 1)`: returns (train, held out).
    ///
    /// The split depends only on each document's file path, its index in the file and `seed`, so a
    /// growing corpus never moves a document to the other side. Documents of more than 64 blocks
    /// count as several.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if one side would be empty.
    pub fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)> {
        if !(0.0..1.0).contains(&share) {
            let reason = format!("must be at least 0 and below 1, not {share}");
            return Err(Error::config("train.held_out", reason));
        }
        let below = (share * 2_f64.powi(64)) as u64;
        let all = split_long(&self.corpus.cache.documents, &self.config);
        let hash = |d: &Document| seed_for(seed, Purpose::Split, &[d.key]);
        let hashes: Vec<u64> = all.iter().map(hash).collect();
        let (held_out, train): (Vec<_>, Vec<_>) = all.into_iter().partition(|d| hash(d) < below);
        if held_out.is_empty() || train.is_empty() {
            return Err(empty_side(share, &hashes, "documents (or parts of long ones)"));
        }
        let side = |documents: &[Document]| -> Result<Self> {
            let eos = self.tokenizer().special().eos;
            let blocks = Blocks::new(documents, &self.corpus.cache, eos, &self.config)?;
            Ok(Self { blocks: Arc::new(blocks), ..self.clone() })
        };
        Ok((side(&train)?, side(&held_out)?))
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.corpus.tokenizer
    }

    /// Returns the number of tokens of all blocks, without `<s>`.
    pub fn num_tokens(&self) -> u64 {
        match &*self.blocks {
            Blocks::Stream { total, .. } => *total,
            Blocks::Single(blocks) => blocks.iter().map(|&(_, len)| u64::from(len)).sum(),
        }
    }

    /// Returns the number of documents of the corpus, including the other side of a split.
    pub fn num_documents(&self) -> usize {
        self.corpus.cache.documents.len()
    }

    /// Returns the number of byte sequences of the corpus that are not UTF-8 and were replaced by
    /// `U+FFFD`.
    pub fn num_replaced(&self) -> u64 {
        self.corpus.cache.report.replaced
    }

    /// Returns one line for each skipped file or line of the corpus: `path: reason`. Beyond ten
    /// thousand, the last line counts the rest.
    pub fn skipped(&self) -> Vec<String> {
        let Corpus { skipped, cache, .. } = &*self.corpus;
        let (reasons, invalid) = (&cache.report.reasons, cache.report.unusable);
        let more = invalid - reasons.len() as u64;
        let more = (more > 0).then(|| format!("and {more} more"));
        skipped.iter().chain(reasons).cloned().chain(more).collect()
    }

    /// Returns the number of tokens of a block, without `<s>`.
    fn room(&self) -> u64 {
        self.config.block as u64 - 1
    }
}

/// Trains a byte-level BPE with a vocabulary of `entries` on the texts at `path`.
///
/// # Errors
/// Returns the errors of [`TextDataset::open`], and [`Error::File`] if there is too little text for
/// the vocabulary.
pub fn train_tokenizer(
    path: impl AsRef<Path>,
    config: &TextDataConfig,
    entries: usize,
) -> Result<Tokenizer> {
    let (path, options) = (path.as_ref(), ReadOptions::new(config));
    train_on(path, &Listing::open(path, &options, None)?, &options, entries)
}

fn train_on(
    path: &Path,
    listing: &Listing,
    options: &ReadOptions,
    entries: usize,
) -> Result<Tokenizer> {
    let (to_trainer, lines) = bounded(16);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let consumed = AtomicU64::new(0);
            let mut has_text = false;
            let defects = read_all(listing, options, &consumed, &mut |(_, batch)| {
                has_text |= !batch.is_empty();
                to_trainer.send(batch).is_ok()
            })?;
            Ok::<_, Error>((!has_text).then(|| no_text(path, &defects.invalid)))
        });
        let texts = lines.into_iter().flatten().map(|(_, piece)| piece.text);
        let trained = Tokenizer::train(texts, entries);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match read? {
            Some(no_text) => Err(no_text),
            None => trained.map_err(|error| match error {
                Error::Input(reason) => Error::file(path, reason),
                other => other,
            }),
        }
    })
}

/// Returns the error for a corpus without text; `reasons` are those of its invalid lines.
fn no_text(path: &Path, reasons: &[String]) -> Error {
    let first = reasons.first().map_or("all files are empty", String::as_str);
    Error::file(path, format!("no usable text in it: {first}"))
}

/// Computes a fingerprint of all files (path, size, modification time) and of the options.
fn fingerprint(listing: &Listing, options: &ReadOptions) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("1 {}\n", options.cache_key()));
    for file in &listing.files {
        hash.update(file.path.as_os_str().as_encoded_bytes());
        hash.update(format!("\n{} {}\n", file.bytes, file.changed));
    }
    hex(hash.finalize())
}

impl Dataset for TextDataset {
    type Example = Vec<i64>;
    type Batch = Batch;

    fn len(&self) -> usize {
        match &*self.blocks {
            Blocks::Stream { total, .. } => total.div_ceil(self.room()) as usize,
            Blocks::Single(blocks) => blocks.len(),
        }
    }

    fn size(&self, index: usize) -> u64 {
        let room = self.room();
        1 + match &*self.blocks {
            Blocks::Stream { total, .. } => room.min(total - index as u64 * room),
            Blocks::Single(blocks) => u64::from(blocks[index].1),
        }
    }

    fn name(&self, index: usize) -> String {
        format!("{}, block {index}", self.corpus.path.display())
    }

    fn load(&self, index: usize, _rng: &mut StdRng) -> Result<Vec<i64>> {
        let Corpus { cache, tokenizer, .. } = &*self.corpus;
        let mut ids = vec![tokenizer.special().bos];
        for (start, len) in self.blocks.ranges(index, self.room()) {
            ids.extend(cache.read(start, len)?);
        }
        if let Some(id) = ids.iter().find(|&&id| id >= tokenizer.vocab_size()) {
            let reason =
                format!("is damaged: block {index} contains the unknown token id {id}; delete it");
            return Err(Error::file(cache.path(), reason));
        }
        Ok(ids)
    }

    fn collate(&self, examples: Vec<Vec<i64>>, _rng: &mut StdRng) -> Result<Batch> {
        collate(&examples, self.tokenizer().special().pad)
    }
}

/// Collates rows of token ids to a batch `(B, T)`, padded with `pad` on the right.
///
/// # Errors
/// Returns [`Error::Input`] if there is no row, or an empty one.
pub fn collate(rows: &[Vec<i64>], pad: i64) -> Result<Batch> {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut flat = vec![pad; rows.len() * longest];
    for (padded, row) in flat.chunks_exact_mut(longest.max(1)).zip(rows) {
        padded[..row.len()].copy_from_slice(row);
    }
    let lengths = rows.iter().map(|row| row.len() as i64).collect();
    let inputs = Tensor::from_slice(&flat).reshape([rows.len() as i64, longest as i64]); // (B, T)
    Batch::padded(inputs, lengths)
}
