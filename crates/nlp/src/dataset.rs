//! Texts as examples for pretraining: blocks of tokens of equal length.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use crossbeam_channel::bounded;
use data2vec_core::checkpoint::hex;
use data2vec_core::{
    Batch, Dataset, Error, Result,
    random::{Purpose, hash, seed_for},
};
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Tensor;

use crate::{
    TokenEncoderConfig, Tokenizer,
    blocks::{Blocks, stretches},
    cache::{Cache, Document, Progress, feed},
    corpus::{Documents, InvalidUtf8, Reading},
    listing::Listing,
};

/// Where a recipe's tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerSource {
    /// A file or folder, as [`Tokenizer::load`] reads it.
    File(PathBuf),
    /// So many entries, trained on the corpus itself.
    Train(usize),
}

/// How texts become blocks of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextDataConfig {
    /// `{ file = "PATH" }`, or `{ train = ENTRIES }` for one trained on the corpus.
    pub tokenizer: TokenizerSource,
    /// Tokens in a block, `<s>` included: 512 in all of data2vec.
    pub block: usize,
    /// How blocks are filled.
    pub packing: Packing,
    /// What ends a document in plain text.
    pub documents: Documents,
    /// Where a JSON line's text is.
    pub json_key: String,
    /// What becomes of bytes that are not UTF-8.
    pub invalid_utf8: InvalidUtf8,
}

/// How blocks are filled. Each begins with `<s>`; `</s>` follows every line of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Without gaps, across lines and documents, which end in a second `</s>` (2.0; fairseq's `none`).
    Stream,
    /// A document begins a block; only its last one may be short.
    Document,
    /// The same, with whole lines; those longer than a block are cut (1.0; fairseq's `complete_doc`).
    Lines,
}

impl TextDataConfig {
    /// How texts are read by those who have no recipe: a file is a document, JSON lines have their text in
    /// `text`, and what is not UTF-8 is refused.
    pub fn usual() -> Self {
        Self {
            tokenizer: TokenizerSource::Train(8192),
            block: 512,
            packing: Packing::Stream,
            documents: Documents::File,
            json_key: "text".into(),
            invalid_utf8: InvalidUtf8::Refuse,
        }
    }

    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn validate(&self) -> Result<()> {
        if self.block < 2 {
            let reason = format!("{} leaves no room for text after <s>", self.block);
            return Err(Error::config("data.block", reason));
        }
        Ok(())
    }

    /// Whether blocks are as long as an encoder can take.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn fits(&self, features: &TokenEncoderConfig) -> Result<()> {
        if self.block as i64 > features.max_tokens {
            let reason =
                format!("{} is above features.max_tokens = {}", self.block, features.max_tokens);
            return Err(Error::config("data.block", reason));
        }
        Ok(())
    }

    pub(crate) fn reading(&self) -> Reading {
        let Self { documents, json_key, invalid_utf8, .. } = self;
        Reading { documents: *documents, json_key: json_key.clone(), invalid_utf8: *invalid_utf8 }
    }
}

/// Blocks of tokens: `load` gives one as ids, a batch is `(B, T)` i64, filled up with `<pad>`.
///
/// A clone, and both sides of a [`split`](Self::split), share the tokens on the disk.
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
    skipped: Vec<(PathBuf, String)>,
}

