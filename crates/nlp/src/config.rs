//! Settings of the encoder, of pretraining data and of fine-tuning data.
//!
//! Each `Default` is the published value of data2vec 2.0 Base.

use std::path::PathBuf;

use data2vec_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Smallest number of tokens of a labelled example: the four special tokens of a pair, and a token
/// of each text.
const MIN_TOKENS: usize = 6;

/// Vocabulary and sizes of a [`TokenEncoder`](crate::TokenEncoder).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEncoderConfig {
    /// Size of the vocabulary, special tokens included.
    pub vocabulary: i64,
    /// Maximum number of tokens of a sequence: 512 in all published models.
    pub max_tokens: i64,
    /// Id of `<pad>`.
    pub pad: i64,
    /// Id of `<mask>`, whose embedding replaces masked tokens in data2vec 1.0.
    pub mask: i64,
    /// Dropout of the embeddings, after positions and layer norm.
    pub dropout: f64,
    /// Epsilon of the embeddings' layer norm.
    pub norm_eps: f64,
    /// Adds positions, layer norm and dropout before masking (2.0), so that all masks of a text and
    /// the teacher share one dropout sample; otherwise after masking (1.0).
    pub early_positions: bool,
}

impl Default for TokenEncoderConfig {
    fn default() -> Self {
        Self {
            vocabulary: 50_265,
            max_tokens: 512,
            pad: 1,
            mask: 50_264,
            dropout: 0.1,
            norm_eps: 1e-5,
            early_positions: true,
        }
    }
}

impl TokenEncoderConfig {
    /// Checks all settings that do not depend on the transformer.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, reason: String| Err(Error::config(format!("features.{key}"), reason));
        if self.vocabulary < 1 {
            return bad("vocabulary", format!("must be at least 1, not {}", self.vocabulary));
        }
        if self.max_tokens < 1 {
            return bad("max_tokens", format!("must be at least 1, not {}", self.max_tokens));
        }
        for (key, id) in [("pad", self.pad), ("mask", self.mask)] {
            if !(0..self.vocabulary).contains(&id) {
                let reason = format!("id {id} is outside the vocabulary, 0..{}", self.vocabulary);
                return bad(key, reason);
            }
        }
        if self.pad == self.mask {
            return bad("mask", format!("must differ from features.pad = {}", self.pad));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", format!("must be in [0, 1), not {}", self.dropout));
        }
        if !(self.norm_eps > 0.0) {
            return bad("norm_eps", format!("must be above 0, not {}", self.norm_eps));
        }
        Ok(())
    }
}

/// Source of a recipe's tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerSource {
    /// A file or directory, see [`Tokenizer::load`](crate::Tokenizer::load).
    File(PathBuf),
    /// Trained on the corpus, with this vocabulary size.
    Train(usize),
}

/// Reading, tokenization and packing of pretraining texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextDataConfig {
    /// `{ file = "PATH" }`, or `{ train = ENTRIES }` to train one on the corpus.
    pub tokenizer: TokenizerSource,
    /// Number of tokens of a block, `<s>` included: 512 in all published models.
    pub block: usize,
    /// How blocks are filled.
    pub packing: Packing,
    /// What ends a document in plain text.
    pub documents: Documents,
    /// Key of the text in JSON lines.
    pub json_key: String,
    /// How bytes that are not UTF-8 are handled.
    pub invalid_utf8: InvalidUtf8,
}

impl Default for TextDataConfig {
    fn default() -> Self {
        Self {
            tokenizer: TokenizerSource::File("data/tokenizers/roberta".into()),
            block: 512,
            packing: Packing::Stream,
            documents: Documents::BlankLine,
            json_key: "text".into(),
            invalid_utf8: InvalidUtf8::Replace,
        }
    }
}

impl TextDataConfig {
    /// Returns settings for reading files without a recipe: one document per file, and an error for
    /// bytes that are not UTF-8.
    pub fn strict() -> Self {
        Self {
            tokenizer: TokenizerSource::Train(8192),
            documents: Documents::File,
            invalid_utf8: InvalidUtf8::Refuse,
            ..Self::default()
        }
    }

    /// Checks all settings that do not depend on the data.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        if self.block < 2 {
            let reason = format!("must be at least 2 tokens, <s> included, not {}", self.block);
            return Err(Error::config("data.block", reason));
        }
        Ok(())
    }

    /// Checks that blocks are not longer than an encoder's sequences.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate_for(&self, features: &TokenEncoderConfig) -> Result<()> {
        check_max_tokens("data.block", self.block, features)
    }
}

/// How blocks are filled. Each begins with `<s>`; `</s>` follows each line of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Across lines and documents, without gaps; a second `</s>` ends a document (2.0; fairseq's
    /// `none`).
    Stream,
    /// Each document starts a new block; only its last block may be short.
    Document,
    /// Like `Document`, but with complete lines; lines longer than a block are cut (1.0; fairseq's
    /// `complete_doc`).
    Lines,
}

/// What ends a document in plain text. In JSON lines each object is one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    /// The end of the file.
    File,
    /// A blank line, as in fairseq's corpora.
    BlankLine,
    /// The end of the line.
    Line,
}

/// How bytes that are not UTF-8 are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvalidUtf8 {
    /// Replaces them by `U+FFFD` and counts them.
    Replace,
    /// Returns an error.
    Refuse,
}

/// Tokenization of labelled texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledTextConfig {
    /// Maximum number of tokens of an example, special tokens included: 512 in all published
    /// models. Longer examples are truncated, the longer text of a pair first.
    pub max_tokens: usize,
}

impl Default for LabelledTextConfig {
    fn default() -> Self {
        Self { max_tokens: 512 }
    }
}

impl LabelledTextConfig {
    /// Checks all settings that do not depend on the data.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        if self.max_tokens < MIN_TOKENS {
            let reason = format!("must be at least {MIN_TOKENS}, not {}", self.max_tokens);
            return Err(Error::config("data.max_tokens", reason));
        }
        Ok(())
    }

    /// Checks that examples are not longer than an encoder's sequences.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the key.
    pub fn validate_for(&self, features: &TokenEncoderConfig) -> Result<()> {
        check_max_tokens("data.max_tokens", self.max_tokens, features)
    }
}

fn check_max_tokens(key: &str, tokens: usize, features: &TokenEncoderConfig) -> Result<()> {
    let max = features.max_tokens;
    if tokens as i64 > max {
        let reason = format!("must be at most features.max_tokens = {max}, not {tokens}");
        return Err(Error::config(key, reason));
    }
    Ok(())
}
