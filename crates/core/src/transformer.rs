//! The transformer that student and teacher share, with every block's offer to the targets.

use rand::{RngExt, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use crate::nn::{Init, LayerNorm, LayerScale, Linear, done, drop_path, dropout};
use crate::{Error, Result};

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
}

/// What a block offers to the targets, `(B, T, D)` each.
#[derive(Debug)]
pub struct Layer {
    /// Output of the MLP, before dropout and the residual sum.
    pub ffn: Tensor,
    /// Output of the block.
    pub out: Tensor,
}

/// Every map has a bias. BEiT's attention has none for keys: it would add the same to all scores of a
/// query, which the softmax takes away again, so ours is without effect and its gradient is zero.
#[derive(Clone, Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: i64,
    dropout: f64,
}

impl Attention {
    /// The last map's weights start multiplied by `last`.
    fn new(path: &nn::Path, config: &TransformerConfig, last: f64) -> Self {
        let (dim, init) = (config.dim, config.init.linear());
        Self {
            qkv: Linear::new(&(path / "qkv"), dim, 3 * dim, init),
            proj: Linear::new(&(path / "proj"), dim, dim, init).scaled(last),
            heads: config.heads,
            dropout: config.attention_dropout,
        }
    }

    /// `bias` is added to the scores: `(1 or B, 1 or H, 1 or T, T)`.
    fn forward(&self, x: &Tensor, bias: Option<&Tensor>, train: bool) -> Tensor {
        let dropout = if train { self.dropout } else { 0.0 };
        let qkv = self.qkv.forward(x); // (B, T, 3·D)
        // On CPUs, LibTorch's fused kernel is the faster one where nothing is kept for gradients; it has no
        // dropout there.
        let y = match x.device() {
            Device::Cpu if qkv.requires_grad() || dropout > 0.0 => {
                done(data2vec_torch_ext::attention(&qkv, bias, self.heads, dropout))
            }
            _ => self.fused(&qkv, bias, dropout),
        };
        self.proj.forward(&y)
    }

    fn fused(&self, qkv: &Tensor, bias: Option<&Tensor>, dropout: f64) -> Tensor {
        let (b, t, d) = qkv.size3().unwrap_or_default();
        let width = d / 3 / self.heads;
        let qkv = qkv.reshape([b, t, 3, self.heads, width]).permute([2, 0, 3, 1, 4]);
        let (q, k, v) = (qkv.get(0), qkv.get(1), qkv.get(2)); // (B, H, T, d)
        let scale = (width as f64).powf(-0.5);
        let y =
            Tensor::scaled_dot_product_attention(&q, &k, &v, bias, dropout, false, scale, false);
        y.transpose(1, 2).reshape([b, t, d / 3])
    }
}

#[derive(Clone, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    dropout: f64,
}

impl Mlp {
    /// As [`Attention::new`].
    fn new(path: &nn::Path, config: &TransformerConfig, last: f64) -> Self {
        let (dim, hidden, init) = (config.dim, config.mlp_dim(), config.init.linear());
        Self {
            fc1: Linear::new(&(path / "fc1"), dim, hidden, init),
            fc2: Linear::new(&(path / "fc2"), hidden, dim, init).scaled(last),
            dropout: config.activation_dropout,
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let x = self.fc1.forward(x);
        match train && self.dropout > 0.0 {
            true => self.fc2.forward(&dropout(&x.gelu("none"), self.dropout, train)),
            false => self.fc2.forward_gelu(&x),
        }
    }
}

#[derive(Clone, Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
    /// Factors of the two residual branches.
    scales: [Option<LayerScale>; 2],
    placement: NormPlacement,
    dropout: f64,
    drop_path: f64,
}

impl Block {
    /// Number `index` of the blocks, from 0.
    fn new(path: &nn::Path, config: &TransformerConfig, index: usize) -> Self {
        let deepest = config.depth.saturating_sub(1).max(1) as f64;
        let last = match config.init {
            WeightInit::Bert => 1.0,
            WeightInit::Beit => (2.0 * (index + 1) as f64).powf(-0.5),
        };
        let scale = |name| config.layer_scale.map(|v| LayerScale::new(path, name, config.dim, v));
        Self {
            norm1: LayerNorm::new(&(path / "norm1"), config.dim, config.norm_eps),
            attn: Attention::new(&(path / "attn"), config, last),
            norm2: LayerNorm::new(&(path / "norm2"), config.dim, config.norm_eps),
            mlp: Mlp::new(&(path / "mlp"), config, last),
            scales: ["scale1", "scale2"].map(scale),
            placement: config.norm,
            dropout: config.dropout,
            drop_path: config.drop_path * index as f64 / deepest,
        }
    }

