//! The transformer that student and teacher share, with every block's offer to the targets.

mod block;

use rand::{RngExt, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use crate::nn::{Init, LayerNorm, dropout};
use crate::{Error, Result};
use block::Block;

/// Where a block normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormPlacement {
    /// After each residual sum, as BERT does: all of data2vec but 1.0's vision.
    Post,
    /// Before attention and MLP, as ViT does.
    Pre,
}

/// How a transformer's weights start, and with them those of its decoder and mask token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightInit {
    /// N(0, 0.02²), as fairseq's models; mask tokens U(0, 1).
    #[default]
    Bert,
    /// N(0, 0.02²) cut at ±0.02, mask tokens too. The last map of both branches of block i (from 1)
    /// is divided by √(2i), so that all branches together add about as much as one would.
    Beit,
}

impl WeightInit {
    /// Of linear maps.
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
    /// Hidden width of the MLP over `dim`.
    pub mlp_ratio: f64,
    /// Where blocks normalise.
    pub norm: NormPlacement,
    /// Epsilon of all layer norms in the blocks.
    pub norm_eps: f64,
    /// A layer norm between positions and the first block.
    pub input_norm: bool,
    /// How weights start; absent: `bert`.
    #[serde(default, skip_serializing_if = "WeightInit::is_default")]
    pub init: WeightInit,
    /// Initial factor of each residual branch (LayerScale); absent: no factor.
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
    /// Chance that a block is skipped in a training step (LayerDrop).
    pub layer_drop: f64,
    /// Chance that a row skips a residual branch; rises linearly from 0 to this over the depth.
    pub drop_path: f64,
}

impl TransformerConfig {
    /// Checks every key that can be impossible.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        let bad =
            |key: &str, reason: String| Err(Error::config(format!("transformer.{key}"), reason));
        if self.dim < 1 {
            return bad("dim", format!("{} is not a width; use a multiple of `heads`", self.dim));
        }
        if self.heads < 1 || self.dim % self.heads != 0 {
            return bad("heads", format!("{} does not divide dim = {}", self.heads, self.dim));
        }
        if self.depth < 1 {
            return bad("depth", "at least one block is needed".into());
        }
        if !(self.mlp_ratio > 0.0 && (self.dim as f64 * self.mlp_ratio) >= 1.0) {
            return bad("mlp_ratio", format!("{} gives no hidden unit", self.mlp_ratio));
        }
        if !(self.norm_eps > 0.0) {
            return bad("norm_eps", format!("{} is not above 0", self.norm_eps));
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
                return bad(key, format!("{p} is not a probability below 1"));
            }
        }
        Ok(())
    }

    fn mlp_dim(&self) -> i64 {
        (self.dim as f64 * self.mlp_ratio).round() as i64
    }

    /// [`drop_path`](Self::drop_path) of block `index`, from 0.
    fn drop_path_of(&self, index: usize) -> f64 {
        let deepest = self.depth.saturating_sub(1).max(1) as f64;
        self.drop_path * index as f64 / deepest
    }
}

/// What a block offers to the targets, `(B, T, D)` each.
#[derive(Debug)]
pub struct Layer {
    /// Output of the MLP, before dropout and the residual sum.
    pub ffn: Tensor,
    /// Output of the block.
    pub out: Tensor,
}

/// Blocks of attention and MLP over tokens that already carry their positions.
#[derive(Debug)]
pub struct Transformer {
    input_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    config: TransformerConfig,
    /// 0 while nothing is left out.
    layer_drop: f64,
    checkpointing: bool,
}

impl Transformer {
    /// Creates the variables below `path`. `config` has been validated.
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

    /// Keeps of each block only its input in training, and computes the block again for its gradients.
    pub fn checkpoint_activations(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// Whether training leaves out blocks and branches by chance, as the settings say: so it is at first.
    /// Without, a step takes the most that it can.
    pub fn stochastic_depth(&mut self, on: bool) {
        let share = if on { 1.0 } else { 0.0 };
        self.layer_drop = share * self.config.layer_drop;
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.drop_path = share * self.config.drop_path_of(i);
        }
    }

    /// Keeps the variables of all linear maps in `kind` from now on: all but those of norms and scales.
    pub(crate) fn convert(&mut self, kind: Kind) {
        self.blocks.iter_mut().for_each(|block| block.convert(kind));
    }

    /// `x` `(B, T, D)` through all blocks, without dropout: what each makes of it.
    ///
    /// `biases` are added to attention scores, `(1 or B, 1 or H, 1 or T, T)` each; padded keys hold −∞ in
    /// them. There are none, one for all blocks, or one for each.
    pub fn layers(&self, x: &Tensor, biases: &[Tensor]) -> Vec<Layer> {
        let mut x = self.start(x, false);
        let blocks = self.blocks.iter().enumerate().map(|(i, block)| {
            let layer = block.forward(&x, bias_of(biases, i), None, false);
            x = layer.out.shallow_clone();
            layer
        });
        blocks.collect()
    }

    /// The last block's output, `(B, T, D)`. With `only`, in increasing order the places of N tokens among the
    /// flattened `(B·T)`, it is theirs, `(N, D)`, and what would be for others alone is not computed.
    ///
    /// `biases` as those of [`layers`](Self::layers). With `rng` it is a training pass: dropout, and blocks dropped
    /// by draws from `rng`, though never all.
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
                kept.push(self.blocks.len() - 1); // an all-identity student would learn nothing
            }
        }
        let mut x = self.start(x, train);
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

    /// What the first block is given.
    fn start(&self, x: &Tensor, train: bool) -> Tensor {
        let x = match &self.input_norm {
            Some(norm) => norm.forward(x),
            None => x.shallow_clone(),
        };
        let x = dropout(&x, self.config.input_dropout, train);
        // Sums may be stored in bf16 where products are, if each is normalised at once. Where they run through all
        // blocks, small branches would be lost in them.
        let half = self.config.norm == NormPlacement::Post;
        match half && data2vec_torch_ext::is_autocast_on(x.device()) {
            true => x.to_kind(Kind::BFloat16),
            false => x,
        }
    }
}

/// Of block `i`.
fn bias_of(biases: &[Tensor], i: usize) -> Option<&Tensor> {
    biases.get(if biases.len() == 1 { 0 } else { i })
}
