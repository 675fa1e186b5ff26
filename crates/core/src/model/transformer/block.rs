//! One transformer block: attention and MLP with residual connections.

use tch::{Device, Kind, Tensor, nn};

use super::NormPlacement::{Post, Pre};
use super::{Layer, NormPlacement, TransformerConfig, WeightInit};
use crate::data::batch::upload;
use crate::model::nn::{LayerNorm, LayerScale, Linear, dropout, expect_torch};

/// Multi-head self-attention; every linear layer has a bias.
///
/// BEiT has no bias for keys. It would add a constant to all scores of a query, which the softmax
/// cancels, so the key bias here has no effect and its gradient is zero.
#[derive(Clone, Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: i64,
    dropout: f64,
}

impl Attention {
    /// Creates the variables below `path`; the initial output weights are multiplied by
    /// `out_scale`.
    fn new(path: &nn::Path, config: &TransformerConfig, out_scale: f64) -> Self {
        let (dim, init) = (config.dim, config.init.linear());
        Self {
            qkv: Linear::new(&(path / "qkv"), dim, 3 * dim, init),
            proj: Linear::new(&(path / "proj"), dim, dim, init).scaled(out_scale),
            heads: config.heads,
            dropout: config.attention_dropout,
        }
    }

    /// Attends over `x` `(B, T, D)`; `bias` `(1 or B, 1 or H, 1 or T, T)` is added to the scores.
    fn forward(&self, x: &Tensor, bias: Option<&Tensor>, train: bool) -> Tensor {
        let dropout = if train { self.dropout } else { 0.0 };
        let qkv = self.qkv.forward(x); // (B, T, 3·D)
        // On the CPU, LibTorch's fused kernel is faster without gradients, and does not support
        // dropout.
        let y = match x.device() {
            Device::Cpu if qkv.requires_grad() || dropout > 0.0 => {
                expect_torch(data2vec_torch_ext::attention(&qkv, bias, self.heads, dropout))
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
    /// Creates the variables below `path`; the initial output weights are multiplied by
    /// `out_scale`.
    fn new(path: &nn::Path, config: &TransformerConfig, out_scale: f64) -> Self {
        let (dim, hidden, init) = (config.dim, config.mlp_dim(), config.init.linear());
        Self {
            fc1: Linear::new(&(path / "fc1"), dim, hidden, init),
            fc2: Linear::new(&(path / "fc2"), hidden, dim, init).scaled(out_scale),
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
pub(super) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
    /// LayerScale of the two residual branches.
    scales: [Option<LayerScale>; 2],
    placement: NormPlacement,
    dropout: f64,
    /// Probability that a row skips a residual branch.
    pub(super) drop_path: f64,
}

impl Block {
    /// Creates block `index` (from 0).
    pub(super) fn new(path: &nn::Path, config: &TransformerConfig, index: usize) -> Self {
        let out_scale = match config.init {
            WeightInit::Bert => 1.0,
            WeightInit::Beit => (2.0 * (index + 1) as f64).powf(-0.5),
        };
        let scale = |name| config.layer_scale.map(|v| LayerScale::new(path, name, config.dim, v));
        Self {
            norm1: LayerNorm::new(&(path / "norm1"), config.dim, config.norm_eps),
            attn: Attention::new(&(path / "attn"), config, out_scale),
            norm2: LayerNorm::new(&(path / "norm2"), config.dim, config.norm_eps),
            mlp: Mlp::new(&(path / "mlp"), config, out_scale),
            scales: ["scale1", "scale2"].map(scale),
            placement: config.norm,
            dropout: config.dropout,
            drop_path: config.drop_path_of(index),
        }
    }

    /// Converts the variables of the linear layers to `kind`.
    pub(super) fn convert(&mut self, kind: Kind) {
        let Self { attn, mlp, .. } = self;
        for linear in [&mut attn.qkv, &mut attn.proj, &mut mlp.fc1, &mut mlp.fc2] {
            linear.convert(kind);
        }
    }

    /// Computes the outputs of the block for `x` `(B, T, D)`.
    ///
    /// `only` selects N tokens by increasing indices into the flattened `(B·T)`: the MLP runs on
    /// these tokens, and outputs are `(N, D)`. In training, `ffn` lacks the rows that skip the MLP.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        only: Option<&[i64]>,
        train: bool,
    ) -> Layer {
        let (rows, len) = (x.size()[0], x.size()[1]);
        let attend = |x: &Tensor, kept: Option<&Tensor>| {
            let bias = match (bias, kept) {
                (Some(bias), Some(kept)) if bias.size()[0] > 1 => Some(bias.index_select(0, kept)),
                (bias, _) => bias.map(Tensor::shallow_clone),
            };
            self.attn.forward(&self.norm(Pre, &self.norm1, x), bias.as_ref(), train)
        };
        let mlp_branch = |x: &Tensor, _: Option<&Tensor>| {
            self.mlp.forward(&self.norm(Pre, &self.norm2, x), train)
        };

        let mut row_of: Vec<i64> = (0..rows).collect();
        let (x, _) = self.add_branch(x, &row_of, &self.scales[0], train, attend);
        let mut x = self.norm(Post, &self.norm1, &x);
        if let Some(only) = only {
            let indices = upload(&Tensor::from_slice(only), x.device());
            x = x.flatten(0, 1).index_select(0, &indices); // (N, D)
            row_of = only.iter().map(|index| index / len).collect();
        }
        let (x, ffn) = self.add_branch(&x, &row_of, &self.scales[1], train, mlp_branch);
        Layer { ffn, out: self.norm(Post, &self.norm2, &x) }
    }

    /// Normalises `x` if `placement` is that of this block.
    fn norm(&self, placement: NormPlacement, norm: &LayerNorm, x: &Tensor) -> Tensor {
        if self.placement == placement { norm.forward(x) } else { x.shallow_clone() }
    }

    /// Returns `(x + branch(x), branch(x))`.
    ///
    /// In training, drop path (stochastic depth; Huang et al. 2016) makes random rows skip the
    /// branch, which is then computed for the others only; its second argument are their indices.
    /// `row_of` maps each entry of `x` to its row in the batch.
    fn add_branch(
        &self,
        x: &Tensor,
        row_of: &[i64],
        scale: &Option<LayerScale>,
        train: bool,
        branch: impl FnOnce(&Tensor, Option<&Tensor>) -> Tensor,
    ) -> (Tensor, Tensor) {
        if !train || self.drop_path == 0.0 {
            let y = branch(x, None);
            let sum = match scale {
                None => {
                    let p = if train { self.dropout } else { 0.0 };
                    expect_torch(data2vec_torch_ext::residual_dropout(x, &y, p))
                }
                Some(scale) => x + scale.forward(&dropout(&y, self.dropout, train), 1.0),
            };
            return (sum, y);
        }
        let kept = self.sample_kept(row_of);
        if kept.is_empty() {
            return (x.shallow_clone(), x.narrow(0, 0, 0));
        }
        let kept = upload(&Tensor::from_slice(&kept), x.device());
        let y = branch(&x.index_select(0, &kept), Some(&kept));
        let (dropped, factor) = (dropout(&y, self.dropout, true), 1.0 / (1.0 - self.drop_path));
        let scaled = match scale {
            None => dropped * factor,
            Some(scale) => scale.forward(&dropped, factor),
        };
        (x.index_add(0, &kept, &scaled.to_kind(x.kind())), y)
    }

    /// Samples the indices of the entries that keep a branch, on the CPU to avoid a device sync.
    fn sample_kept(&self, row_of: &[i64]) -> Vec<i64> {
        let rows = row_of.last().map_or(0, |last| last + 1);
        let draws = Tensor::rand([rows], (Kind::Float, Device::Cpu));
        let draws = Vec::<f32>::try_from(&draws).unwrap_or_default();
        let keeps = |&(_, row): &(i64, &i64)| f64::from(draws[*row as usize]) >= self.drop_path;
        (0..).zip(row_of).filter(keeps).map(|(entry, _)| entry).collect()
    }

    /// Runs a training pass whose activations are recomputed in the backward pass.
    pub(super) fn forward_checkpointed(
        self,
        x: &Tensor,
        bias: Option<&Tensor>,
        only: Option<&[i64]>,
    ) -> Tensor {
        let only = only.map(<[i64]>::to_vec);
        let body = move |x: &Tensor, bias: Option<&Tensor>| {
            self.forward(x, bias, only.as_deref(), true).out
        };
        expect_torch(data2vec_torch_ext::checkpoint(x, bias, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: i64 = 3;
    const LEN: i64 = 5;

    fn block(norm: NormPlacement, layer_scale: Option<f64>) -> (nn::VarStore, Block) {
        let config = TransformerConfig {
            dim: 8,
            depth: 2,
            heads: 2,
            mlp_ratio: 2.0,
            norm,
            norm_eps: 1e-5,
            input_norm: false,
            init: WeightInit::Bert,
            layer_scale,
            input_dropout: 0.0,
            dropout: 0.0,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            layer_drop: 0.0,
            drop_path: 0.4,
        };
        let vars = nn::VarStore::new(Device::Cpu);
        let block = Block::new(&vars.root(), &config, 1);
        (vars, block)
    }

    fn randn(size: &[i64]) -> Tensor {
        Tensor::randn(size, (Kind::Float, Device::Cpu))
    }

    /// Drop path by its formula: all rows take the branch, multiplied by 0 or by 1/(1 − p).
    fn reference_forward(
        block: &Block,
        x: &Tensor,
        bias: &Tensor,
        factors: &[Tensor; 2],
    ) -> Tensor {
        let scaled = |y: Tensor, i: usize| match &block.scales[i] {
            Some(scale) => scale.forward(&y, 1.0) * &factors[i],
            None => y * &factors[i],
        };
        let y = block.attn.forward(&block.norm(Pre, &block.norm1, x), Some(bias), true);
        let x = block.norm(Post, &block.norm1, &(x + scaled(y, 0)));
        let y = block.mlp.forward(&block.norm(Pre, &block.norm2, &x), true);
        block.norm(Post, &block.norm2, &(&x + scaled(y, 1)))
    }

    #[test]
    fn drop_path_matches_multiplying_branches_by_zero() {
        let only = [1, 2, 5, 6, 9, 13];
        let (mut kept_rows, mut all_rows, mut skipped_branches) = (0, 0, 0);
        for (norm, scale) in [(Pre, Some(0.3)), (Pre, None), (Post, None)] {
            tch::manual_seed(4);
            let (vars, block) = block(norm, scale);
            let bias = randn(&[ROWS, 2, LEN, LEN]); // one per row
            for (seed, only) in (0..8).flat_map(|seed| [(seed, None), (seed, Some(&only[..]))]) {
                let x = randn(&[ROWS, LEN, 8]).set_requires_grad(true);
                let weights = randn(&[ROWS * LEN, 8]); // of the outputs in the loss
                let rows: Vec<i64> = (0..ROWS).collect();
                tch::manual_seed(seed);
                let factors = [(); 2].map(|()| {
                    let kept = block.sample_kept(&rows);
                    kept_rows += kept.len() as i64;
                    all_rows += ROWS;
                    skipped_branches += i32::from(kept.is_empty());
                    let factor = |row| if kept.contains(row) { 1.0 / 0.6_f32 } else { 0.0 };
                    Tensor::from_slice(&rows.iter().map(factor).collect::<Vec<_>>())
                        .reshape([-1, 1, 1])
                });
                let mut expected = reference_forward(&block, &x, &bias, &factors).flatten(0, 1);
                let mut weights = weights.shallow_clone();
                if let Some(only) = only {
                    let indices = Tensor::from_slice(only);
                    expected = expected.index_select(0, &indices);
                    weights = weights.index_select(0, &indices);
                }
                tch::manual_seed(seed);
                let out = block.forward(&x, Some(&bias), only, true).out.reshape([-1, 8]);

                let mut inputs: Vec<Tensor> = vars.trainable_variables();
                inputs.push(x);
                let grads = |y: &Tensor| {
                    let loss = (y * &weights).sum(Kind::Float);
                    // Gives variables that no row uses a gradient of zero.
                    let zero: Tensor = inputs.iter().map(|x| x.sum(Kind::Float) * 0.0).sum();
                    Tensor::run_backward(&[loss + zero], &inputs, false, false)
                };
                let (a, b) = (grads(&expected), grads(&out));
                for (a, b) in a.iter().zip(&b).chain([(&expected, &out)]) {
                    let error = (a - b).abs().max().double_value(&[]);
                    assert!(error < 1e-5, "{norm:?} {scale:?} seed {seed}: differs by {error}");
                }
            }
        }
        assert!(skipped_branches > 0, "the seeds cover no branch that all rows skip");
        let fraction = kept_rows as f64 / all_rows as f64; // of 288
        assert!((fraction - 0.6).abs() < 0.07, "kept {fraction} of the rows");
    }
}
