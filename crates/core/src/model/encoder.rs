//! The encoder: a feature encoder and a transformer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use crate::io::checkpoint::{assign, filter_by_prefix, read_tensors, write_weights};
use crate::io::toml::{read_toml, write_toml};
use crate::model::transformer::Layer;
use crate::{
    Batch, Error, FeatureEncoder, Mask, Precision, Result, Tokens, Transformer, TransformerConfig,
    Visible,
};

/// File name of the weights in an exported encoder directory.
pub const ENCODER_WEIGHTS: &str = "encoder.safetensors";
/// File name of the settings in an exported encoder directory.
pub const ENCODER_CONFIG: &str = "encoder.toml";

/// Settings of an [`Encoder`], stored in `encoder.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig<C> {
    /// Name of the feature encoder, [`FeatureEncoder::NAME`].
    pub encoder: String,
    /// Settings of the feature encoder.
    pub features: C,
    /// Settings of the transformer.
    pub transformer: TransformerConfig,
}

/// Contextual features of a batch.
#[derive(Debug)]
pub struct EncoderOutput {
    /// `(B, T, D)`, or `(B, K, D)` if masked tokens were dropped; without prefix tokens.
    pub x: Tensor,
    /// `(B, P, D)`: features of the prefix tokens.
    pub prefix: Option<Tensor>,
    /// `(B, T)` bool, true at padding; `None` if nothing is padded.
    pub padding: Option<Tensor>,
    /// Outputs of each block, without prefix tokens; empty after a training pass.
    pub layers: Vec<Layer>,
    /// Number of real tokens of each row.
    pub lengths: Vec<i64>,
    /// Height and width of the grid of tokens, row by row; the height of a sequence is 1.
    pub grid: [i64; 2],
}

/// A feature encoder and a transformer: the part of a pretrained model that users load.
#[derive(Debug)]
pub struct Encoder<F> {
    features: F,
    transformer: Transformer,
    precision: Precision,
}

/// Input of the transformer.
struct BlockInput {
    /// `(B, P+T, D)`, or `(B, P+K, D)`.
    x: Tensor,
    /// Biases of the attention scores, see [`Transformer::layers`].
    biases: Vec<Tensor>,
    /// Padding of `x` without its prefix.
    padding: Option<Tensor>,
    /// Number of prefix tokens (P).
    prefix: i64,
}

impl<F: FeatureEncoder> Encoder<F> {
    /// Creates the variables below `path / "features"` and `path / "transformer"`.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if a setting is invalid.
    pub fn new(
        path: &nn::Path,
        features: &F::Config,
        transformer: &TransformerConfig,
    ) -> Result<Self> {
        transformer.validate()?;
        F::validate(features, transformer)?;
        Ok(Self {
            features: F::new(&(path / "features"), features, transformer),
            transformer: Transformer::new(&(path / "transformer"), transformer),
            precision: Precision::F32,
        })
    }

    /// Returns the feature encoder.
    pub fn features(&self) -> &F {
        &self.features
    }

    /// Turns activation checkpointing on or off: training keeps only the input of each block and
    /// recomputes the block in the backward pass.
    pub fn checkpoint_activations(&mut self, on: bool) {
        self.transformer.checkpoint_activations(on);
    }

    /// Turns LayerDrop and drop path, at the configured rates, on (the default) or off.
    pub fn stochastic_depth(&mut self, on: bool) {
        self.transformer.stochastic_depth(on);
    }

