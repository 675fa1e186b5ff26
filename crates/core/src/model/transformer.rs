//! The transformer that student and teacher share.

mod block;

use rand::{RngExt, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use crate::model::nn::{Init, LayerNorm, dropout};
use crate::{Error, Result};
use block::Block;

/// Position of the layer norms in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormPlacement {
    /// After each residual sum, as in BERT; all data2vec models except images in 1.0.
    Post,
    /// Before attention and MLP, as in ViT.
    Pre,
}

/// Weight initialisation of a transformer, its decoder and its mask token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightInit {
    /// N(0, 0.02²), as in fairseq; mask tokens U(0, 1).
    #[default]
    Bert,
    /// N(0, 0.02²) truncated at ±0.02, also for mask tokens. The last linear layer of both branches
    /// of block i (from 1) is divided by √(2i), to bound the sum of all branches.
    Beit,
}

impl WeightInit {
    /// Returns the initialisation of linear layers.
    pub fn linear(self) -> Init {
        match self {
            Self::Bert => Init::Bert,
            Self::Beit => Init::Beit,
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Sizes and regularisation of a [`Transformer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Width (D).
    pub dim: i64,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads (H); divides `dim`.
    pub heads: i64,
    /// Ratio of the hidden width of the MLP to `dim`.
    pub mlp_ratio: f64,
    /// Position of the layer norms.
    pub norm: NormPlacement,
    /// Epsilon of all layer norms in the blocks.
    pub norm_eps: f64,
    /// Whether a layer norm precedes the first block.
    pub input_norm: bool,
    /// Weight initialisation; absent: `bert`.
    #[serde(default, skip_serializing_if = "WeightInit::is_default")]
    pub init: WeightInit,
    /// Initial factor of each residual branch (LayerScale); absent: no LayerScale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_scale: Option<f64>,
    /// Dropout before the first block.
    pub input_dropout: f64,
    /// Dropout of both residual branches.
    pub dropout: f64,
    /// Dropout of attention weights.
    pub attention_dropout: f64,
    /// Dropout after the MLP's activation.
    pub activation_dropout: f64,
    /// Probability that a block is skipped in a training step (LayerDrop).
    pub layer_drop: f64,
    /// Probability that a row skips a residual branch of the last block; rises linearly from 0 at
    /// the first block (drop path).
    pub drop_path: f64,
}

impl TransformerConfig {
    /// Returns a post-norm transformer without any dropout; `hidden` is the width of the MLP.
    pub fn without_dropout(dim: i64, depth: usize, heads: i64, hidden: i64) -> Self {
        Self {
            dim,
            depth,
            heads,
            mlp_ratio: hidden as f64 / dim as f64,
            norm: NormPlacement::Post,
            norm_eps: 1e-5,
            input_norm: false,
            init: WeightInit::Bert,
            layer_scale: None,
            input_dropout: 0.0,
            dropout: 0.0,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            layer_drop: 0.0,
            drop_path: 0.0,
        }
    }
}

/// The transformer of 2.0 Base for speech.
impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            dim: 768,
            depth: 12,
            heads: 12,
            mlp_ratio: 4.0,
            norm: NormPlacement::Post,
            norm_eps: 1e-5,
            input_norm: true,
            init: WeightInit::Bert,
            layer_scale: None,
            input_dropout: 0.1,
            dropout: 0.1,
            attention_dropout: 0.1,
            activation_dropout: 0.0,
            layer_drop: 0.05,
            drop_path: 0.0,
        }
    }
}

impl TransformerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        let bad =
            |key: &str, reason: String| Err(Error::config(format!("transformer.{key}"), reason));
        if self.dim < 1 {
            return bad("dim", format!("must be a multiple of `heads` above 0, not {}", self.dim));
        }
        if self.heads < 1 || self.dim % self.heads != 0 {
            return bad("heads", format!("{} does not divide dim = {}", self.heads, self.dim));
        }
        if self.depth < 1 {
            return bad("depth", "must be at least 1".into());
        }
        if !(self.mlp_ratio > 0.0 && (self.dim as f64 * self.mlp_ratio) >= 1.0) {
            return bad("mlp_ratio", format!("{} gives an MLP of width 0", self.mlp_ratio));
        }
        if !(self.norm_eps > 0.0) {
            return bad("norm_eps", format!("must be above 0, not {}", self.norm_eps));
        }
        for (key, p) in [
            ("input_dropout", self.input_dropout),
            ("dropout", self.dropout),
            ("attention_dropout", self.attention_dropout),
            ("activation_dropout", self.activation_dropout),
            ("layer_drop", self.layer_drop),
            ("drop_path", self.drop_path),
        ] {
            if !(0.0..1.0).contains(&p) {
                return bad(key, format!("must be at least 0 and below 1, not {p}"));
            }
        }
        Ok(())
    }

    fn mlp_dim(&self) -> i64 {
        (self.dim as f64 * self.mlp_ratio).round() as i64
    }

    /// Returns the [`drop_path`](Self::drop_path) rate of block `index` (from 0).
    fn drop_path_of(&self, index: usize) -> f64 {
        let deepest = self.depth.saturating_sub(1).max(1) as f64;
        self.drop_path * index as f64 / deepest
    }
}

/// Outputs of a block from which targets are built, `(B, T, D)` each.
#[derive(Debug)]
pub struct Layer {
    /// Output of the MLP, before dropout and the residual sum.
    pub ffn: Tensor,
    /// Output of the block.
    pub out: Tensor,
}

/// A stack of blocks of attention and MLP over tokens with positions.
#[derive(Debug)]
pub struct Transformer {
    input_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    config: TransformerConfig,
    /// LayerDrop rate; 0 while stochastic depth is off.
    layer_drop: f64,
    checkpointing: bool,
}

impl Transformer {
    /// Creates the variables below `path`. The caller has validated `config`.
    pub fn new(path: &nn::Path, config: &TransformerConfig) -> Self {
        let blocks = path / "blocks";
        Self {
            input_norm: config
                .input_norm
                .then(|| LayerNorm::new(&(path / "input_norm"), config.dim, config.norm_eps)),
            blocks: (0..config.depth).map(|i| Block::new(&(&blocks / i), config, i)).collect(),
            config: config.clone(),
            layer_drop: config.layer_drop,
            checkpointing: false,
        }
    }

    /// Turns activation checkpointing on or off: training keeps only the input of each block and
    /// recomputes the block in the backward pass.
    pub fn checkpoint_activations(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// Turns LayerDrop and drop path, at the configured rates, on (the default) or off.
    ///
    /// A step without them takes the maximum of time and memory.
    pub fn stochastic_depth(&mut self, on: bool) {
        let factor = if on { 1.0 } else { 0.0 };
        self.layer_drop = factor * self.config.layer_drop;
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.drop_path = factor * self.config.drop_path_of(i);
        }
    }

    /// Converts the variables of all linear layers to `kind`; norms and scales stay as they are.
    pub(crate) fn convert(&mut self, kind: Kind) {
        self.blocks.iter_mut().for_each(|block| block.convert(kind));
    }

    /// Runs `x` `(B, T, D)` through all blocks without dropout and returns the outputs of each.
    ///
    /// `biases` are added to attention scores, `(1 or B, 1 or H, 1 or T, T)` each, with −∞ at
    /// padded keys: none, one for all blocks, or one per block.
    pub fn layers(&self, x: &Tensor, biases: &[Tensor]) -> Vec<Layer> {
        let mut x = self.block_input(x, false);
        let blocks = self.blocks.iter().enumerate().map(|(i, block)| {
            let layer = block.forward(&x, bias_of(biases, i), None, false);
            x = layer.out.shallow_clone();
            layer
        });
        blocks.collect()
    }

    /// Computes the output of the last block, `(B, T, D)`.
    ///
    /// `only` selects N tokens by increasing indices into the flattened `(B·T)`: the result is then
    /// `(N, D)`, and the last MLP skips all other tokens. `biases` are as in
    /// [`layers`](Self::layers). With `rng`, runs a training pass with dropout; LayerDrop draws
    /// from `rng` and always keeps at least one block.
    pub fn forward(
        &self,
        x: &Tensor,
        biases: &[Tensor],
        only: Option<&[i64]>,
        rng: Option<&mut StdRng>,
    ) -> Tensor {
        let train = rng.is_some();
        let mut kept: Vec<usize> = (0..self.blocks.len()).collect();
        if let Some(rng) = rng.filter(|_| self.layer_drop > 0.0) {
            kept.retain(|_| rng.random::<f64>() >= self.layer_drop);
            if kept.is_empty() {
                // Without a block the student would be the identity.
                kept.push(self.blocks.len() - 1);
            }
        }
        let mut x = self.block_input(x, train);
        for &i in &kept {
            let (block, bias) = (&self.blocks[i], bias_of(biases, i));
            let only = only.filter(|_| kept.last() == Some(&i));
            x = match train && self.checkpointing {
                false => block.forward(&x, bias, only, train).out,
                true => block.clone().forward_checkpointed(&x, bias, only),
            };
        }
        x
    }

    /// Applies the input norm and dropout, and chooses the kind of the residual stream.
    fn block_input(&self, x: &Tensor, train: bool) -> Tensor {
        let x = match &self.input_norm {
            Some(norm) => norm.forward(x),
            None => x.shallow_clone(),
        };
        let x = dropout(&x, self.config.input_dropout, train);
        // Post-norm normalises each residual sum at once, so bf16 suffices under autocast. With
        // pre-norm the sum runs through all blocks, and small branches would be lost in bf16.
        let half = self.config.norm == NormPlacement::Post;
        match half && data2vec_torch_ext::is_autocast_on(x.device()) {
            true => x.to_kind(Kind::BFloat16),
            false => x,
        }
    }
}

/// Returns the bias of block `i`.
fn bias_of(biases: &[Tensor], i: usize) -> Option<&Tensor> {
    biases.get(if biases.len() == 1 { 0 } else { i })
}
