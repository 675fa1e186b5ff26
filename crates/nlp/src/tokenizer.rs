//! Byte-level BPE: RoBERTa's, GPT-2's, or one trained on a corpus of one's own.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use data2vec_core::checkpoint::hex;
use data2vec_core::{Error, Result, guarded};
use sha2::{Digest, Sha256};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, TokenizerImpl};

use crate::{
    TokenEncoderConfig,
    dictionary::dictionary_ids,
    pieces::{PIECE, TRAINING_PIECE, pieces},
};

/// File name of a saved tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Special tokens that come before all others, in the order of their ids in fairseq's dictionaries.
const FIRST: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];
const MASK: &str = "<mask>";
/// Entries that a tokenizer may be trained to: four times the largest in use, and little memory.
const MOST_ENTRIES: usize = 1 << 20;

/// Beside an exported encoder: the fingerprint of the tokenizer that it was trained with.
pub(crate) const FINGERPRINT_FILE: &str = "tokenizer.sha256";
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
    /// `<s>`, first in every block.
    pub begin: i64,
    /// `<pad>`.
    pub pad: i64,
    /// `</s>`, after every sentence (line) of a document.
    pub end: i64,
    /// `<unk>`: bytes have no unknown ones, but a `dict.txt` may leave tokens out.
    pub unknown: i64,
    /// `<mask>`.
    pub mask: i64,
}

/// Text to token ids and back. Special tokens never come out of text, whatever it says.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// For GPT-2's files, which know no special tokens: their ids to ours.
    to_ours: Option<Vec<i64>>,
    to_theirs: HashMap<i64, u32>,
    special: SpecialIds,
    vocabulary: i64,
    fingerprint: String,
    /// GPT-2's files and their names; empty where `tokenizer.json` says it all.
    files: Vec<(&'static str, Vec<u8>)>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { special, vocabulary, fingerprint, .. } = self;
        write!(f, "Tokenizer {{ vocabulary: {vocabulary}, {special:?}, {fingerprint} }}")
    }
}

impl Tokenizer {
    /// Reads a tokenizer: a `tokenizer.json`, or a folder that holds one, or `vocab.json` and
    /// `merges.txt` (RoBERTa's), or `encoder.json` and `vocab.bpe` (GPT-2's; with fairseq's `dict.txt`
    /// beside them they give RoBERTa's ids, without it GPT-2's moved up by four).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if nothing of that kind is at `path`, or it is broken or lacks
    /// a special token.
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

    fn from_json(path: &Path, bytes: &[u8]) -> Result<Self> {
        let inner = guarded(path, || {
            let inner = tokenizers::Tokenizer::from_bytes(bytes);
            inner.map_err(|e| Error::file(path, format!("is not a tokenizer.json: {e}")))
        })?;
        Self::with_own_specials(inner, &[bytes]).map_err(|missing| Error::file(path, missing))
    }

