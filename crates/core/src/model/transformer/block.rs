//! One block: attention and MLP, each added to what it was given.

use tch::{Device, Kind, Tensor, nn};

use super::NormPlacement::{Post, Pre};
use super::{Layer, NormPlacement, TransformerConfig, WeightInit};
use crate::batch::upload;
use crate::nn::{LayerNorm, LayerScale, Linear, done, dropout};

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
pub(super) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
    /// Factors of the two residual branches.
    scales: [Option<LayerScale>; 2],
    placement: NormPlacement,
    dropout: f64,
    /// Chance that a row skips a branch.
    pub(super) drop_path: f64,
}

impl Block {
    /// Number `index` of the blocks, from 0.
    pub(super) fn new(path: &nn::Path, config: &TransformerConfig, index: usize) -> Self {
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
            drop_path: config.drop_path_of(index),
        }
    }

    /// Keeps the variables of its linear maps in `kind` from now on.
    pub(super) fn convert(&mut self, kind: Kind) {
        let Self { attn, mlp, .. } = self;
        for linear in [&mut attn.qkv, &mut attn.proj, &mut mlp.fc1, &mut mlp.fc2] {
            linear.convert(kind);
        }
    }

    /// `x` `(B, T, D)`. With `only`, in increasing order the places of N tokens among the flattened `(B·T)`, the MLP
    /// sees these alone, and results are `(N, D)`. In training `ffn` has no rows that skip the MLP.
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
        let (x, _) = self.add(x, &row_of, &self.scales[0], train, attend);
        let mut x = self.norm(Post, &self.norm1, &x);
        if let Some(only) = only {
            let places = upload(&Tensor::from_slice(only), x.device());
            x = x.flatten(0, 1).index_select(0, &places); // (N, D)
            row_of = only.iter().map(|place| place / len).collect();
        }
        let (x, ffn) = self.add(&x, &row_of, &self.scales[1], train, mlp_branch);
        Layer { ffn, out: self.norm(Post, &self.norm2, &x) }
    }

    /// `x`, normalised if this is where the block does.
    fn norm(&self, place: NormPlacement, norm: &LayerNorm, x: &Tensor) -> Tensor {
        if self.placement == place { norm.forward(x) } else { x.shallow_clone() }
    }

    /// `x` plus what `branch` makes of it, and that. In training some rows of the batch skip the branch (stochastic
    /// depth; Huang et al. 2016): it is computed for the others alone, whose places it is told. `row_of`: the row that
    /// each entry of `x` is of.
    fn add(
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
                    done(data2vec_torch_ext::residual_dropout(x, &y, p))
                }
                Some(scale) => x + scale.forward(&dropout(&y, self.dropout, train), 1.0),
            };
            return (sum, y);
        }
        let kept = self.kept(row_of);
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

    /// Which entries do not skip a branch this time. Drawn by the CPU: nothing waits for a GPU to say it.
    fn kept(&self, row_of: &[i64]) -> Vec<i64> {
        let rows = row_of.last().map_or(0, |last| last + 1);
        let draws = Tensor::rand([rows], (Kind::Float, Device::Cpu));
        let draws = Vec::<f32>::try_from(&draws).unwrap_or_default();
        let keeps = |&(_, row): &(i64, &i64)| f64::from(draws[*row as usize]) >= self.drop_path;
        (0..).zip(row_of).filter(keeps).map(|(entry, _)| entry).collect()
    }

    /// A training pass that is taken again for the gradients.
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
        done(data2vec_torch_ext::checkpoint(x, bias, body))
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

    /// The paper's formula: all rows go through a branch, some of them times 0, the others times 1/(1 − p).
    fn formula(block: &Block, x: &Tensor, bias: &Tensor, factors: &[Tensor; 2]) -> Tensor {
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
    fn rows_that_skip_a_branch_are_as_if_it_were_times_zero() {
        let only = [1, 2, 5, 6, 9, 13];
        let (mut kept_of_all, mut none) = ([0; 2], 0);
        for (norm, scale) in [(Pre, Some(0.3)), (Pre, None), (Post, None)] {
            tch::manual_seed(4);
            let (vars, block) = block(norm, scale);
            let bias = randn(&[ROWS, 2, LEN, LEN]); // of each row its own
            for (seed, only) in (0..8).flat_map(|seed| [(seed, None), (seed, Some(&only[..]))]) {
                let x = randn(&[ROWS, LEN, 8]).set_requires_grad(true);
                let weights = randn(&[ROWS * LEN, 8]); // of the sum that is derived
                let rows: Vec<i64> = (0..ROWS).collect();
                tch::manual_seed(seed);
                let factors = [(); 2].map(|()| {
                    let kept = block.kept(&rows);
                    kept_of_all[0] += kept.len() as i64;
                    kept_of_all[1] += ROWS;
                    none += i32::from(kept.is_empty());
                    let one = |row| if kept.contains(row) { 1.0 / 0.6_f32 } else { 0.0 };
                    Tensor::from_slice(&rows.iter().map(one).collect::<Vec<_>>())
                        .reshape([-1, 1, 1])
                });
                let mut expected = formula(&block, &x, &bias, &factors).flatten(0, 1);
                let mut weights = weights.shallow_clone();
                if let Some(only) = only {
                    let places = Tensor::from_slice(only);
                    expected = expected.index_select(0, &places);
                    weights = weights.index_select(0, &places);
                }
                tch::manual_seed(seed);
                let out = block.forward(&x, Some(&bias), only, true).out.reshape([-1, 8]);

                let mut inputs: Vec<Tensor> = vars.trainable_variables();
                inputs.push(x);
                let grads = |y: &Tensor| {
                    let loss = (y * &weights).sum(Kind::Float);
                    // Zeros for what no row went through.
                    let nothing: Tensor = inputs.iter().map(|x| x.sum(Kind::Float) * 0.0).sum();
                    Tensor::run_backward(&[loss + nothing], &inputs, false, false)
                };
                let (a, b) = (grads(&expected), grads(&out));
                for (a, b) in a.iter().zip(&b).chain([(&expected, &out)]) {
                    let off = (a - b).abs().max().double_value(&[]);
                    assert!(off < 1e-5, "{norm:?} {scale:?} seed {seed}: off by {off}");
                }
            }
        }
        assert!(none > 0, "some branches are to be without rows");
        let share = kept_of_all[0] as f64 / kept_of_all[1] as f64; // of 288
        assert!((share - 0.6).abs() < 0.07, "{share} of the rows were kept");
    }
}