    fn forward(&self, x: &Tensor, bias: Option<&Tensor>, train: bool) -> Layer {
        // x plus what a branch made of it
        let add = |x: &Tensor, y: &Tensor, scale: &Option<LayerScale>| {
            if scale.is_none() && self.drop_path == 0.0 {
                let p = if train { self.dropout } else { 0.0 };
                return done(data2vec_torch_ext::residual_dropout(x, y, p));
            }
            let y = dropout(y, self.dropout, train);
            let y = scale.as_ref().map_or_else(|| y.shallow_clone(), |scale| scale.forward(&y));
            x + drop_path(&y, self.drop_path, train)
        };
        let [scale1, scale2] = &self.scales;
        match self.placement {
            NormPlacement::Post => {
                let x = add(x, &self.attn.forward(x, bias, train), scale1);
                let x = self.norm1.forward(&x);
                let ffn = self.mlp.forward(&x, train);
                let out = self.norm2.forward(&add(&x, &ffn, scale2));
                Layer { ffn, out }
            }
            NormPlacement::Pre => {
                let y = self.attn.forward(&self.norm1.forward(x), bias, train);
                let x = add(x, &y, scale1);
                let ffn = self.mlp.forward(&self.norm2.forward(&x), train);
                let out = add(&x, &ffn, scale2);
                Layer { ffn, out }
            }
        }
    }
}

impl Block {
    /// A training pass that is taken again for the gradients.
    fn forward_twice(self, x: &Tensor, bias: Option<&Tensor>) -> Layer {
        let body = move |x: &Tensor, bias: Option<&Tensor>| {
            let Layer { ffn, out } = self.forward(x, bias, true);
            [ffn, out]
        };
        let [ffn, out] = done(data2vec_torch_ext::checkpoint(x, bias, body));
        Layer { ffn, out }
    }
}

/// Blocks of attention and MLP over tokens that already carry their positions.
#[derive(Debug)]
pub struct Transformer {
    input_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    input_dropout: f64,
    layer_drop: f64,
    checkpointing: bool,
    /// Whether sums may be stored in bf16 where products are: if each is normalised at once. Where they
    /// run through all blocks, small branches would be lost in them.
    half: bool,
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
            input_dropout: config.input_dropout,
            layer_drop: config.layer_drop,
            checkpointing: false,
            half: config.norm == NormPlacement::Post,
        }
    }

    /// Keeps of each block only its input in training, and computes the block again for its gradients.
    pub fn checkpoint_activations(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// Keeps the variables of all linear maps in `kind` from now on: all but those of norms and scales.
    pub(crate) fn convert(&mut self, kind: Kind) {
        for Block { attn, mlp, .. } in &mut self.blocks {
            for linear in [&mut attn.qkv, &mut attn.proj, &mut mlp.fc1, &mut mlp.fc2] {
                linear.convert(kind);
            }
        }
    }

    /// `x` `(B, T, D)` through all blocks; the last block's output is the last layer's `out`.
    ///
    /// `biases` are added to attention scores, `(1 or B, 1 or H, 1 or T, T)` each; padded keys hold −∞ in
    /// them. There are none, one for all blocks, or one for each.
    /// With `rng` the pass is a training pass: dropout, and blocks dropped by draws from `rng`, which
    /// are then missing from the result. At least one layer is returned.
    pub fn forward(&self, x: &Tensor, biases: &[Tensor], rng: Option<&mut StdRng>) -> Vec<Layer> {
        let train = rng.is_some();
        let mut keep = vec![true; self.blocks.len()];
        if let Some(rng) = rng.filter(|_| self.layer_drop > 0.0) {
            keep.fill_with(|| rng.random::<f64>() >= self.layer_drop);
            if !keep.contains(&true) {
                keep[self.blocks.len() - 1] = true; // an all-identity student would learn nothing
            }
        }
        let mut x = match &self.input_norm {
            Some(norm) => norm.forward(x),
            None => x.shallow_clone(),
        };
        x = dropout(&x, self.input_dropout, train);
        if self.half && data2vec_torch_ext::is_autocast_on(x.device()) {
            x = x.to_kind(Kind::BFloat16);
        }
        let mut layers = Vec::with_capacity(self.blocks.len());
        let blocks = self.blocks.iter().enumerate().zip(keep);
        for ((i, block), _) in blocks.filter(|(_, keep)| *keep) {
            let bias = biases.get(if biases.len() == 1 { 0 } else { i });
            let layer = match train && self.checkpointing {
                false => block.forward(&x, bias, train),
                true => block.clone().forward_twice(&x, bias),
            };
            x = layer.out.shallow_clone();
            layers.push(layer);
        }
        layers
    }
}