    /// Sets the precision of [`forward`](Self::forward), for inference.
    ///
    /// [`Precision::Bf16`] rounds the weights of the linear layers in the blocks once, here.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        if precision == Precision::Bf16 {
            tch::no_grad(|| self.transformer.convert(Kind::BFloat16));
        }
        Self { precision, ..self }
    }

    /// Computes the contextual features of `batch`, without dropout and without gradients.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the batch does not fit the feature encoder.
    pub fn forward(&self, batch: &Batch) -> Result<EncoderOutput> {
        self.infer(batch.inputs.device(), || {
            let tokens = self.embed(batch, false)?;
            self.contextualize(&tokens, None, None)
        })
    }

    /// Runs `body` without gradients and in the inference precision.
    pub(crate) fn infer<T>(&self, device: Device, body: impl FnOnce() -> Result<T>) -> Result<T> {
        tch::no_grad(|| self.precision.run(device, body)?)
    }

    /// Maps raw signal to tokens without positions, see [`FeatureEncoder::embed`].
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the batch does not fit the feature encoder.
    pub fn embed(&self, batch: &Batch, train: bool) -> Result<Tokens> {
        self.features.embed(batch, train)
    }

    /// Adds positions and runs all blocks.
    ///
    /// With `visible`, drops all other tokens after positions are added. With `rng`, runs a
    /// training pass: dropout is active and [`EncoderOutput::layers`] is empty.
    ///
    /// # Errors
    /// Returns an error if positions cannot be added to `tokens`.
    pub fn contextualize(
        &self,
        tokens: &Tokens,
        visible: Option<&Visible>,
        rng: Option<&mut StdRng>,
    ) -> Result<EncoderOutput> {
        let BlockInput { x, biases, padding, prefix } =
            self.block_input(tokens, visible, rng.is_some())?;
        let without_prefix = |x: &Tensor| x.narrow(1, prefix, x.size()[1] - prefix);
        let (out, layers) = match rng {
            Some(rng) => (self.transformer.forward(&x, &biases, None, Some(rng)), Vec::new()),
            None => {
                let layers = self.transformer.layers(&x, &biases);
                let out = layers.last().map_or(x, |layer| layer.out.shallow_clone());
                let layers = layers.iter().map(|layer| Layer {
                    ffn: without_prefix(&layer.ffn),
                    out: without_prefix(&layer.out),
                });
                (out, layers.collect())
            }
        };
        let x = without_prefix(&out);
        let prefix = (prefix > 0).then(|| out.narrow(1, 0, prefix)); // (B, P, D)
        let (lengths, grid) = (tokens.lengths().to_vec(), tokens.grid());
        Ok(EncoderOutput { x, prefix, padding, layers, lengths, grid })
    }

    /// Computes the features of the masked tokens only, `(N, D)` in the order of [`Mask::gather`].
    ///
    /// They equal those of [`contextualize`](Self::contextualize) and take less time.
    pub(crate) fn contextualize_masked(
        &self,
        tokens: &Tokens,
        mask: &Mask,
        rng: Option<&mut StdRng>,
    ) -> Result<Tensor> {
        let BlockInput { x, biases, prefix, .. } = self.block_input(tokens, None, rng.is_some())?;
        Ok(self.transformer.forward(&x, &biases, Some(&mask.places(1, prefix)), rng))
    }

    /// Adds positions, drops masked tokens, prepends the prefix and builds the attention biases.
    fn block_input(
        &self,
        tokens: &Tokens,
        visible: Option<&Visible>,
        train: bool,
    ) -> Result<BlockInput> {
        let mut x = self.features.add_positions(tokens, train)?; // (B, T, D)
        let mut padding = tokens.padding.as_ref().map(Tensor::shallow_clone);
        if let Some(visible) = visible {
            x = visible.gather(&x); // (B, K, D)
            padding = visible.padding.as_ref().map(Tensor::shallow_clone);
        }
        let ids_keep = visible.map(|v| &v.ids_keep);
        let biases = self.features.attention_bias(tokens, ids_keep);
        let prefix_tokens = self.features.prefix();
        let prefix = prefix_tokens.as_ref().map_or(0, |tokens| tokens.size()[0]);
        if let Some(tokens) = prefix_tokens {
            let tokens = tokens.unsqueeze(0).expand([x.size()[0], -1, -1], false);
            x = Tensor::cat(&[tokens, x], 1); // (B, P+T, D)
        }
        let biases = score_biases(biases, padding.as_ref(), prefix, x.kind());
        Ok(BlockInput { x, biases, padding, prefix })
    }

    /// Loads an exported encoder from the directory `dir`, for inference.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, belongs to another feature encoder, or
    /// lacks a tensor.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<(Self, EncoderConfig<F::Config>)> {
        let dir = dir.as_ref();
        let config = read_config::<F>(dir)?;
        let vars = nn::VarStore::new(device);
        let encoder = Self::new(&(vars.root() / "encoder"), &config.features, &config.transformer)?;
        let path = dir.join(ENCODER_WEIGHTS);
        assign(&path, &vars.variables(), &read_tensors(&path)?)?;
        for (_, mut tensor) in vars.variables() {
            let _ = tensor.requires_grad_(false);
        }
        Ok((encoder, config))
    }
}

