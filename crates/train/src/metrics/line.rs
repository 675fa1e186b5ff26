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
    /// What the model's insides look like.
    Health(HealthLine),
    /// What nearest neighbours tell of classes by the features.
    Probe(ProbeLine),
    /// Something that was done because training did not go as it should.
    Action(ActionLine),
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
    /// How many of these there are.
    #[serde(skip)]
    pub weight: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Share of the steps whose gradient was longer than `train.clip_norm`; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped: Option<f64>,
    /// Of the last step.
    pub lr: f64,
    /// What pretraining tells besides.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub pretraining: Option<Pretraining>,
    /// Units of data (seconds of audio, …) a second.
    pub units_per_second: f64,
    /// Share of the time that the model waited for data.
    pub waiting: f64,
    /// Seconds that each part of a step took, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, f64>,
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

/// See [`Line::Health`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthLine {
    /// Completed steps.
    pub step: u64,
    /// By name: `target_rank`, `student_norm`, …; undefined ones are missing.
    pub figures: BTreeMap<String, f64>,
}

/// See [`Line::Probe`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeLine {
    /// Completed steps.
    pub step: u64,
    /// Neighbours that vote.
    pub k: usize,
    /// Share of the examples that they get right.
    pub accuracy: f64,
    /// Share that is of the most frequent class.
    pub chance: f64,
}

/// See [`Line::Action`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionLine {
    /// Completed steps that training stands at after it.
    pub step: u64,
    /// What was done.
    pub action: Action,
    /// Why, in one line.
    pub reason: String,
    /// What the schedule's learning rates are multiplied by from here on, if that was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_scale: Option<f64>,
    /// Of a roll-back: completed steps that training stood at before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

/// See [`ActionLine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing but to say so.
    Warn,
    /// A step that would not have been finite was not taken.
    Skip,
    /// The learning rate is lower from here on.
    LowerLr,
    /// Training stands at an earlier checkpoint again.
    RollBack,
    /// Training ended.
    Stop,
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
            Self::Health(line) => line.step,
            Self::Probe(line) => line.step,
            Self::Action(line) => line.step,
        }
    }

    /// Whether it tells of examples that the run never trains on.
    pub fn is_evaluation(&self) -> bool {
        matches!(self, Self::HeldOut(_) | Self::Validation(_))
    }

    /// Its figures by tag, as in `train/loss`; undefined ones are missing.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let named = |kind: &str, figures: &[(&str, f64)]| -> Vec<(String, f64)> {
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
                figures.extend(line.clipped.map(|share| ("clipped", share)));
                if let Some(line) = &line.pretraining {
                    figures.extend([
                        ("target_var", line.target_var),
                        ("pred_var", line.pred_var),
                        ("masked_share", line.masked_share),
                        ("ema_decay", line.ema_decay),
                    ]);
                }
                let phases = line.phases.iter();
                let phases = phases.map(|(name, value)| (format!("train/phases/{name}"), *value));
                named("train", &figures).into_iter().chain(phases).collect()
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
            Self::Health(line) => {
                let figures = line.figures.iter();
                figures.map(|(name, value)| (format!("health/{name}"), *value)).collect()
            }
            Self::Probe(line) => {
                named("probe", &[("accuracy", line.accuracy), ("chance", line.chance)])
            }
            Self::Action(_) => Vec::new(),
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
            Self::Health(line) => {
                write!(f, "step {}: health:", line.step)?;
                let mut figures = line.figures.iter();
                figures.try_for_each(|(name, value)| write!(f, " {name} {value:.4}"))
            }
            Self::Probe(ProbeLine { step, k, accuracy, chance }) => {
                let [right, always] = [accuracy, chance].map(|share| 100.0 * share);
                write!(
                    f,
                    "step {step}: probe: {right:.1} % by {k} neighbours, chance {always:.1} %"
                )
            }
            Self::Action(ActionLine { step, action, reason, from, .. }) => {
                let from = from.map_or(String::new(), |from| format!(" from step {from}"));
                write!(f, "step {step}: {action}{from}: {reason}")
            }
        }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warn => "warning",
            Self::Skip => "skipped",
            Self::LowerLr => "lowered the learning rate",
            Self::RollBack => "rolled back",
            Self::Stop => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written_and_so_are_old_ones() {
        let lines = [
            r#"{"kind":"train","step":20,"epoch":0.5,"loss":4.5,"grad_norm":null,"clipped":0.25,"lr":0.0003,"target_var":0.7,"pred_var":0.2,"masked_share":0.5,"ema_decay":0.998,"units_per_second":64.0,"waiting":0.01,"bad_examples":0}"#,
            r#"{"kind":"health","step":20,"figures":{"student_norm":31.5,"target_rank":17.25}}"#,
            r#"{"kind":"probe","step":20,"k":10,"accuracy":0.75,"chance":0.125}"#,
            r#"{"kind":"action","step":20,"action":"roll_back","reason":"collapse","lr_scale":0.5,"from":28}"#,
            r#"{"kind":"action","step":20,"action":"warn","reason":"collapse"}"#,
        ];
        for text in lines {
            let line: Line = serde_json::from_str(text).expect("a line");
            assert_eq!(line.step(), 20);
            assert_eq!(serde_json::to_string(&line).expect("text"), text);
        }
        let roll_back: Line = serde_json::from_str(lines[3]).expect("a line");
        assert_eq!(roll_back.to_string(), "step 20: rolled back from step 28: collapse");
    }
}
