//! Byte-level BPE: RoBERTa's, GPT-2's, or trained on a corpus.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use data2vec_core::io::checkpoint::hex;
use data2vec_core::io::file::write_file;
use data2vec_core::{Error, Result, guarded};
use sha2::{Digest, Sha256};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, TokenizerImpl};

use crate::config::TokenEncoderConfig;
use crate::dictionary::dictionary_ids;
use crate::pieces::{PIECE, TRAINING_PIECE, pieces};

/// File name of a saved tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Special tokens with the lowest ids, in the order of fairseq's dictionaries.
const FIRST: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];
const MASK: &str = "<mask>";
/// Largest vocabulary of a trained tokenizer: four times the largest in use.
const MAX_ENTRIES: usize = 1 << 20;

/// File name of the tokenizer's fingerprint in the directory of an exported encoder.
const FINGERPRINT_FILE: &str = "tokenizer.sha256";

type Bpe = TokenizerImpl<
    BPE,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Ids of the special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// `<s>`, at the start of each sequence.
    pub bos: i64,
    /// `<pad>`.
    pub pad: i64,
    /// `</s>`, at the end of each line of a document.
    pub eos: i64,
    /// `<unk>`; only a `dict.txt` that lacks tokens needs it, since bytes cover all text.
    pub unk: i64,
    /// `<mask>`.
    pub mask: i64,
}

/// Converts text to token ids and back. Text never becomes special tokens, even if it contains
/// `<mask>`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Our ids by GPT-2 id, for GPT-2's files, which have no special tokens.
    to_ours: Option<Vec<i64>>,
    /// GPT-2 ids by our id.
    to_theirs: HashMap<i64, u32>,
    special: SpecialIds,
    vocab_size: i64,
    fingerprint: String,
    /// Names and contents of GPT-2's files; empty if `tokenizer.json` represents the tokenizer.
    files: Vec<(&'static str, Vec<u8>)>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { special, vocab_size, fingerprint, .. } = self;
        write!(f, "Tokenizer {{ vocab_size: {vocab_size}, {special:?}, {fingerprint} }}")
    }
}

