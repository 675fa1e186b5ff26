//! What a line of `metrics.jsonl` tells.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Deserializer, Serialize};

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// Means over the steps since the last such line.
    Train(TrainLine),
    /// Held-out examples, without dropout.
    HeldOut(HeldOutLine),
    /// Held-out labelled examples, in fine-tuning.
    Validation(ValidationLine),
}

/// See [`Line::Train`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainLine {
    /// Completed steps.
    pub step: u64,
    /// Passes over the data.
    pub epoch: f64,
    /// Mean over hidden tokens, or over labelled examples.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Of the last step.
    pub lr: f64,
    /// What pretraining tells besides.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub pretraining: Option<Pretraining>,
    /// Units of data (seconds of audio, …) a second.
    pub units_per_second: f64,
    /// Share of the time that the model waited for data.
    pub waiting: f64,
    /// Unusable examples met so far.
    pub bad_examples: usize,
}

/// What a line tells of pretraining.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pretraining {
    /// Spread of the targets over hidden tokens.
    #[serde(deserialize_with = "number")]
    pub target_var: f64,
    /// Spread of the predictions.
    #[serde(deserialize_with = "number")]
    pub pred_var: f64,
    /// Share of hidden tokens.
    pub masked_share: f64,
    /// Of the last step.
    pub ema_decay: f64,
}

/// See [`Line::HeldOut`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutLine {
    /// Completed steps.
    pub step: u64,
    /// Mean over hidden tokens.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Share of the targets' variance that predictions explain; `None` if the targets have none.
    pub explained: Option<f64>,
    /// Spread of the targets over hidden tokens.
    #[serde(deserialize_with = "number")]
    pub target_var: f64,
    /// Spread of the predictions.
    #[serde(deserialize_with = "number")]
    pub pred_var: f64,
}

/// See [`Line::Validation`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationLine {
    /// Completed steps.
    pub step: u64,
    /// Mean over examples.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// By name: `wer`, `accuracy`, …; undefined ones are missing.
    pub figures: BTreeMap<String, f64>,
}

/// JSON has no NaN: it is written as `null`.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Line {
    /// Completed steps when it was written.
    pub fn step(&self) -> u64 {
        match self {
            Self::Train(line) => line.step,
            Self::HeldOut(line) => line.step,
            Self::Validation(line) => line.step,
        }
    }

    /// Whether it tells of examples that the run never trains on.
    pub fn is_evaluation(&self) -> bool {
        matches!(self, Self::HeldOut(_) | Self::Validation(_))
    }

    /// Its figures by tag, as in `train/loss`; undefined ones are missing.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let named = |kind: &str, figures: &[(&str, f64)]| {
            figures.iter().map(|(name, value)| (format!("{kind}/{name}"), *value)).collect()
        };
        match self {
            Self::Train(line) => {
                let mut figures = vec![
                    ("loss", line.loss),
                    ("grad_norm", line.grad_norm),
                    ("lr", line.lr),
                    ("epoch", line.epoch),
                    ("units_per_second", line.units_per_second),
                    ("waiting", line.waiting),
                    ("bad_examples", line.bad_examples as f64),
                ];
                if let Some(line) = &line.pretraining {
                    figures.extend([
                        ("target_var", line.target_var),
                        ("pred_var", line.pred_var),
                        ("masked_share", line.masked_share),
                        ("ema_decay", line.ema_decay),
                    ]);
                }
                named("train", &figures)
            }
            Self::HeldOut(line) => {
                let mut figures = vec![("loss", line.loss)];
                figures.extend(line.explained.map(|value| ("explained", value)));
                figures.extend([("target_var", line.target_var), ("pred_var", line.pred_var)]);
                named("held_out", &figures)
            }
            Self::Validation(line) => {
                let figures = line.figures.iter().map(|(name, value)| (name.as_str(), *value));
                named(
                    "validation",
                    &[("loss", line.loss)].into_iter().chain(figures).collect::<Vec<_>>(),
                )
            }
        }
    }
}

/// An evaluation as the user sees it; of training, `Progress` shows more.
impl Display for Line {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Train(line) => write!(f, "step {}: loss {:.3}", line.step, line.loss),
            Self::HeldOut(line) => {
                let explained = line.explained.map_or("–".into(), |e| format!("{e:.3}"));
                let (target, pred) = (line.target_var, line.pred_var);
                write!(
                    f,
                    "step {}: held out: loss {:.3}, explained {explained}, var {target:.2}/{pred:.2}",
                    line.step, line.loss
                )
            }
            Self::Validation(line) => {
                write!(f, "step {}: held out: loss {:.3}", line.step, line.loss)?;
                let mut figures = line.figures.iter();
                figures.try_for_each(|(name, value)| write!(f, ", {name} {value:.4}"))
            }
        }
    }
}
