//! The part that is kept: a feature encoder and the transformer on top of it.

use std::collections::HashMap;
use std::path::Path;

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tch::{Device, Kind, Tensor, nn};

use crate::checkpoint::{assign, read_tensors, replace, write_tensors};
use crate::transformer::Layer;
use crate::tuned::share;
use crate::{
    Batch, Error, FeatureEncoder, Mask, Precision, Result, Tokens, Transformer, TransformerConfig,
    Visible,
};

/// File of weights in an exported encoder's folder.
pub const ENCODER_WEIGHTS: &str = "encoder.safetensors";
/// File of settings in an exported encoder's folder.
pub const ENCODER_CONFIG: &str = "encoder.toml";

/// Everything needed to build an [`Encoder`] again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig<C> {
    /// Which feature encoder, [`FeatureEncoder::NAME`].
    pub encoder: String,
    /// Its settings.
    pub features: C,
    /// The transformer's settings.
    pub transformer: TransformerConfig,
}

/// Contextual features of a batch.
#[derive(Debug)]
pub struct Hidden {
    /// `(B, T, D)`, or `(B, K, D)` when hidden tokens were dropped; prefix tokens are not in it.
    pub x: Tensor,
    /// `(B, P, D)`: the prefix tokens' features.
    pub prefix: Option<Tensor>,
    /// `(B, T)` bool, true at padding; `None` when nothing is padded.
    pub padding: Option<Tensor>,
    /// Each block's results, without prefix tokens; none after a training pass.
    pub layers: Vec<Layer>,
    /// Real tokens of each row.
    pub lengths: Vec<i64>,
}

/// A feature encoder and a transformer: what pretraining leaves behind, and all that users load.
#[derive(Debug)]
pub struct Encoder<F> {
    features: F,
    transformer: Transformer,
    precision: Precision,
}

/// What the transformer is given.
struct Start {
    /// `(B, P+T, D)`, or `(B, P+K, D)`.
    x: Tensor,
    /// As [`Transformer::layers`] takes them.
    biases: Vec<Tensor>,
    /// Of `x` without its prefix.
    padding: Option<Tensor>,
    /// How many tokens of it are the prefix (P).
    prefix: i64,
}

impl<F: FeatureEncoder> Encoder<F> {
    /// Creates the variables below `path / "features"` and `path / "transformer"`.
    ///
    /// # Errors
    /// [`Error::Config`] if a setting is impossible.
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

    /// The feature encoder.
    pub fn features(&self) -> &F {
        &self.features
    }

    /// In training, keeps of each block only its input and computes the block again for its gradients.
    pub fn checkpoint_activations(&mut self, on: bool) {
        self.transformer.checkpoint_activations(on);
    }

    /// Whether training leaves out blocks and branches by chance, as the settings say: so it is at first.
    pub fn stochastic_depth(&mut self, on: bool) {
        self.transformer.stochastic_depth(on);
    }

    /// For inference in another precision, which [`forward`](Self::forward) then computes in. With bf16 the
    /// weights of the blocks' linear maps are rounded to it here, once.
    pub fn in_precision(mut self, precision: Precision) -> Self {
        if precision == Precision::Bf16 {
            tch::no_grad(|| self.transformer.convert(Kind::BFloat16));
        }
        Self { precision, ..self }
    }

    /// Contextual features of `batch`, without dropout and without gradients.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder.
    pub fn forward(&self, batch: &Batch) -> Result<Hidden> {
        self.infer(batch.inputs.device(), || {
            let tokens = self.embed(batch, false)?;
            Ok(self.contextualize(&tokens, None, None))
        })
    }

    /// `body` without gradients, in the precision that was chosen for inference.
    pub(crate) fn infer<T>(&self, device: Device, body: impl FnOnce() -> Result<T>) -> Result<T> {
        tch::no_grad(|| self.precision.run(device, body)?)
    }

    /// Raw signal to tokens that know nothing of each other's place yet.
    ///
    /// # Errors
    /// [`Error::Input`] if the batch does not suit the feature encoder.
    pub fn embed(&self, batch: &Batch, train: bool) -> Result<Tokens> {
        self.features.embed(batch, train)
    }

