//! Task heads and their losses: the part that fine-tuning adds to an encoder.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor, nn};

use crate::model::nn::{Init, LayerNorm, Linear, dropout, padding_to_float};
use crate::{EncoderOutput, Error, Result, Targets};

/// Task of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadTask {
    /// Connectionist temporal classification (Graves et al. 2006): scores of the labels for every
    /// token. The first label is the blank.
    Ctc,
    /// Scores of the labels, exactly one of which is correct.
    Classification,
    /// A single number.
    Regression,
}

/// How token features are pooled before the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// No pooling: each token separately.
    None,
    /// Mean over real tokens.
    Mean,
    /// The first token: `<s>` in text.
    First,
    /// The last prefix token: CLS in images.
    Prefix,
}

/// A hidden layer before the output layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseConfig {
    /// Width of the layer.
    pub dim: i64,
    /// Activation after the layer.
    pub activation: Activation,
}

/// Activation of a [`DenseConfig`] layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Hyperbolic tangent, as for text.
    Tanh,
    /// No activation.
    None,
}

/// Initialisation of the output layer. Biases start at 0, except with `Torch`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadInit {
    /// PyTorch's default, as for text.
    #[default]
    Torch,
    /// Glorot and Bengio 2010, as for speech recognition.
    Xavier,
    /// N(0, 0.02²), as for images.
    Normal,
    /// N(0, 0.02²) truncated at ±0.02, times 0.001: nearly equal initial scores, as for images in
    /// 1.0.
    Beit,
}

impl HeadInit {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Settings of a [`Head`]: `head.toml`, and the `head` section of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Task of the head.
    pub task: HeadTask,
    /// Pooling before the head.
    pub pool: Pool,
    /// Epsilon of the layer norm after pooling; absent: no norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
    /// Dropout before each linear layer.
    pub dropout: f64,
    /// Initialisation of the output layer; absent: `torch`.
    #[serde(default, skip_serializing_if = "HeadInit::is_default")]
    pub init: HeadInit,
    /// Labels of the outputs, in order; in a recipe absent, since they come from the data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Hidden layer before the output layer; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<DenseConfig>,
}

impl HeadConfig {
    /// Checks the settings except the labels, which come from the data.
    ///
    /// # Errors
    /// Returns [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if (self.task == HeadTask::Ctc) != (self.pool == Pool::None) {
            let reason = "must be \"none\" if and only if task = \"ctc\"";
            return Err(Error::config("head.pool", reason));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let reason = format!("must be at least 0 and below 1, not {}", self.dropout);
            return Err(Error::config("head.dropout", reason));
        }
        if let Some(eps) = self.norm_eps.filter(|eps| !(*eps > 0.0)) {
            return Err(Error::config("head.norm_eps", format!("must be above 0, not {eps}")));
        }
        match &self.dense {
            Some(dense) if dense.dim < 1 => Err(Error::config(
                "head.dense.dim",
                format!("must be at least 1, not {}", dense.dim),
            )),
            _ => Ok(()),
        }
    }
}

/// Maps features to scores of the labels, or to a number.
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
    /// Returns [`Error::Config`] if a setting is invalid or there are too few labels.
    pub fn new(path: &nn::Path, config: &HeadConfig, dim: i64) -> Result<Self> {
        config.validate()?;
        let min_labels = if config.task == HeadTask::Regression { 1 } else { 2 };
        if config.labels.len() < min_labels {
            let reason = format!("needs at least {min_labels}, found {}", config.labels.len());
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
            _ => out.scaled(factor).with_zero_bias(),
        };
        Ok(Self { norm, dense, out, pool: config.pool, dropout: config.dropout })
    }

    /// Computes scores: `(B, T, C)` f32 without pooling, else `(B, C)`.
    pub fn forward(&self, hidden: &EncoderOutput, train: bool) -> Tensor {
        let mut x = self.pool(hidden);
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

    fn pool(&self, hidden: &EncoderOutput) -> Tensor {
        match (self.pool, &hidden.prefix) {
            (Pool::None, _) => hidden.x.shallow_clone(),
            (Pool::Mean, _) => mean_over_tokens(&hidden.x, hidden.padding.as_ref()),
            (Pool::Prefix, Some(prefix)) => prefix.select(1, -1),
            // `FinetunedModel::new` rejects `prefix` for features without one.
            (Pool::First | Pool::Prefix, _) => hidden.x.select(1, 0),
        }
    }
}

/// Averages the real tokens of each row, `(B, T, D)` to `(B, D)`; `padding` `(B, T)` is true at
/// padding.
pub fn mean_over_tokens(x: &Tensor, padding: Option<&Tensor>) -> Tensor {
    match padding_to_float(padding, x.kind()) {
        None => x.mean_dim(&[1_i64][..], false, x.kind()),
        Some(keep) => {
            let sum = (x * &keep).sum_dim_intlist(&[1_i64][..], false, x.kind());
            sum / keep.sum_dim_intlist(&[1_i64][..], false, x.kind())
        }
    }
}

/// Scores and loss of a batch.
#[derive(Debug)]
pub struct Scored {
    /// Loss, a scalar f32, summed over examples.
    pub loss: Tensor,
    /// Scores, f32: `(B, T, C)` for CTC, else `(B, C)`.
    pub scores: Tensor,
    /// Number of real tokens of each row.
    pub lengths: Vec<i64>,
}

/// Computes the loss of `scores`, a scalar f32 summed over rows.
///
/// Cross-entropy, squared error or CTC, by the kind of targets. `lengths` are the numbers of real
/// tokens of each row, for CTC.
///
/// # Errors
/// Returns [`Error::Torch`] if the shapes of scores and targets do not match.
pub fn loss(scores: &Tensor, lengths: &[i64], targets: &Targets) -> Result<Tensor> {
    Ok(match targets {
        Targets::Classes(classes) => {
            scores.f_cross_entropy_loss(classes, None::<Tensor>, Reduction::Sum, -100, 0.0)?
        }
        Targets::SoftLabels(probs) => {
            -(scores.log_softmax(-1, Kind::Float) * probs).sum(Kind::Float)
        }
        Targets::Values(values) => scores.squeeze_dim(-1).f_mse_loss(values, Reduction::Sum)?,
        Targets::Sequences { ids, lengths: labels } => {
            let log_probs = scores.log_softmax(-1, Kind::Float).transpose(0, 1); // (T, B, C)
            // `zero_infinity`: a row that is too short for its labels contributes nothing.
            Tensor::f_ctc_loss(&log_probs, ids, lengths, labels, 0, Reduction::Sum, true)?
        }
    })
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