impl TextDataset {
    /// Opens the texts at `path`: a folder with `.txt`, `.text`, `.md`, `.jsonl` and `.ndjson` files
    /// anywhere below it, each of them gzipped or not, one file, or shards ([`data2vec_source`]) with a field or
    /// column `txt`, `text`, or what `json_key` says.
    ///
    /// Token ids are kept in the folder `cache`, and made again when a file, its size or time, the
    /// tokenizer or the way of reading changed; `progress` is called meanwhile. So is a tokenizer that
    /// is trained on the corpus, all of it.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is impossible, [`Error::Io`] or [`Error::File`] if
    /// something cannot be read or written, or there is no text. Files that cannot be read are no
    /// error here: see [`skipped`](Self::skipped).
    pub fn open(
        path: impl AsRef<Path>,
        config: &TextDataConfig,
        cache: impl AsRef<Path>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let (path, folder) = (path.as_ref(), cache.as_ref());
        config.validate()?;
        let reading = config.reading();
        let listing = Listing::of(path, &reading, Some(folder))?;
        let inputs = fingerprint(&listing, &reading);
        let tokenizer = match &config.tokenizer {
            TokenizerSource::File(path) => Tokenizer::load(path)?,
            TokenizerSource::Train(size) => {
                let file = folder.join(format!("tokenizer-{size}-{}.json", &inputs[..16]));
                match file.is_file() {
                    true => Tokenizer::load(&file)?,
                    false => {
                        let trained = train_on(path, &listing, &reading, *size)?;
                        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
                        trained.save_json(&file)?;
                        trained
                    }
                }
            }
        };
        // One file for each way of looking at a place; it is replaced when what is there changes.
        let place = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let way = format!("{place:?} {reading:?} {}", tokenizer.fingerprint());
        let file = folder.join(format!("tokens-{:016x}.bin", hash(way.as_bytes())));
        let all = format!("{inputs} {}", tokenizer.fingerprint());
        let cache = match Cache::open(&file, &all) {
            Some(cache) => cache,
            None => Cache::build(&file, &all, &listing, &reading, &tokenizer, progress)?,
        };
        if cache.documents.is_empty() {
            return Err(no_text(path, &cache.report.reasons));
        }
        let stretches = stretches(&cache.documents, config);
        let corpus = Corpus { path: path.to_owned(), cache, tokenizer, skipped: listing.skipped };
        let end = corpus.tokenizer.special().end;
        let blocks = Blocks::new(&stretches, &corpus.cache, end, config)?;
        Ok(Self { corpus: Arc::new(corpus), blocks: Arc::new(blocks), config: config.clone() })
    }

    /// The rest, and what is held out for validation: about this share of the documents, in `[0, 1)`.
    /// Whether one is held out depends on its file's path and its place in it alone, so a corpus can
    /// grow without moving any from one side to the other. Documents of more than 64 blocks count as
    /// several.
    ///
    /// # Errors
    /// [`Error::Config`] if one side would be empty.
    pub fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)> {
        if !(0.0..1.0).contains(&share) {
            let reason = format!("must be at least 0 and below 1, not {share}");
            return Err(Error::config("train.held_out", reason));
        }
        let below = (share * 2_f64.powi(64)) as u64;
        let all = stretches(&self.corpus.cache.documents, &self.config);
        let rank = |d: &Document| seed_for(seed, Purpose::Split, &[d.key]);
        let (held_out, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|d| rank(d) < below);
        if held_out.is_empty() || rest.is_empty() {
            let (held_out, all) = (held_out.len(), held_out.len() + rest.len());
            let reason = format!(
                "{share} holds out {held_out} of {all} documents (or stretches of long ones); both \
                 sides need one at least"
            );
            return Err(Error::config("train.held_out", reason));
        }
        let side = |documents: &[Document]| -> Result<Self> {
            let end = self.tokenizer().special().end;
            let blocks = Blocks::new(documents, &self.corpus.cache, end, &self.config)?;
            Ok(Self { blocks: Arc::new(blocks), ..self.clone() })
        };
        Ok((side(&rest)?, side(&held_out)?))
    }

    /// Text to ids and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.corpus.tokenizer
    }

    /// Tokens of all blocks together, without `<s>`.
    pub fn tokens(&self) -> u64 {
        match &*self.blocks {
            Blocks::Stream { total, .. } => *total,
            Blocks::Single(blocks) => blocks.iter().map(|&(_, len)| u64::from(len)).sum(),
        }
    }

    /// Documents of the whole corpus.
    pub fn documents(&self) -> usize {
        self.corpus.cache.documents.len()
    }

    /// Places of the corpus where bytes were not UTF-8 and `U+FFFD` stands now.
    pub fn replaced(&self) -> u64 {
        self.corpus.cache.report.replaced
    }

    /// Files and lines of the corpus that are of no use, each with its reason; beyond ten thousand they
    /// are only counted.
    pub fn skipped(&self) -> Vec<String> {
        let Corpus { skipped, cache, .. } = &*self.corpus;
        let listed = skipped.iter().map(|(path, why)| format!("{}: {why}", path.display()));
        let (reasons, unusable) = (&cache.report.reasons, cache.report.unusable);
        let more = unusable - reasons.len() as u64;
        let more = (more > 0).then(|| format!("and {more} more"));
        listed.chain(reasons.iter().cloned()).chain(more).collect()
    }

    /// Tokens of a block without `<s>`.
    fn room(&self) -> u64 {
        self.config.block as u64 - 1
    }
}

