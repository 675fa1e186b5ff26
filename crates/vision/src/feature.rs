//! Feature encoder of images: linear patch embedding and positions.

use std::collections::BTreeMap;

use data2vec_core::model::nn::{Init, Linear, trunc_normal};
use data2vec_core::{
    Batch, Error, FeatureEncoder, InputTarget, Result, Tokens, TransformerConfig, WeightInit,
};
use tch::{Kind, Tensor, nn};

use crate::config::PatchEncoderConfig;
use crate::positions::{Positions, RelativeBias, sin_cos};

/// Added to the variance of a patch's pixels, as in MAE's code.
const PIXEL_EPS: f64 = 1e-6;

/// Embeds patches by one linear layer, with a CLS token and sin-cos positions (data2vec 2.0) or a
/// relative position bias (data2vec 1.0).
///
/// Images of other sizes than the configured one work too: sin-cos positions extend beyond the
/// grid, relative position biases are interpolated.
#[derive(Debug)]
pub struct PatchEncoder {
    proj: Linear,
    /// `(D)`
    cls: Tensor,
    position: Position,
    channels: i64,
    patch_size: i64,
}

#[derive(Debug)]
enum Position {
    /// `table` `(T, D)` of the configured `grid`.
    SinCos { grid: [i64; 2], table: Tensor },
    /// One bias for all blocks, or one per block.
    Relative(Vec<RelativeBias>),
}

impl FeatureEncoder for PatchEncoder {
    const NAME: &'static str = "patch";
    type Config = PatchEncoderConfig;

    fn validate(config: &Self::Config, transformer: &TransformerConfig) -> Result<()> {
        config.validate()?;
        if config.positions == Positions::SinCos && transformer.dim % 4 != 0 {
            let reason =
                format!("`sin-cos` needs a dim that is a multiple of 4, not {}", transformer.dim);
            return Err(Error::config("features.positions", reason));
        }
        Ok(())
    }

    fn new(path: &nn::Path, config: &Self::Config, transformer: &TransformerConfig) -> Self {
        let (embed, positions) = (path / "embed", path / "positions");
        let (dim, device) = (transformer.dim, path.device());
        let pixels = config.channels * config.patch_size * config.patch_size;
        let (init, cls) = match transformer.init {
            WeightInit::Bert => {
                let normal = nn::Init::Randn { mean: 0.0, stdev: 1.0 };
                (Init::Xavier, positions.var("cls", &[dim], normal))
            }
            WeightInit::Beit => (Init::Beit, trunc_normal(&positions, "cls", &[dim])),
        };
        let grid = config.grid();
        Self {
            proj: Linear::new(&(&embed / "proj"), pixels, dim, init),
            cls,
            position: match config.positions {
                Positions::SinCos => {
                    Position::SinCos { grid, table: sin_cos(grid, dim).to_device(device) }
                }
                Positions::Relative => {
                    Position::Relative(vec![RelativeBias::new(&positions, grid, transformer.heads)])
                }
                Positions::RelativeBlocks => {
                    let blocks = &positions / "blocks";
                    let new = |i| RelativeBias::new(&(&blocks / i), grid, transformer.heads);
                    Position::Relative((0..transformer.depth).map(new).collect())
                }
            },
            channels: config.channels,
            patch_size: config.patch_size,
        }
    }

    fn embed(&self, batch: &Batch, _train: bool) -> Result<Tokens> {
        let (patches, [down, across]) = self.patches(batch)?;
        Ok(Tokens::new(self.proj.forward(&patches), None).with_grid(down, across)) // (B, T, D)
    }

    fn input_target(config: &Self::Config) -> Option<InputTarget> {
        Some(InputTarget::Values(config.channels * config.patch_size * config.patch_size))
    }

    /// Returns the pixels of each patch, normalised by their own mean and standard deviation (He et
    /// al. 2022, section 4.2).
    fn input_values(&self, batch: &Batch) -> Result<Tensor> {
        let (patches, _) = self.patches(batch)?; // (B, T, C·p·p)
        let mean = patches.mean_dim(&[-1_i64][..], true, Kind::Float);
        let variance = patches.var_dim(&[-1_i64][..], true, true); // unbiased, as in MAE's code
        Ok((patches - mean) / (variance + PIXEL_EPS).sqrt())
    }

    fn add_positions(&self, tokens: &Tokens, _train: bool) -> Result<Tensor> {
        Ok(match &self.position {
            Position::SinCos { grid, table } if *grid == tokens.grid() => &tokens.x + table,
            Position::SinCos { .. } => {
                let dim = tokens.x.size()[2];
                &tokens.x + sin_cos(tokens.grid(), dim).to_device(tokens.x.device())
            }
            Position::Relative(_) => tokens.x.shallow_clone(),
        })
    }

    fn attention_bias(&self, tokens: &Tokens, ids_keep: Option<&Tensor>) -> Vec<Tensor> {
        match &self.position {
            Position::SinCos { .. } => Vec::new(),
            Position::Relative(biases) => {
                biases.iter().map(|bias| bias.forward(tokens.grid(), ids_keep)).collect()
            }
        }
    }

    /// Gives each block its own relative position bias, initialized from the shared one.
    fn adapt_for_finetuning(
        config: &mut Self::Config,
        depth: usize,
        tensors: &mut BTreeMap<String, Tensor>,
    ) {
        const POSITIONS: &str = "encoder.features.positions";
        if config.positions != Positions::Relative {
            return;
        }
        config.positions = Positions::RelativeBlocks;
        if let Some(table) = tensors.remove(&format!("{POSITIONS}.relative_bias")) {
            let copy = |i| (format!("{POSITIONS}.blocks.{i}.relative_bias"), table.copy());
            tensors.extend((0..depth).map(copy));
        }
    }

    fn prefix(&self) -> Option<Tensor> {
        Some(self.cls.unsqueeze(0)) // (1, D)
    }
}

impl PatchEncoder {
    /// Cuts images `(B, C, H, W)` into patches `(B, T, C·p·p)`, row by row. Returns the grid's height
    /// and width too.
    fn patches(&self, batch: &Batch) -> Result<(Tensor, [i64; 2])> {
        let (size, kind) = (batch.inputs.size(), batch.inputs.kind());
        let &[rows, channels, height, width] = size.as_slice() else {
            return Err(Error::Input(format!(
                "images must be (batch, channels, height, width), not {size:?}"
            )));
        };
        if kind != Kind::Float || channels != self.channels || batch.lengths().is_some() {
            return Err(Error::Input(format!(
                "images must be f32 with {} channels and no padding, not {kind:?} with {channels}",
                self.channels
            )));
        }
        let patch = self.patch_size;
        if height % patch != 0 || width % patch != 0 {
            return Err(Error::Input(format!(
                "{height} × {width} pixels are not a multiple of the patch size {patch}"
            )));
        }
        let (down, across) = (height / patch, width / patch);
        let patches = batch
            .inputs
            .reshape([rows, channels, down, patch, across, patch])
            .permute([0, 2, 4, 1, 3, 5]) // (B, h, w, C, p, p)
            .reshape([rows, down * across, channels * patch * patch]); // (B, T, C·p·p)
        Ok((patches, [down, across]))
    }
}
