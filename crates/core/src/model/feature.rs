//! The part of the network that a modality brings.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use tch::{Tensor, nn};

use crate::nn::Init;
use crate::{Batch, Error, Result, Tokens, TransformerConfig};

/// Raw signal to tokens, and tokens to positions.
///
/// One order serves all modalities and both versions: *embed → hide → add positions → blocks*.
///
/// # For implementors
/// Everything that [`embed`](Self::embed) reads lives below `path / "embed"`, all else below
/// `path / "positions"`: the teacher averages or copies by these two prefixes. Variable names are
/// the checkpoint format. Dropout is allowed only where `train` is true.
pub trait FeatureEncoder: Debug + Send + Sized {
    /// What an exported encoder calls it, so that another kind's file is told apart.
    const NAME: &'static str;

    /// How a decoder's linear maps start.
    const DECODER_INIT: Init = Init::Torch;

    /// Prefixes of the variables, below the feature encoder's own path, that look at the raw signal
    /// first: fine-tuning may leave them as pretraining made them.
    const FRONT_END_PREFIXES: &'static [&'static str] = &["embed."];

    /// What a recipe says of it.
    type Config: Clone + Debug + PartialEq + Serialize + DeserializeOwned;

    /// Checks what can be checked before anything is built.
    ///
    /// # Errors
    /// [`crate::Error::Config`] that names the impossible key.
    fn validate(config: &Self::Config, transformer: &TransformerConfig) -> Result<()>;

    /// Creates the variables below `path`. `config` has passed [`validate`](Self::validate).
    fn new(path: &nn::Path, config: &Self::Config, transformer: &TransformerConfig) -> Self;

    /// Raw signal to one vector a token. Sees no mask, adds no position.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if the batch is not of this modality or too short for one token.
    fn embed(&self, batch: &Batch, train: bool) -> Result<Tokens>;

    /// `(B, T, D)`: the tokens with their positions, ready for the transformer.
    fn add_positions(&self, tokens: &Tokens, train: bool) -> Tensor;

    /// What is added to the attention scores (ALiBi, relative positions) among prefix and `tokens`.
    ///
    /// `ids_keep` `(B, K)` i64 names the tokens that are present, when some were dropped; the prefix
    /// always is, and comes first. Returns nothing, one for all blocks, or one for each: `(1 or H, P+T, P+T)`,
    /// or `(B, 1 or H, P+K, P+K)` for kept tokens.
    fn attention_bias(&self, tokens: &Tokens, ids_keep: Option<&Tensor>) -> Vec<Tensor> {
        let _ = (tokens, ids_keep);
        Vec::new()
    }

    /// Where fine-tuning starts from something else than pretraining left behind: changes the settings, and
    /// the encoder's `tensors` by name, before a model of `depth` blocks is made of them.
    fn adapt_for_finetuning(
        _config: &mut Self::Config,
        _depth: usize,
        _tensors: &mut BTreeMap<String, Tensor>,
    ) {
    }

    /// Learned tokens set before the sequence, `(P, D)`.
    fn prefix(&self) -> Option<Tensor> {
        None
    }

    /// `(D)`: what stands in the places of hidden tokens when they are replaced, if the features have
    /// such a token of their own; `None`: one is learned beside them.
    fn mask_token(&self) -> Option<Tensor> {
        None
    }

    /// `(N, D)`: the tokens that [`embed`](Self::embed) makes of the entries `ids` of a vocabulary,
    /// for masks that show other tokens in some places.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no vocabulary, or no such entry.
    fn entries(&self, ids: &[i64]) -> Result<Tensor> {
        let reason =
            format!("the mask shows {} other tokens, `{}` has none", ids.len(), Self::NAME);
        Err(Error::Input(reason))
    }
}
