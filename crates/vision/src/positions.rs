//! Position encodings of patches: fixed sin-cos embeddings or a learned relative position bias.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// Position encoding of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// Fixed 2-D sin-cos embeddings, added to the tokens (data2vec 2.0).
    SinCos,
    /// Learned attention bias per (row, column) offset, shared by all blocks (data2vec 1.0, BEiT).
    Relative,
    /// Like `Relative`, with one bias per block: fine-tuned models of data2vec 1.0.
    RelativeBlocks,
}

/// Returns the sin-cos embeddings `(T, D)` f32 of a grid of rows × columns.
///
/// The first half of the channels encodes the column, the second half the row. Each half is sines,
/// then cosines, with frequencies from 1 down to almost 1/10000.
pub(crate) fn sin_cos([rows, columns]: [i64; 2], dim: i64) -> Tensor {
    let quarter = dim / 4;
    let frequencies: Vec<f64> =
        (0..quarter).map(|k| 10_000_f64.powf(-(k as f64) / quarter as f64)).collect();
    let mut table = Vec::with_capacity((rows * columns * dim) as usize);
    for row in 0..rows {
        for column in 0..columns {
            for position in [column as f64, row as f64] {
                table.extend(frequencies.iter().map(|f| (position * f).sin() as f32));
                table.extend(frequencies.iter().map(|f| (position * f).cos() as f32));
            }
        }
    }
    Tensor::from_slice(&table).reshape([rows * columns, dim])
}

/// Attention bias per head and pair of positions, including the CLS token.
#[derive(Debug)]
pub(crate) struct RelativeBias {
    /// `((2h-1)·(2w-1) + 3, H)`: one row per offset, then CLS to patch, patch to CLS, CLS to CLS.
    table: Tensor,
    grid: [i64; 2],
    /// `(T+1, T+1)` i64: row of the table for each pair of tokens of `grid`.
    index: Tensor,
}

impl RelativeBias {
    /// Creates the bias table, initialized to zero.
    pub(crate) fn new(path: &nn::Path, grid: [i64; 2], heads: i64) -> Self {
        let table =
            path.var("relative_bias", &[num_offsets(grid) + 3, heads], nn::Init::Const(0.0));
        Self { index: pair_index(grid).to_device(table.device()), table, grid }
    }

    /// Returns the bias of all tokens of `grid`, `(H, T+1, T+1)`, or of the tokens in `ids_keep`
    /// `(B, K)`, `(B, H, K+1, K+1)`.
    pub(crate) fn forward(&self, grid: [i64; 2], ids_keep: Option<&Tensor>) -> Tensor {
        let (table, index) = if grid == self.grid {
            (self.table.shallow_clone(), self.index.shallow_clone())
        } else {
            (self.interpolated(grid), pair_index(grid).to_device(self.table.device()))
        };
        let index = match ids_keep {
            None => index.unsqueeze(0), // (1, T+1, T+1)
            Some(ids_keep) => {
                let at = (ids_keep + 1).constant_pad_nd([1, 0]); // (B, K+1): CLS is token 0
                let pair = at.unsqueeze(-1) * index.size()[0] + at.unsqueeze(-2); // (B, K+1, K+1)
                index.take(&pair)
            }
        };
        let size = index.size();
        let bias = table.index_select(0, &index.flatten(0, -1)); // (B·(K+1)², H)
        let bias = bias.reshape([size[0], size[1], size[2], -1]).permute([0, 3, 1, 2]);
        if ids_keep.is_none() { bias.squeeze_dim(0) } else { bias }
    }

    /// Returns the table for another grid: offsets are interpolated, the rows of CLS are kept.
    fn interpolated(&self, [rows, columns]: [i64; 2]) -> Tensor {
        let [old_rows, old_columns] = self.grid.map(|n| 2 * n - 1);
        let count = num_offsets(self.grid);
        let offsets = self.table.narrow(0, 0, count).reshape([1, old_rows, old_columns, -1]);
        let offsets = offsets.permute([0, 3, 1, 2]); // (1, H, 2h-1, 2w-1)
        let size = [2 * rows - 1, 2 * columns - 1];
        let offsets = offsets.upsample_bilinear2d(size, false, None, None);
        let offsets = offsets.permute([0, 2, 3, 1]).reshape([size[0] * size[1], -1]);
        Tensor::cat(&[offsets, self.table.narrow(0, count, 3)], 0)
    }
}

fn num_offsets([rows, columns]: [i64; 2]) -> i64 {
    (2 * rows - 1) * (2 * columns - 1)
}

/// Returns the table's row for each pair of tokens, `(T+1, T+1)`, CLS first.
fn pair_index([rows, columns]: [i64; 2]) -> Tensor {
    let tokens = rows * columns;
    let [from_cls, to_cls, cls_to_cls] = [0, 1, 2].map(|i| num_offsets([rows, columns]) + i);
    let mut index = Vec::with_capacity(((tokens + 1) * (tokens + 1)) as usize);
    index.push(cls_to_cls);
    index.extend((0..tokens).map(|_| from_cls));
    for i in 0..tokens {
        index.push(to_cls);
        for j in 0..tokens {
            let down = i / columns - j / columns + rows - 1;
            let across = i % columns - j % columns + columns - 1;
            index.push(down * (2 * columns - 1) + across);
        }
    }
    Tensor::from_slice(&index).to_kind(Kind::Int64).reshape([tokens + 1, tokens + 1])
}
