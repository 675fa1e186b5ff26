//! Feature encoder of text: word embedding and learned positions.

use data2vec_core::data::batch::upload;
use data2vec_core::model::nn::{Init, LayerNorm, dropout};
use data2vec_core::{
    Batch, Error, FeatureEncoder, InputTarget, Mask, Result, Substitute, Tokens, TransformerConfig,
};
use tch::{Device, Kind, Tensor, nn};

use crate::config::TokenEncoderConfig;

/// Index of the first token's position: fairseq reserves row 0, and row 1 for padding. The table
/// keeps both rows, so that published weights fit.
const FIRST_POSITION: i64 = 2;

/// Embeds token ids by a word embedding, learned positions, layer norm and dropout.
///
/// Sequences may be shorter than `max_tokens`, not longer.
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
    /// Linear layers of text models start as BERT's do; convolutions do not.
    const DECODER_INIT: Init = Init::Bert;
    type Config = TokenEncoderConfig;

    fn validate(config: &Self::Config, _transformer: &TransformerConfig) -> Result<()> {
        config.validate()
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
        self.check_ids(&batch.inputs)?;
        // (B, T, D)
        let x = Tensor::embedding(&self.words, &batch.inputs, self.config.pad, false, false);
        let tokens = Tokens::new(x, batch.lengths().map(<[i64]>::to_vec));
        Ok(match self.config.early_positions {
            true => tokens.with_x(self.with_positions(&tokens, train)?),
            false => tokens,
        })
    }

    fn input_target(config: &Self::Config) -> Option<InputTarget> {
        Some(InputTarget::Classes(config.vocabulary))
    }

    /// Returns the token ids.
    fn input_values(&self, batch: &Batch) -> Result<Tensor> {
        self.check_ids(&batch.inputs)?;
        Ok(batch.inputs.unsqueeze(-1)) // (B, T, 1)
    }

    fn add_positions(&self, tokens: &Tokens, train: bool) -> Result<Tensor> {
        Ok(match self.config.early_positions {
            true => tokens.x.shallow_clone(),
            false => self.with_positions(tokens, train)?,
        })
    }

    fn mask_token(&self) -> Option<Tensor> {
        // With early positions, tokens already contain positions, which the word lacks.
        (!self.config.early_positions).then(|| self.words.get(self.config.mask))
    }

    fn substitute(&self, tokens: Tokens, mask: &Mask) -> Result<Tokens> {
        let all = mask.substitutes();
        if all.is_empty() {
            return Ok(tokens);
        }
        if self.config.early_positions {
            let reason = "a mask can substitute tokens only if features.early_positions is false";
            return Err(Error::Input(reason.into()));
        }
        let ids: Vec<i64> = all.iter().map(|s| s.id).collect();
        let vocabulary = self.config.vocabulary;
        if let Some(id) = ids.iter().find(|id| !(0..vocabulary).contains(id)) {
            let reason = format!(
                "the mask substitutes token id {id}, outside 0..{vocabulary} (features.vocabulary)"
            );
            return Err(Error::Input(reason));
        }
        let index = |s: &Substitute| s.row as i64 * tokens.num_tokens() + s.token as i64;
        let [index, ids] = [all.iter().map(index).collect(), ids]
            .map(|x: Vec<i64>| upload(&Tensor::from_slice(&x), tokens.x.device()));
        let words = self.words.index_select(0, &ids); // (N, D)
        let x = tokens.x.flatten(0, 1).index_copy(0, &index, &words); // (B·T, D)
        Ok(tokens.with_x(x.reshape(tokens.x.size())))
    }
}

impl TokenEncoder {
    /// Returns tokens `(B, T, D)` with positions, layer norm and dropout; zero at padding.
    fn with_positions(&self, tokens: &Tokens, train: bool) -> Result<Tensor> {
        let positions = self.positions.f_narrow(0, FIRST_POSITION, tokens.num_tokens())?; // (T, D)
        let x = self.norm.forward(&(&tokens.x + positions));
        let x = dropout(&x, self.config.dropout, train);
        Ok(tokens.zero_padding(&x))
    }

    /// Checks shape, length and range of token ids.
    fn check_ids(&self, ids: &Tensor) -> Result<()> {
        let (size, kind) = (ids.size(), ids.kind());
        if size.len() != 2 || kind != Kind::Int64 {
            return Err(Error::Input(format!(
                "token ids must be (B, T) of Int64, not {size:?} of {kind:?}"
            )));
        }
        let max = self.config.max_tokens;
        if size[1] > max {
            let reason = format!("{} tokens exceed features.max_tokens = {max}", size[1]);
            return Err(Error::Input(reason));
        }
        // Reading from a GPU would stall the step; datasets check their tokenizer instead.
        if ids.device() == Device::Cpu {
            let (low, high) = (ids.min().int64_value(&[]), ids.max().int64_value(&[]));
            let vocabulary = self.config.vocabulary;
            if low < 0 || high >= vocabulary {
                let id = if low < 0 { low } else { high };
                return Err(Error::Input(format!(
                    "token id {id} is outside 0..{vocabulary} (features.vocabulary); use the \
                     tokenizer of the encoder"
                )));
            }
        }
        Ok(())
    }
}
