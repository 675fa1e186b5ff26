//! Images to one vector a patch, and the positions of these vectors.

use std::collections::BTreeMap;

use data2vec_core::nn::{Init, Linear, cut_normal};
use data2vec_core::{Batch, Error, FeatureEncoder, Result, Tokens, TransformerConfig, WeightInit};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use crate::positions::{Positions, RelativeBias, sin_cos};

/// Largest image side: beyond it, sizes could overflow before memory ends.
const MAX_SIDE: i64 = 1 << 16;

/// What images are, and sizes of a [`PatchEncoder`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchEncoderConfig {
    /// Height and width in pixels, multiples of `patch_size`.
    pub image_size: [i64; 2],
    /// Colours of a pixel: 3 for RGB, 1 for grey.
    pub channels: i64,
    /// Mean of each channel, subtracted from values in 0..=1.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, by which the rest is divided.
    pub std: Vec<f64>,
    /// Height and width of a patch in pixels; each gives one token.
    pub patch_size: i64,
    /// How the transformer knows where a patch is.
    pub positions: Positions,
}

impl PatchEncoderConfig {
    /// Checks what can be checked without a transformer.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, reason: String| Err(Error::config(format!("features.{key}"), reason));
        let patch = self.patch_size;
        if !(1..=MAX_SIDE).contains(&patch) {
            return bad("patch_size", format!("{patch} is not a number of pixels"));
        }
        let fits = |side: &i64| (1..=MAX_SIDE).contains(side) && side % patch == 0;
        if !self.image_size.iter().all(fits) {
            let reason = format!(
                "{:?} is not [height, width] in multiples of patch_size = {patch}",
                self.image_size
            );
            return bad("image_size", reason);
        }
        if !(1..=1024).contains(&self.channels) {
            return bad("channels", format!("{} is outside 1..=1024", self.channels));
        }
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() as i64 != self.channels || values.iter().any(|v| !v.is_finite()) {
                return bad(key, format!("needs {} numbers, one a channel", self.channels));
            }
        }
        if self.std.iter().any(|&std| std <= 0.0) {
            return bad("std", "must be above 0; use 1 to leave values as they are".into());
        }
        Ok(())
    }

    /// Patches of a column and of a row. The settings are possible ones.
    pub fn grid(&self) -> [i64; 2] {
        self.image_size.map(|side| side / self.patch_size.max(1))
    }
}

/// Patches of an image through one linear map, a CLS token before them, and sin-cos positions (2.0)
/// or a bias by relative position (1.0).
///
/// An image of another size than the configured one works too: sin-cos positions go on beyond the
/// grid, relative ones are stretched to it.
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
    /// `(T, D)` for the configured grid.
    SinCos { grid: [i64; 2], table: Tensor },
    /// One for all blocks, or one for each.
    Relative(Vec<RelativeBias>),
}

impl FeatureEncoder for PatchEncoder {
    const NAME: &'static str = "patch";
    type Config = PatchEncoderConfig;

    fn validate(config: &Self::Config, transformer: &TransformerConfig) -> Result<()> {
        config.validate()?;
        if config.positions == Positions::SinCos && transformer.dim % 4 != 0 {
            let reason = format!("`sin-cos` needs a width in fours, not dim = {}", transformer.dim);
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
            WeightInit::Beit => (Init::Beit, cut_normal(&positions, "cls", &[dim])),
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
                    let own = |i| RelativeBias::new(&(&blocks / i), grid, transformer.heads);
                    Position::Relative((0..transformer.depth).map(own).collect())
                }
            },
            channels: config.channels,
            patch_size: config.patch_size,
        }
    }

    fn embed(&self, batch: &Batch, _train: bool) -> Result<Tokens> {
        let (size, kind) = (batch.inputs.size(), batch.inputs.kind());
        let &[rows, channels, height, width] = size.as_slice() else {
            return Err(Error::Input(format!(
                "images are (rows, channels, height, width), not {size:?}"
            )));
        };
        if kind != Kind::Float || channels != self.channels || batch.lengths().is_some() {
            return Err(Error::Input(format!(
                "images are f32 with {} channels and no padding, not {channels} of {kind:?}",
                self.channels
            )));
        }
        let patch = self.patch_size;
        if height % patch != 0 || width % patch != 0 {
            return Err(Error::Input(format!(
                "{height} × {width} pixels are not whole patches of {patch} × {patch}"
            )));
        }
        let (down, across) = (height / patch, width / patch);
        let patches = batch
            .inputs
            .reshape([rows, channels, down, patch, across, patch])
            .permute([0, 2, 4, 1, 3, 5]) // (B, h, w, C, p, p)
            .reshape([rows, down * across, channels * patch * patch]); // (B, T, C·p·p)
        Ok(Tokens::new(self.proj.forward(&patches), None).in_grid(down, across)) // (B, T, D)
    }

    fn add_positions(&self, tokens: &Tokens, _train: bool) -> Tensor {
        match &self.position {
            Position::SinCos { grid, table } if *grid == tokens.grid() => &tokens.x + table,
            Position::SinCos { .. } => {
                let dim = tokens.x.size()[2];
                &tokens.x + sin_cos(tokens.grid(), dim).to_device(tokens.x.device())
            }
            Position::Relative(_) => tokens.x.shallow_clone(),
        }
    }

    fn attention_bias(&self, tokens: &Tokens, ids_keep: Option<&Tensor>) -> Vec<Tensor> {
        match &self.position {
            Position::SinCos { .. } => Vec::new(),
            Position::Relative(biases) => {
                biases.iter().map(|bias| bias.forward(tokens.grid(), ids_keep)).collect()
            }
        }
    }

    /// Each block gets a bias of relative positions of its own, which starts as the shared one.
    fn before_tuning(
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
            let own = |i| (format!("{POSITIONS}.blocks.{i}.relative_bias"), table.copy());
            tensors.extend((0..depth).map(own));
        }
    }

    fn prefix(&self) -> Option<Tensor> {
        Some(self.cls.unsqueeze(0)) // (1, D)
    }
}