/// Writes the encoder's variables (names that start with `encoder.`) and settings to `dir`.
pub(crate) fn export<C: Serialize>(
    dir: &Path,
    vars: &HashMap<String, Tensor>,
    config: &EncoderConfig<C>,
) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let tensors = filter_by_prefix(vars, "encoder.");
    write_weights(&dir.join(ENCODER_WEIGHTS), &tensors)?;
    write_toml(&dir.join(ENCODER_CONFIG), config)
}

/// Reads the settings of the encoder in the directory `dir`.
///
/// # Errors
/// Returns an error if the file is missing or invalid, or belongs to another feature encoder.
pub fn read_config<F: FeatureEncoder>(dir: &Path) -> Result<EncoderConfig<F::Config>> {
    /// Only the name: another encoder's file gets an error of its own.
    #[derive(Deserialize)]
    struct Name {
        encoder: String,
    }
    let path = find_config(dir)?;
    let name: Name = read_toml(&path)?;
    if name.encoder != F::NAME {
        let reason = format!(
            "is an encoder of another modality: its features are `{}`, not `{}`",
            name.encoder,
            F::NAME
        );
        return Err(Error::file(path, reason));
    }
    read_toml(&path)
}

/// Returns the path of `encoder.toml` in the directory `dir`.
///
/// # Errors
/// If there is none; names the directory below `dir` that has one.
pub fn find_config(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(ENCODER_CONFIG);
    if path.exists() {
        return Ok(path);
    }
    let below = ["encoder", "model"].map(|name| dir.join(name));
    let hint = match below.iter().find(|below| below.join(ENCODER_CONFIG).exists()) {
        Some(below) => format!("; use {}", below.display()),
        None => String::new(),
    };
    let reason = format!("has no {ENCODER_CONFIG}: not an exported encoder or model{hint}");
    Err(Error::file(dir, reason))
}

/// Combines the features' biases with the padding mask (−∞ at padded keys).
///
/// Returns no bias, one for all blocks, or one per block: `(1 or B, 1 or H, P+T, P+T)` each.
fn score_biases(
    biases: Vec<Tensor>,
    padding: Option<&Tensor>,
    prefix_len: i64,
    kind: Kind,
) -> Vec<Tensor> {
    let biases = biases.into_iter();
    let biases = biases.map(|bias| if bias.dim() == 3 { bias.unsqueeze(0) } else { bias });
    let padding = padding.map(|padding| {
        let padding = match prefix_len {
            0 => padding.shallow_clone(),
            _ => padding.to_kind(Kind::Uint8).constant_pad_nd([prefix_len, 0]).to_kind(Kind::Bool),
        };
        Tensor::zeros(padding.size(), (kind, padding.device()))
            .masked_fill(&padding, f64::NEG_INFINITY)
            .unsqueeze(1)
            .unsqueeze(1) // (B, 1, 1, P+T)
    });
    match padding {
        None => biases.collect(),
        Some(padding) if biases.len() == 0 => {
            let size = padding.size();
            // The fused kernels need all four dimensions.
            vec![padding.expand([size[0], 1, size[3], size[3]], false)]
        }
        Some(padding) => biases.map(|bias| bias + &padding).collect(),
    }
}
