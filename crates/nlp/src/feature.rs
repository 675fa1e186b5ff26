//! Token ids to vectors, and the positions of these vectors.

use data2vec_core::nn::{Init, LayerNorm, dropout};
use data2vec_core::{Batch, Error, FeatureEncoder, Result, Tokens, TransformerConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

/// fairseq counts positions from 2: 1 is the position of padding, and 0 is never used. The table has
/// rows for both, so that published weights fit.
const FIRST_POSITION: i64 = 2;

/// Sizes of a [`TokenEncoder`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEncoderConfig {
    /// Entries of the vocabulary, special ones included.
    pub vocabulary: i64,
    /// Most tokens in a row: 512 in all of data2vec.
    pub max_tokens: i64,
    /// Id of `<pad>`.
    pub pad: i64,
    /// Id of `<mask>`, whose embedding stands in hidden tokens' places when they are replaced.
    pub mask: i64,
    /// Dropout of embeddings with their positions.
    pub dropout: f64,
    /// Epsilon of their layer norm.
    pub norm_eps: f64,
    /// Positions, norm and dropout belong to the tokens (2.0): all masks of a text, and the teacher,
    /// see the same sample of dropout. Otherwise they come after hiding (1.0).
    pub early_positions: bool,
}

/// Word embedding, learned positions, layer norm and dropout.
#[derive(Debug)]
pub struct TokenEncoder {
    /// `(vocabulary, D)`
    words: Tensor,
    /// `(max_tokens + 2, D)`
    positions: Tensor,
    norm: LayerNorm,
    config: TokenEncoderConfig,
}

impl FeatureEncoder for TokenEncoder {
    const NAME: &'static str = "token";
    /// BERT's, for all that text models learn but convolutions.
    const DECODER_INIT: Init = Init::Bert;
    type Config = TokenEncoderConfig;

    fn validate(config: &Self::Config, _transformer: &TransformerConfig) -> Result<()> {
        let bad = |key: &str, reason: String| Err(Error::config(format!("features.{key}"), reason));
        if config.vocabulary < 1 {
            return bad("vocabulary", format!("{} is below 1", config.vocabulary));
        }
        if config.max_tokens < 1 {
            return bad("max_tokens", format!("{} is below 1", config.max_tokens));
        }
        for (key, id) in [("pad", config.pad), ("mask", config.mask)] {
            if !(0..config.vocabulary).contains(&id) {
                let reason = format!("{id} is outside 0..{}, the vocabulary", config.vocabulary);
                return bad(key, reason);
            }
        }
        if config.pad == config.mask {
            return bad("mask", format!("{} is `<pad>`, too", config.mask));
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return bad("dropout", format!("{} is not a probability below 1", config.dropout));
        }
        if !(config.norm_eps > 0.0) {
            return bad("norm_eps", format!("{} is not above 0", config.norm_eps));
        }
        Ok(())
    }

    fn new(path: &nn::Path, config: &Self::Config, transformer: &TransformerConfig) -> Self {
        let (embed, positions) = (path / "embed", path / "positions");
        let table = |path: &nn::Path, name: &str, rows: i64, zero: i64| {
            let init = nn::Init::Randn { mean: 0.0, stdev: 0.02 };
            let table = path.var(name, &[rows, transformer.dim], init);
            let _ = tch::no_grad(|| table.select(0, zero).fill_(0.0));
            table
        };
        let rows = config.max_tokens + FIRST_POSITION;
        Self {
            words: table(&embed, "words", config.vocabulary, config.pad),
            positions: table(&positions, "table", rows, FIRST_POSITION - 1),
            norm: LayerNorm::new(&(&positions / "norm"), transformer.dim, config.norm_eps),
            config: config.clone(),
        }
    }

    fn embed(&self, batch: &Batch, train: bool) -> Result<Tokens> {
        self.check(&batch.inputs)?;
        let x = Tensor::embedding(&self.words, &batch.inputs, self.config.pad, false, false); // (B, T, D)
        let tokens = Tokens::new(x, batch.lengths().map(<[i64]>::to_vec));
        Ok(match self.config.early_positions {
            true => tokens.with(self.positioned(&tokens, train)),
            false => tokens,
        })
    }

    fn add_positions(&self, tokens: &Tokens, train: bool) -> Tensor {
        match self.config.early_positions {
            true => tokens.x.shallow_clone(),
            false => self.positioned(tokens, train),
        }
    }

    fn mask_token(&self) -> Option<Tensor> {
        // A vector with a position in it cannot be replaced by one without.
        (!self.config.early_positions).then(|| self.words.get(self.config.mask))
    }

    fn entries(&self, ids: &[i64]) -> Result<Tensor> {
        if self.config.early_positions {
            let reason = "other tokens can be shown only where features.early_positions is false";
            return Err(Error::Input(reason.into()));
        }
        let vocabulary = self.config.vocabulary;
        if let Some(id) = ids.iter().find(|id| !(0..vocabulary).contains(id)) {
            let reason = format!("the mask shows token {id}, features.vocabulary is {vocabulary}");
            return Err(Error::Input(reason));
        }
        let ids = Tensor::from_slice(ids).to_device(self.words.device());
        Ok(self.words.index_select(0, &ids)) // (N, D)
    }
}

impl TokenEncoder {
    /// `(B, T, D)`: with positions, normalised, zero at padding.
    fn positioned(&self, tokens: &Tokens, train: bool) -> Tensor {
        let positions = self.positions.narrow(0, FIRST_POSITION, tokens.num_tokens()); // (T, D)
        let x = self.norm.forward(&(&tokens.x + positions));
        let x = dropout(&x, self.config.dropout, train);
        tokens.zero_padding(&x)
    }

    fn check(&self, ids: &Tensor) -> Result<()> {
        let (size, kind) = (ids.size(), ids.kind());
        if size.len() != 2 || kind != Kind::Int64 {
            return Err(Error::Input(format!(
                "text is (sequences, tokens) of 64-bit token ids, not {size:?} of {kind:?}"
            )));
        }
        let max = self.config.max_tokens;
        if size[1] > max {
            let reason = format!("{} tokens in a row, features.max_tokens is {max}", size[1]);
            return Err(Error::Input(reason));
        }
        // On a GPU looking would make the step wait; data sets check their tokenizer instead.
        if ids.device() == Device::Cpu {
            let (low, high) = (ids.min().int64_value(&[]), ids.max().int64_value(&[]));
            let vocabulary = self.config.vocabulary;
            if low < 0 || high >= vocabulary {
                let id = if low < 0 { low } else { high };
                return Err(Error::Input(format!(
                    "token id {id} is outside 0..{vocabulary}, features.vocabulary: text and \
                     encoder need the same tokenizer"
                )));
            }
        }
        Ok(())
    }
}
