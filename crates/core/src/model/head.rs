//! From an encoder's features to what is asked of them: the part that fine-tuning adds.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor, nn};

use crate::nn::{Init, LayerNorm, Linear, dropout, padding_to_float};
use crate::{Error, Hidden, Result, Targets};

/// What the outputs mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadTask {
    /// Scores of the labels for every token, to be aligned with a shorter sequence (Graves et al. 2006).
    /// The first label is the blank.
    Ctc,
    /// Scores of the labels, one of which is right.
    Classification,
    /// One number.
    Regression,
}

/// Which features a head sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Every token's, by itself.
    None,
    /// Their mean over real tokens.
    Mean,
    /// The first token's: text's `<s>`.
    First,
    /// The last prefix token's: ViT's CLS.
    Prefix,
}

/// A layer before the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseConfig {
    /// Its width.
    pub dim: i64,
    /// What follows it.
    pub activation: Activation,
}

/// What follows a [`DenseConfig`]'s map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Hyperbolic tangent: text.
    Tanh,
    /// Nothing.
    None,
}

/// How the last layer starts. Its biases start at 0, but PyTorch's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadInit {
    /// PyTorch's default: text.
    #[default]
    Torch,
    /// Glorot and Bengio 2010: speech recognition.
    Xavier,
    /// N(0, 0.02²): images.
    Normal,
    /// N(0, 0.02²) cut at ±0.02, times 0.001: 1.0's images, which start with all classes alike.
    Beit,
}

impl HeadInit {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A [`Head`]: `head.toml`, and the recipe's head section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// What the outputs mean.
    pub task: HeadTask,
    /// Which features it sees.
    pub pool: Pool,
    /// Epsilon of a layer norm after pooling; absent: no norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
    /// Dropout before each map.
    pub dropout: f64,
    /// How the last map starts; absent: `torch`.
    #[serde(default, skip_serializing_if = "HeadInit::is_default")]
    pub init: HeadInit,
    /// The outputs' names, in order. A recipe has none: they come from the data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// A layer before the last; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<DenseConfig>,
}

impl HeadConfig {
    /// Checks the settings; labels come later.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if (self.task == HeadTask::Ctc) != (self.pool == Pool::None) {
            let reason = "\"none\" goes with task = \"ctc\", and with that alone";
            return Err(Error::config("head.pool", reason));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let reason = format!("{} is not a probability below 1", self.dropout);
            return Err(Error::config("head.dropout", reason));
        }
        if let Some(eps) = self.norm_eps.filter(|eps| !(*eps > 0.0)) {
            return Err(Error::config("head.norm_eps", format!("{eps} is not above 0")));
        }
        match &self.dense {
            Some(dense) if dense.dim < 1 => {
                Err(Error::config("head.dense.dim", format!("{} is below 1", dense.dim)))
            }
            _ => Ok(()),
        }
    }
}

/// Maps features to the scores of labels, or to a number.
#[derive(Debug)]
pub struct Head {
    norm: Option<LayerNorm>,
    dense: Option<(Linear, Activation)>,
    out: Linear,
    pool: Pool,
    dropout: f64,
}

impl Head {
    /// Creates the variables below `path`, for features of width `dim`.
    ///
    /// # Errors
    /// [`Error::Config`] if a setting is impossible or there are no labels.
    pub fn new(path: &nn::Path, config: &HeadConfig, dim: i64) -> Result<Self> {
        config.validate()?;
        let least = if config.task == HeadTask::Regression { 1 } else { 2 };
        if config.labels.len() < least {
            let reason = format!("{} are too few: {least} are needed", config.labels.len());
            return Err(Error::config("head.labels", reason));
        }
        let norm = config.norm_eps.map(|eps| LayerNorm::new(&(path / "norm"), dim, eps));
        let dense = config.dense.as_ref().map(|dense| {
            (Linear::new(&(path / "dense"), dim, dense.dim, Init::Torch), dense.activation)
        });
        let width = config.dense.as_ref().map_or(dim, |dense| dense.dim);
        let (init, factor) = match config.init {
            HeadInit::Torch => (Init::Torch, 1.0),
            HeadInit::Xavier => (Init::Xavier, 1.0),
            HeadInit::Normal => (Init::Bert, 1.0),
            HeadInit::Beit => (Init::Beit, 0.001),
        };
        let out = Linear::new(&(path / "out"), width, config.labels.len() as i64, init);
        let out = match config.init {
            HeadInit::Torch => out,
            _ => out.scaled(factor).without_bias(),
        };
        Ok(Self { norm, dense, out, pool: config.pool, dropout: config.dropout })
    }