/// A byte-level BPE trained on the texts at `path`, read as `config` says.
///
/// # Errors
/// As [`TextDataset::open`], or [`Error::File`] if there is too little text for so many entries.
pub fn train_tokenizer(
    path: impl AsRef<Path>,
    config: &TextDataConfig,
    entries: usize,
) -> Result<Tokenizer> {
    let (path, reading) = (path.as_ref(), config.reading());
    train_on(path, &Listing::of(path, &reading, None)?, &reading, entries)
}

fn train_on(
    path: &Path,
    listing: &Listing,
    reading: &Reading,
    entries: usize,
) -> Result<Tokenizer> {
    let (to_trainer, lines) = bounded(16);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let consumed = AtomicU64::new(0);
            let mut some = false;
            let read = feed(listing, reading, &consumed, &mut |(_, batch)| {
                some |= !batch.is_empty();
                to_trainer.send(batch).is_ok()
            })?;
            Ok::<_, Error>((!some).then(|| no_text(path, &read.unusable)))
        });
        let texts = lines.into_iter().flatten().map(|(_, piece)| piece.text);
        let trained = Tokenizer::train(texts, entries);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match read? {
            Some(nothing) => Err(nothing),
            None => trained.map_err(|error| match error {
                Error::Input(reason) => Error::file(path, reason),
                other => other,
            }),
        }
    })
}

/// What to say where `path` holds nothing to train on; `reasons`: what was found instead.
fn no_text(path: &Path, reasons: &[String]) -> Error {
    let first = reasons.first().map_or("all files are empty", String::as_str);
    Error::file(path, format!("no usable text in it: {first}"))
}

/// Changes whenever a file, its size or time, or the way of reading does.
fn fingerprint(listing: &Listing, reading: &Reading) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("1 {reading:?}\n"));
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
        let mut ids = vec![tokenizer.special().begin];
        for (start, len) in self.blocks.places(index, self.room()) {
            ids.extend(cache.read(start, len)?);
        }
        if let Some(id) = ids.iter().find(|&&id| id >= tokenizer.vocabulary()) {
            let reason =
                format!("token {id} of block {index} is unknown: it is damaged, remove it");
            return Err(Error::file(cache.path(), reason));
        }
        Ok(ids)
    }

    fn collate(&self, examples: Vec<Vec<i64>>, _rng: &mut StdRng) -> Result<Batch> {
        collate(&examples, self.tokenizer().special().pad)
    }
}

/// Rows of token ids in one batch, shorter ones filled up with `pad`.
///
/// # Errors
/// [`Error::Input`] if there is no row, or an empty one.
pub fn collate(rows: &[Vec<i64>], pad: i64) -> Result<Batch> {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut flat = vec![pad; rows.len() * longest];
    for (place, row) in flat.chunks_exact_mut(longest.max(1)).zip(rows) {
        place[..row.len()].copy_from_slice(row);
    }
    let lengths = rows.iter().map(|row| row.len() as i64).collect();
    let inputs = Tensor::from_slice(&flat).reshape([rows.len() as i64, longest as i64]); // (B, T)
    Batch::padded(inputs, lengths)
}