impl Tokenizer {
    /// Loads a tokenizer from a `tokenizer.json`, or from a directory.
    ///
    /// The directory contains one of: `tokenizer.json`; `vocab.json` and `merges.txt` (RoBERTa);
    /// `encoder.json` and `vocab.bpe` (GPT-2). GPT-2's files give RoBERTa's ids together with
    /// fairseq's `dict.txt`, and GPT-2's ids plus 4 without it.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::File`] if none of these is at `path`, or it is invalid or
    /// lacks a special token.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !meta.is_dir() {
            return Self::from_json(path, &read(path)?);
        }
        let json = path.join(TOKENIZER_FILE);
        if json.is_file() {
            return Self::from_json(&json, &read(&json)?);
        }
        let find =
            |names: [&str; 2]| names.map(|name| path.join(name)).into_iter().find(|p| p.is_file());
        let (Some(vocabulary), Some(merges)) =
            (find(["vocab.json", "encoder.json"]), find(["merges.txt", "vocab.bpe"]))
        else {
            let reason = "holds neither tokenizer.json, nor vocab.json and merges.txt, nor \
                          encoder.json and vocab.bpe";
            return Err(Error::file(path, reason));
        };
        let dictionary = Some(path.join("dict.txt")).filter(|p| p.is_file());
        Self::from_parts(&vocabulary, &merges, dictionary.as_deref())
    }

    /// Loads the tokenizer in the directory of an exported encoder.
    ///
    /// # Errors
    /// Returns the errors of [`load`](Self::load), and [`Error::File`] if the tokenizer is not the
    /// one that was exported with the encoder.
    pub fn load_for_encoder(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let tokenizer = Self::load(dir)?;
        // Encoders from other programs come without a fingerprint.
        let fingerprint = std::fs::read_to_string(dir.join(FINGERPRINT_FILE));
        if fingerprint.is_ok_and(|trained_with| trained_with.trim() != tokenizer.fingerprint()) {
            let reason = format!(
                "its tokenizer differs from the one it was trained with; restore that one, or \
                 delete {FINGERPRINT_FILE} to use this one"
            );
            return Err(Error::file(dir, reason));
        }
        Ok(tokenizer)
    }

    fn from_json(path: &Path, bytes: &[u8]) -> Result<Self> {
        let inner = guarded(path, || {
            let inner = tokenizers::Tokenizer::from_bytes(bytes);
            inner.map_err(|e| Error::file(path, format!("is not a tokenizer.json: {e}")))
        })?;
        Self::with_specials(inner, &[bytes]).map_err(|missing| Error::file(path, missing))
    }

    fn from_parts(vocabulary: &Path, merges: &Path, dictionary: Option<&Path>) -> Result<Self> {
        let (vocabulary_bytes, merges_bytes) = (read(vocabulary)?, read(merges)?);
        let [v, m] = [vocabulary, merges].map(|p| p.to_string_lossy());
        let model = BPE::from_file(&v, &m).build().map_err(|e| {
            Error::file(vocabulary, format!("does not go with {}: {e}", merges.display()))
        })?;
        let inner = byte_level(model).into();
        if dictionary.is_none()
            && let Ok(own) = Self::with_specials(inner, &[&vocabulary_bytes, &merges_bytes])
        {
            return Ok(own);
        }
        let model = BPE::from_file(&v, &m).build();
        let model = model.map_err(|e| Error::file(vocabulary, e.to_string()))?;
        let inner = plain_text_only(byte_level(model).into());
        check_letters(&inner).map_err(|reason| Error::file(vocabulary, reason))?;
        let size = inner.get_vocab_size(false);
        if inner.get_vocab(false).into_values().any(|id| id as usize >= size) {
            return Err(Error::file(vocabulary, format!("its ids are not 0 to {}", size - 1)));
        }
        let (lines, dictionary_bytes) = match dictionary {
            None => ((0..size).map(|id| Some(id as u32)).collect(), Vec::new()),
            Some(path) => {
                let bytes = read(path)?;
                (dictionary_ids(path, &bytes, size)?, bytes)
            }
        };
        let first = FIRST.len() as i64;
        let mut to_ours = vec![3; size];
        for (line, id) in lines.iter().enumerate() {
            if let Some(id) = id {
                to_ours[*id as usize] = first + line as i64;
            }
        }
        let mask = first + lines.len() as i64;
        let to_theirs = (first..).zip(lines).filter_map(|(ours, id)| Some((ours, id?))).collect();
        Ok(Self {
            inner,
            to_ours: Some(to_ours),
            to_theirs,
            special: SpecialIds { bos: 0, pad: 1, eos: 2, unk: 3, mask },
            vocab_size: mask + 1,
            fingerprint: fingerprint(&[&vocabulary_bytes, &merges_bytes, &dictionary_bytes]),
            files: [("encoder.json", vocabulary_bytes), ("vocab.bpe", merges_bytes)]
                .into_iter()
                .chain(dictionary.map(|_| ("dict.txt", dictionary_bytes)))
                .collect(),
        })
    }

    /// Creates a tokenizer whose vocabulary contains the special tokens; the error names a missing
    /// one.
    fn with_specials(
        inner: tokenizers::Tokenizer,
        bytes: &[&[u8]],
    ) -> std::result::Result<Self, String> {
        let id = |token: &str| {
            let id = inner.token_to_id(token).map(i64::from);
            id.ok_or_else(|| format!("its vocabulary has no {token}"))
        };
        let (bos, pad, eos, mask) = (id(FIRST[0])?, id(FIRST[1])?, id(FIRST[2])?, id(MASK)?);
        let unk = id(FIRST[3]).unwrap_or(eos); // unused: every byte has a token
        let inner = plain_text_only(inner);
        check_letters(&inner)?;
        let highest = inner.get_vocab(true).into_values().max().map_or(0, i64::from);
        Ok(Self {
            special: SpecialIds { bos, pad, eos, unk, mask },
            inner,
            to_ours: None,
            to_theirs: HashMap::new(),
            vocab_size: highest + 1,
            fingerprint: fingerprint(bytes),
            files: Vec::new(),
        })
    }

    /// Trains a byte-level BPE on `texts`, with exactly `vocab_size` entries: the special tokens
    /// with fairseq's ids (`<mask>` last), the 256 bytes, and merges. Training is deterministic.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the texts are too short for the vocabulary.
    pub fn train<S: AsRef<str> + Send>(
        texts: impl Iterator<Item = S> + Send,
        vocab_size: usize,
    ) -> Result<Self> {
        let min_entries = 256 + FIRST.len() + 1;
        if !(min_entries..=MAX_ENTRIES).contains(&vocab_size) {
            return Err(Error::Input(format!(
                "a vocabulary has from {min_entries} to {MAX_ENTRIES} entries, not {vocab_size}"
            )));
        }
        let special = |token: &&str| AddedToken::from(*token, true);
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size - 1)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(FIRST.iter().map(special).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut bpe = byte_level(BPE::default());
        let failed = |e: tokenizers::Error| Error::Input(format!("tokenizer: {e}"));
        let pieces = |text: S| -> Vec<String> {
            pieces(text.as_ref(), TRAINING_PIECE).map(str::to_owned).collect()
        };
        bpe.train(&mut trainer, texts.flat_map(pieces)).map_err(failed)?;
        bpe.add_special_tokens(&[special(&MASK)]);
        let inner: tokenizers::Tokenizer = bpe.into();
        let json = inner.to_string(true).map_err(failed)?;
        let trained = Self::with_specials(inner, &[json.as_bytes()]).map_err(Error::Input)?;
        if trained.vocab_size != vocab_size as i64 {
            return Err(Error::Input(format!(
                "the texts give a vocabulary of {0} entries, not {vocab_size}; add text, or use a smaller \
                 one: --set data.tokenizer={{train={0}}} --set features.vocabulary={0} --set \
                 features.mask={1}",
                trained.vocab_size,
                trained.vocab_size - 1
            )));
        }
        Ok(trained)
    }

    /// Writes the tokenizer to the directory `dir`, for [`load`](Self::load): as `tokenizer.json`,
    /// or as the GPT-2 files that it was loaded from.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if a file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        if self.files.is_empty() {
            return self.save_json(dir.join(TOKENIZER_FILE));
        }
        self.files.iter().try_for_each(|(name, bytes)| write_file(&dir.join(name), bytes))
    }

    /// Writes the tokenizer and its fingerprint to the directory of an exported encoder, so that
    /// [`load_for_encoder`](Self::load_for_encoder) rejects another tokenizer.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if a file cannot be written, and the errors of [`load`](Self::load).
    pub fn save_with_encoder(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        self.save(dir)?;
        // The written file may differ from the loaded one byte by byte.
        let written = Self::load(dir)?;
        write_file(&dir.join(FINGERPRINT_FILE), written.fingerprint.as_bytes())
    }

    /// Writes the tokenizer to one file.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the file cannot be written, [`Error::File`] for a tokenizer from
    /// GPT-2's files, which do not fit into one file; use [`save`](Self::save).
    pub fn save_json(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if self.to_ours.is_some() {
            let reason = "a tokenizer from encoder.json and vocab.bpe does not fit into one file";
            return Err(Error::file(path, reason));
        }
        let json = self.inner.to_string(true).map_err(|e| Error::file(path, e.to_string()))?;
        write_file(path, json.as_bytes())
    }

    /// Encodes a text, without `<s>` and `</s>`.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the tokenizer rejects the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        for piece in pieces(text, PIECE) {
            let encoding = self.inner.encode_fast(piece, false);
            let encoding = encoding.map_err(|e| Error::Input(format!("tokenizer: {e}")))?;
            ids.extend(encoding.get_ids().iter().map(|&id| match &self.to_ours {
                Some(to_ours) => to_ours[id as usize],
                None => i64::from(id),
            }));
        }
        Ok(ids)
    }

    /// Decodes token ids; special tokens and unknown ids decode to nothing.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the tokenizer rejects the ids.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let theirs = |&id: &i64| match self.to_ours {
            Some(_) => self.to_theirs.get(&id).copied(),
            None => u32::try_from(id).ok(),
        };
        let ids: Vec<u32> = ids.iter().filter_map(theirs).collect();
        self.inner.decode(&ids, true).map_err(|e| Error::Input(format!("tokenizer: {e}")))
    }

    /// Returns the underlying tokenizer if its ids are ours.
    pub(crate) fn inner(&self) -> Option<&tokenizers::Tokenizer> {
        self.to_ours.is_none().then_some(&self.inner)
    }

    /// Returns the ids of the special tokens.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// Returns the size of the vocabulary: the highest id plus one.
    pub fn vocab_size(&self) -> i64 {
        self.vocab_size
    }

    /// Returns the SHA-256 of the source files, in hex. Equal fingerprints give equal ids.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Checks that the ids are those that an encoder expects.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn check(&self, features: &TokenEncoderConfig) -> Result<()> {
        for (key, own, expected) in [
            ("vocabulary", self.vocab_size, features.vocabulary),
            ("pad", self.special.pad, features.pad),
            ("mask", self.special.mask, features.mask),
        ] {
            if own != expected {
                let reason =
                    format!("is {expected}, the tokenizer has {own}; use the encoder's own");
                return Err(Error::config(format!("features.{key}"), reason));
            }
        }
        Ok(())
    }
}

/// Combines a model with GPT-2's byte-level pre-tokenizer and decoder.
fn byte_level(model: BPE) -> Bpe {
    let mut bpe = Bpe::new(model);
    let level = ByteLevel::new(false, true, true);
    bpe.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
    bpe
}

/// Encodes special tokens in texts as plain text, and turns off padding and truncation.
fn plain_text_only(mut inner: tokenizers::Tokenizer) -> tokenizers::Tokenizer {
    inner.set_encode_special_tokens(true);
    inner.with_padding(None);
    let _ = inner.with_truncation(None); // only enabling truncation can fail
    inner
}

/// Checks that letters have tokens; otherwise text would be lost silently.
fn check_letters(inner: &tokenizers::Tokenizer) -> std::result::Result<(), String> {
    let lost = |letter: &char| {
        let encoding = inner.encode_fast(letter.to_string(), false);
        encoding.map_or(true, |encoding| encoding.is_empty())
    };
    match ('!'..='~').chain(['é', '中', '🙂']).find(lost) {
        Some(letter) => {
            Err(format!("its vocabulary has no token for {letter:?}, nor for its bytes"))
        }
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(hash.finalize())
}