    /// `(B, T, C)` f32 without pooling, `(B, C)` with it.
    pub fn forward(&self, hidden: &Hidden, train: bool) -> Tensor {
        let mut x = self.pooled(hidden);
        if let Some(norm) = &self.norm {
            x = norm.forward(&x);
        }
        if let Some((dense, activation)) = &self.dense {
            x = dense.forward(&dropout(&x, self.dropout, train));
            if *activation == Activation::Tanh {
                x = x.tanh();
            }
        }
        self.out.forward(&dropout(&x, self.dropout, train)).to_kind(Kind::Float)
    }

    fn pooled(&self, hidden: &Hidden) -> Tensor {
        match (self.pool, &hidden.prefix) {
            (Pool::None, _) => hidden.x.shallow_clone(),
            (Pool::Mean, _) => mean_over_tokens(&hidden.x, hidden.padding.as_ref()),
            (Pool::Prefix, Some(prefix)) => prefix.select(1, -1),
            // `FinetunedModel::new` asks for a prefix where one is wanted.
            (Pool::First | Pool::Prefix, _) => hidden.x.select(1, 0),
        }
    }
}

/// Each row's mean over its real tokens, `(B, T, D)` to `(B, D)`. `padding` `(B, T)` is true at padding.
pub fn mean_over_tokens(x: &Tensor, padding: Option<&Tensor>) -> Tensor {
    match padding_to_float(padding, x.kind()) {
        None => x.mean_dim(&[1_i64][..], false, x.kind()),
        Some(keep) => {
            let sum = (x * &keep).sum_dim_intlist(&[1_i64][..], false, x.kind());
            sum / keep.sum_dim_intlist(&[1_i64][..], false, x.kind())
        }
    }
}

/// What a model says of a batch.
#[derive(Debug)]
pub struct Scored {
    /// Scalar f32, summed over examples.
    pub loss: Tensor,
    /// `(B, T, C)` f32 scores of every token for CTC, else `(B, C)`.
    pub scores: Tensor,
    /// Real tokens of each row.
    pub lengths: Vec<i64>,
}

/// Scalar f32: how wrong `scores` are, summed over rows. `lengths` are the real tokens of each row, for CTC.
///
/// # Errors
/// [`Error::Torch`] if scores and targets do not go together.
pub fn loss(scores: &Tensor, lengths: &[i64], targets: &Targets) -> Result<Tensor> {
    Ok(match targets {
        Targets::Classes(classes) => {
            scores.f_cross_entropy_loss(classes, None::<Tensor>, Reduction::Sum, -100, 0.0)?
        }
        Targets::Shares(shares) => -(scores.log_softmax(-1, Kind::Float) * shares).sum(Kind::Float),
        Targets::Values(values) => scores.squeeze_dim(-1).f_mse_loss(values, Reduction::Sum)?,
        Targets::Sequences { ids, lengths: labels } => {
            let log_probs = scores.log_softmax(-1, Kind::Float).transpose(0, 1); // (T, B, C)
            // A row that is too short for its labels has an infinite loss, and no say.
            Tensor::f_ctc_loss(&log_probs, ids, lengths, labels, 0, Reduction::Sum, true)?
        }
    })
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
