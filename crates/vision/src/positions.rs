//! Where a patch is: fixed sines and cosines, or a learned bias for each pair of places.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// How the transformer knows where a patch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// Sines and cosines of row and column are added to the tokens, and never trained (2.0).
    SinCos,
    /// Attention scores get a learned bias for each offset in rows and columns, the same in all
    /// blocks (1.0, after BEiT).
    Relative,
    /// The same with a bias of each block's own: fine-tuned models of 1.0.
    RelativeBlocks,
}

/// `(T, D)` f32 for a grid of rows × columns. The first half of the channels tells the column, the
/// second the row; of each, the first half is sines, the second cosines, of frequencies that fall
/// from 1 to almost 1/10000.
pub(crate) fn sin_cos([rows, columns]: [i64; 2], dim: i64) -> Tensor {
    let quarter = dim / 4;
    let frequencies: Vec<f64> =
        (0..quarter).map(|k| 10_000_f64.powf(-(k as f64) / quarter as f64)).collect();
    let mut table = Vec::with_capacity((rows * columns * dim) as usize);
    for row in 0..rows {
        for column in 0..columns {
            for place in [column as f64, row as f64] {
                table.extend(frequencies.iter().map(|f| (place * f).sin() as f32));
                table.extend(frequencies.iter().map(|f| (place * f).cos() as f32));
            }
        }
    }
    Tensor::from_slice(&table).reshape([rows * columns, dim])
}

/// A bias for each head and pair of places, CLS token included.
#[derive(Debug)]
pub(crate) struct RelativeBias {
    /// `((2h-1)·(2w-1) + 3, H)`: a row for each offset; the last three are from CLS to a patch, from
    /// a patch to CLS, and from CLS to itself.
    table: Tensor,
    grid: [i64; 2],
    /// `(T+1, T+1)` i64: which row of the table, for the grid it was made for.
    index: Tensor,
}

impl RelativeBias {
    /// All biases start at zero.
    pub(crate) fn new(path: &nn::Path, grid: [i64; 2], heads: i64) -> Self {
        let table = path.var("relative_bias", &[offsets(grid) + 3, heads], nn::Init::Const(0.0));
        Self { index: index(grid).to_device(table.device()), table, grid }
    }

    /// `(H, T+1, T+1)` for all tokens of `grid`, or `(B, H, K+1, K+1)` for those of `ids_keep` `(B, K)`.
    pub(crate) fn forward(&self, grid: [i64; 2], ids_keep: Option<&Tensor>) -> Tensor {
        let (table, index) = if grid == self.grid {
            (self.table.shallow_clone(), self.index.shallow_clone())
        } else {
            (self.stretched(grid), index(grid).to_device(self.table.device()))
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

    /// The table for another grid: offsets interpolated, the rows for CLS kept.
    fn stretched(&self, [rows, columns]: [i64; 2]) -> Tensor {
        let [old_rows, old_columns] = self.grid.map(|n| 2 * n - 1);
        let count = offsets(self.grid);
        let offsets = self.table.narrow(0, 0, count).reshape([1, old_rows, old_columns, -1]);
        let offsets = offsets.permute([0, 3, 1, 2]); // (1, H, 2h-1, 2w-1)
        let size = [2 * rows - 1, 2 * columns - 1];
        let offsets = offsets.upsample_bilinear2d(size, false, None, None);
        let offsets = offsets.permute([0, 2, 3, 1]).reshape([size[0] * size[1], -1]);
        Tensor::cat(&[offsets, self.table.narrow(0, count, 3)], 0)
    }
}

fn offsets([rows, columns]: [i64; 2]) -> i64 {
    (2 * rows - 1) * (2 * columns - 1)
}

/// `(T+1, T+1)`: the table's row for each pair of tokens, CLS first.
fn index([rows, columns]: [i64; 2]) -> Tensor {
    let tokens = rows * columns;
    let [from_cls, to_cls, itself] = [0, 1, 2].map(|i| offsets([rows, columns]) + i);
    let mut index = Vec::with_capacity(((tokens + 1) * (tokens + 1)) as usize);
    index.push(itself);
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