    /// Positions and blocks. With `visible` the other tokens are dropped after positions were added;
    /// with `rng` it is a training pass.
    pub fn contextualize(
        &self,
        tokens: &Tokens,
        visible: Option<&Visible>,
        rng: Option<&mut StdRng>,
    ) -> Hidden {
        let Start { x, biases, padding, prefix } = self.start(tokens, visible, rng.is_some());
        let cut = |x: &Tensor| x.narrow(1, prefix, x.size()[1] - prefix);
        let (out, layers) = match rng {
            Some(rng) => (self.transformer.forward(&x, &biases, None, Some(rng)), Vec::new()),
            None => {
                let layers = self.transformer.layers(&x, &biases);
                let out = layers.last().map_or(x, |layer| layer.out.shallow_clone());
                let cut_both = |layer: &Layer| Layer { ffn: cut(&layer.ffn), out: cut(&layer.out) };
                (out, layers.iter().map(cut_both).collect())
            }
        };
        let first = (prefix > 0).then(|| out.narrow(1, 0, prefix)); // (B, P, D)
        Hidden { x: cut(&out), prefix: first, padding, layers, lengths: tokens.lengths().to_vec() }
    }

    /// The features of the tokens that `mask` hides, in the order of [`Mask::gather`]: `(N, D)`. The same as
    /// [`contextualize`](Self::contextualize) gives for them, in less time.
    pub(crate) fn contextualize_hidden(
        &self,
        tokens: &Tokens,
        mask: &Mask,
        rng: Option<&mut StdRng>,
    ) -> Tensor {
        let Start { x, biases, prefix, .. } = self.start(tokens, None, rng.is_some());
        self.transformer.forward(&x, &biases, Some(&mask.places(1, prefix)), rng)
    }

    fn start(&self, tokens: &Tokens, visible: Option<&Visible>, train: bool) -> Start {
        let mut x = self.features.add_positions(tokens, train); // (B, T, D)
        let mut padding = tokens.padding.as_ref().map(Tensor::shallow_clone);
        if let Some(visible) = visible {
            x = visible.gather(&x); // (B, K, D)
            padding = visible.padding.as_ref().map(Tensor::shallow_clone);
        }
        let ids_keep = visible.map(|v| &v.ids_keep);
        let biases = self.features.attention_bias(tokens, ids_keep);
        let first = self.features.prefix();
        let prefix = first.as_ref().map_or(0, |first| first.size()[0]);
        if let Some(first) = first {
            let rows = x.size()[0];
            x = Tensor::cat(&[first.unsqueeze(0).expand([rows, -1, -1], false), x], 1); // (B, P+T, D)
        }
        let biases = score_biases(biases, padding.as_ref(), prefix, x.kind());
        Start { x, biases, padding, prefix }
    }

    /// Reads an exported encoder from the folder `dir`, ready for [`forward`](Self::forward).
    ///
    /// # Errors
    /// If a file is missing or broken, belongs to another feature encoder, or lacks a tensor.
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

/// Writes the encoder's share of `vars` (names that start with `encoder.`) and its settings.
pub(crate) fn export<C: Serialize>(
    dir: &Path,
    vars: &HashMap<String, Tensor>,
    config: &EncoderConfig<C>,
) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let tensors = share(vars, "encoder.");
    replace(dir, ENCODER_WEIGHTS, &|path| write_tensors(path, &tensors))?;
    write_toml(dir, ENCODER_CONFIG, config)
}

/// Writes `value` to the file `name` of the folder `dir`.
pub(crate) fn write_toml(dir: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    replace(dir, name, &|path| {
        let text = toml::to_string(value).map_err(|e| Error::file(path, e.to_string()))?;
        std::fs::write(path, text).map_err(|e| Error::io(path, e))
    })
}

/// The settings of the encoder in the folder `dir`.
///
/// # Errors
/// If the file is missing or broken, or tells of another kind of encoder.
pub fn read_config<F: FeatureEncoder>(dir: &Path) -> Result<EncoderConfig<F::Config>> {
    /// Only the kind: so that another kind's file is told apart from a broken one.
    #[derive(Deserialize)]
    struct Kind {
        encoder: String,
    }
    let path = dir.join(ENCODER_CONFIG);
    let kind: Kind = read_toml(&path)?;
    if kind.encoder != F::NAME {
        let reason = format!("holds a `{}` encoder, not a `{}` one", kind.encoder, F::NAME);
        return Err(Error::file(path, reason));
    }
    read_toml(&path)
}

/// Reads a TOML file; what is wrong with it is told with the line.
pub(crate) fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    toml::from_str(&text).map_err(|e| {
        let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Error::file(path, format!("line {line}: {}", e.message()))
    })
}

/// Additive masks, one for all blocks or one for each: the features' bias, −∞ at padded keys.
fn score_biases(
    biases: Vec<Tensor>,
    padding: Option<&Tensor>,
    prefix_len: i64,
    kind: Kind,
) -> Vec<Tensor> {
    // (1 or B, 1 or H, P+T, P+T)
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
            vec![padding.expand([size[0], 1, size[3], size[3]], false)] // fused kernels want all four
        }
        Some(padding) => biases.map(|bias| bias + &padding).collect(),
    }
}
