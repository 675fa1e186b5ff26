//! The trait that a modality implements: from raw signal to tokens with positions.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use tch::{Tensor, nn};

use crate::data::batch::{Batch, Tokens};
use crate::error::{Error, Result};
use crate::method::mask::Mask;
use crate::model::nn::Init;
use crate::model::transformer::TransformerConfig;

/// What `target.source = "input"` predicts for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputTarget {
    /// This many numbers, by regression.
    Values(i64),
    /// One of this many classes, by cross-entropy.
    Classes(i64),
}

impl InputTarget {
    /// Number of outputs of a decoder that predicts it (P).
    pub fn width(self) -> i64 {
        match self {
            Self::Values(width) | Self::Classes(width) => width,
        }
    }
}

/// Embeds raw signal as tokens and adds positions to them.
///
/// All modalities and both versions share one order: *embed → mask → add positions → blocks*.
///
/// # For implementors
/// Create every variable that [`embed`](Self::embed) reads below `path / "embed"` and all others
/// below `path / "positions"`: the teacher averages or copies variables by these two prefixes.
/// Variable names are part of the checkpoint format. Apply dropout only if `train` is true.
pub trait FeatureEncoder: Debug + Send + Sized {
    /// Name in an exported `encoder.toml`; loading a file with another name is an error.
    const NAME: &'static str;

    /// Initialisation of the linear layers of a decoder on these features.
    const DECODER_INIT: Init = Init::Torch;

    /// Prefixes, below the feature encoder's path, of the front-end variables (those that read the
    /// raw signal), which fine-tuning can freeze.
    const FRONT_END_PREFIXES: &'static [&'static str] = &["embed."];

    /// Settings in a recipe and in `encoder.toml`.
    type Config: Clone + Debug + PartialEq + Serialize + DeserializeOwned;

    /// Checks the settings before anything is built.
    ///
    /// # Errors
    /// Returns [`crate::Error::Config`] naming the invalid key.
    fn validate(config: &Self::Config, transformer: &TransformerConfig) -> Result<()>;

    /// Creates the variables below `path`. The caller has passed `config` to
    /// [`validate`](Self::validate).
    fn new(path: &nn::Path, config: &Self::Config, transformer: &TransformerConfig) -> Self;

    /// Maps raw signal to one vector per token, before masking and without positions.
    ///
    /// # Errors
    /// Returns [`crate::Error::Input`] if the batch is of another modality or shorter than one
    /// token.
    fn embed(&self, batch: &Batch, train: bool) -> Result<Tokens>;

    /// Returns the tokens with positions added, `(B, T, D)`, as input of the transformer.
    ///
    /// # Errors
    /// Returns an error if there is no position for a token or an operation fails.
    fn add_positions(&self, tokens: &Tokens, train: bool) -> Result<Tensor>;

    /// Returns biases of the attention scores (ALiBi, relative positions) among prefix and
    /// `tokens`.
    ///
    /// `ids_keep` `(B, K)` i64 are the indices of the kept tokens, if some were dropped; prefix
    /// tokens come first and are always kept. Returns no bias, one for all blocks, or one per
    /// block: `(1 or H, P+T, P+T)`, or `(B, 1 or H, P+K, P+K)` with `ids_keep`.
    fn attention_bias(&self, tokens: &Tokens, ids_keep: Option<&Tensor>) -> Vec<Tensor> {
        let _ = (tokens, ids_keep);
        Vec::new()
    }

    /// Returns what can be predicted of the input; `None`: these features do not support it.
    fn input_target(_config: &Self::Config) -> Option<InputTarget> {
        None
    }

    /// Returns the target of each token, computed from the input: `(B, T, P)` f32 of
    /// [`InputTarget::Values`], or ids `(B, T, 1)` i64 of [`InputTarget::Classes`]. Called only if
    /// [`input_target`](Self::input_target) returns some.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn input_values(&self, _batch: &Batch) -> Result<Tensor> {
        Err(Error::Input(format!("`{}` features cannot be predicted", Self::NAME)))
    }

    /// Edits the settings and the encoder's `tensors` (by name) before a model of `depth` blocks is
    /// built from them for fine-tuning, e.g. one relative position bias per block.
    fn adapt_for_finetuning(
        _config: &mut Self::Config,
        _depth: usize,
        _tensors: &mut BTreeMap<String, Tensor>,
    ) {
    }

    /// Returns the learned tokens prepended to each sequence, `(P, D)`.
    fn prefix(&self) -> Option<Tensor> {
        None
    }

    /// Returns the features' own mask token `(D)`; `None` if the model learns a separate one.
    fn mask_token(&self) -> Option<Tensor> {
        None
    }

    /// Shows other tokens at the places that `mask` substitutes (BERT's random words): maps
    /// `tokens` `(B, T, D)` to `(B, T, D)`. The default suits features without a vocabulary.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the mask substitutes tokens and the features cannot.
    fn substitute(&self, tokens: Tokens, mask: &Mask) -> Result<Tokens> {
        match mask.substitutes() {
            [] => Ok(tokens),
            all => Err(Error::Input(format!(
                "the mask substitutes {} tokens, but `{}` features have no vocabulary",
                all.len(),
                Self::NAME
            ))),
        }
    }
}