    fn from_parts(vocabulary: &Path, merges: &Path, dictionary: Option<&Path>) -> Result<Self> {
        let (vocabulary_bytes, merges_bytes) = (read(vocabulary)?, read(merges)?);
        let [v, m] = [vocabulary, merges].map(|p| p.to_string_lossy());
        let model = BPE::from_file(&v, &m).build().map_err(|e| {
            Error::file(vocabulary, format!("does not go with {}: {e}", merges.display()))
        })?;
        let inner = byte_level(model).into();
        if dictionary.is_none()
            && let Ok(own) = Self::with_own_specials(inner, &[&vocabulary_bytes, &merges_bytes])
        {
            return Ok(own);
        }
        let model = BPE::from_file(&v, &m).build();
        let model = model.map_err(|e| Error::file(vocabulary, e.to_string()))?;
        let inner = quiet(byte_level(model).into());
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
            special: SpecialIds { begin: 0, pad: 1, end: 2, unknown: 3, mask },
            vocabulary: mask + 1,
            fingerprint: fingerprint(&[&vocabulary_bytes, &merges_bytes, &dictionary_bytes]),
            files: [("encoder.json", vocabulary_bytes), ("vocab.bpe", merges_bytes)]
                .into_iter()
                .chain(dictionary.map(|_| ("dict.txt", dictionary_bytes)))
                .collect(),
        })
    }

    /// A tokenizer whose vocabulary holds the special tokens, or which of them it lacks.
    fn with_own_specials(
        inner: tokenizers::Tokenizer,
        bytes: &[&[u8]],
    ) -> std::result::Result<Self, String> {
        let id = |token: &str| {
            let id = inner.token_to_id(token).map(i64::from);
            id.ok_or_else(|| format!("its vocabulary has no {token}"))
        };
        let (begin, pad, end, mask) = (id(FIRST[0])?, id(FIRST[1])?, id(FIRST[2])?, id(MASK)?);
        let unknown = id(FIRST[3]).unwrap_or(end); // never needed: every byte has a token
        let inner = quiet(inner);
        check_letters(&inner)?;
        let highest = inner.get_vocab(true).into_values().max().map_or(0, i64::from);
        Ok(Self {
            special: SpecialIds { begin, pad, end, unknown, mask },
            inner,
            to_ours: None,
            to_theirs: HashMap::new(),
            vocabulary: highest + 1,
            fingerprint: fingerprint(bytes),
            files: Vec::new(),
        })
    }

    /// Trains a byte-level BPE of exactly `vocabulary` entries on `texts`: the special tokens with
    /// fairseq's ids (`<mask>` last), the 256 bytes, and merges. The same texts give the same one.
    ///
    /// # Errors
    /// [`Error::Input`] if the texts have too little in them for so many entries.
    pub fn train<S: AsRef<str> + Send>(
        texts: impl Iterator<Item = S> + Send,
        vocabulary: usize,
    ) -> Result<Self> {
        let least = 256 + FIRST.len() + 1;
        if vocabulary < least {
            return Err(Error::Input(format!(
                "{vocabulary} entries are too few, {least} at least"
            )));
        }
        if vocabulary > MOST_ENTRIES {
            return Err(Error::Input(format!(
                "{vocabulary} entries are too many, {MOST_ENTRIES} at most"
            )));
        }
        let special = |token: &&str| AddedToken::from(*token, true);
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary - 1)
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
        let trained = Self::with_own_specials(inner, &[json.as_bytes()]).map_err(Error::Input)?;
        if trained.vocabulary != vocabulary as i64 {
            return Err(Error::Input(format!(
                "the texts give {} entries, not {vocabulary}: ask for at most that many, or add text",
                trained.vocabulary
            )));
        }
        Ok(trained)
    }

    /// Writes it to the folder `dir` so that [`load`](Self::load) finds it there: as `tokenizer.json`,
    /// or as the files of GPT-2 that it came from.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        if self.files.is_empty() {
            return self.save_json(dir.join(TOKENIZER_FILE));
        }
        self.files.iter().try_for_each(|(name, bytes)| write(&dir.join(name), bytes))
    }

    /// Writes it to the folder of an exported encoder, with its fingerprint: another one in its place
    /// is then noticed.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written, and as [`load`](Self::load).
    pub fn save_with_encoder(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        self.save(dir)?;
        // Of the files as they are there: they may say the same in other words.
        let written = Self::load(dir)?;
        write(&dir.join(FINGERPRINT_FILE), written.fingerprint.as_bytes())
    }

    /// Writes it to one file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, [`Error::File`] for one that came from GPT-2's files,
    /// which have no such form: use [`save`](Self::save).
    pub fn save_json(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if self.to_ours.is_some() {
            let reason = "a tokenizer of encoder.json and vocab.bpe does not fit into one file";
            return Err(Error::file(path, reason));
        }
        let json = self.inner.to_string(true).map_err(|e| Error::file(path, e.to_string()))?;
        write(path, json.as_bytes())
    }

    /// Token ids of a text, without `<s>` and `</s>`.
    ///
    /// # Errors
    /// [`Error::Input`] if the tokenizer refuses the text.
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

    /// The text of token ids; special tokens and unknown ids leave nothing.
    ///
    /// # Errors
    /// [`Error::Input`] if the tokenizer refuses the ids.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let theirs = |&id: &i64| match self.to_ours {
            Some(_) => self.to_theirs.get(&id).copied(),
            None => u32::try_from(id).ok(),
        };
        let ids: Vec<u32> = ids.iter().filter_map(theirs).collect();
        self.inner.decode(&ids, true).map_err(|e| Error::Input(format!("tokenizer: {e}")))
    }

    /// What encodes, if its ids are ours.
    pub(crate) fn inner(&self) -> Option<&tokenizers::Tokenizer> {
        self.to_ours.is_none().then_some(&self.inner)
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// Entries of the vocabulary: the highest id and one.
    pub fn vocabulary(&self) -> i64 {
        self.vocabulary
    }

    /// SHA-256 of what it was read from, in hex: two with the same one give the same ids.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether its ids are those that an encoder expects.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key of the encoder's settings.
    pub fn check(&self, features: &TokenEncoderConfig) -> Result<()> {
        for (key, mine, theirs) in [
            ("vocabulary", self.vocabulary, features.vocabulary),
            ("pad", self.special.pad, features.pad),
            ("mask", self.special.mask, features.mask),
        ] {
            if mine != theirs {
                let reason = format!("is {theirs}, the tokenizer has {mine}: they do not fit");
                return Err(Error::config(format!("features.{key}"), reason));
            }
        }
        Ok(())
    }
}

/// GPT-2's splitting into words and bytes around a model.
fn byte_level(model: BPE) -> Bpe {
    let mut bpe = Bpe::new(model);
    let level = ByteLevel::new(false, true, true);
    bpe.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
    bpe
}

/// Text that looks like a special token is text, and nothing is cut off or filled up.
fn quiet(mut inner: tokenizers::Tokenizer) -> tokenizers::Tokenizer {
    inner.set_encode_special_tokens(true);
    inner.with_padding(None);
    let _ = inner.with_truncation(None); // fails for a truncation alone
    inner
}

/// Whether letters have tokens: where they have not, text would vanish without a word.
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

/// Whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&draft, bytes)
        .and_then(|()| std::fs::rename(&draft, path))
        .map_err(|e| Error::io(path, e))
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
