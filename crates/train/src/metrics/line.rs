//! The lines of `metrics.jsonl`.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Deserializer, Serialize};

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// Means over the steps since the last such line.
    Train(TrainLine),
    /// Evaluation on held-out examples, without dropout.
    HeldOut(HeldOutLine),
    /// Evaluation of fine-tuning on held-out labelled examples.
    Validation(ValidationLine),
    /// Effective ranks and norms of the model.
    Health(HealthLine),
    /// Accuracy of nearest neighbours on frozen features.
    Probe(ProbeLine),
    /// An action of recovery.
    Action(ActionLine),
}

/// Means over training steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainLine {
    /// Completed steps.
    pub step: u64,
    /// Passes over the data.
    pub epoch: f64,
    /// Mean loss over masked tokens, or over labelled examples.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Number of tokens or examples that `loss` is a mean over.
    #[serde(skip)]
    pub weight: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Share of the steps whose gradient norm exceeded `train.clip_norm`; absent without clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Metrics of pretraining only.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub pretraining: Option<Pretraining>,
    /// Units of data (seconds of audio, tokens, images) per second.
    pub units_per_second: f64,
    /// Share of the time spent waiting for data.
    pub waiting: f64,
    /// Seconds per step of each part of a step, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, f64>,
    /// Unusable examples found so far.
    pub bad_examples: usize,
}

/// Metrics of pretraining steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pretraining {
    /// Standard deviation of the targets over masked tokens.
    #[serde(deserialize_with = "number")]
    pub target_std: f64,
    /// Standard deviation of the predictions over masked tokens.
    #[serde(deserialize_with = "number")]
    pub pred_std: f64,
    /// Share of masked tokens.
    pub masked_share: f64,
    /// Teacher decay of the last step.
    pub ema_decay: f64,
}

/// An evaluation of pretraining.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOutLine {
    /// Completed steps.
    pub step: u64,
    /// Mean loss over masked tokens.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Share of the targets' variance that predictions explain (R²); `None` if the targets are
    /// constant.
    pub explained_variance: Option<f64>,
    /// Share of the targets' variance that the mean target at each position explains.
    pub explained_by_position: Option<f64>,
    /// Share of the targets' variance within positions that predictions explain; `None` if targets
    /// depend on the position alone.
    pub explained_content: Option<f64>,
    /// Standard deviation of the targets over masked tokens.
    #[serde(deserialize_with = "number")]
    pub target_std: f64,
    /// Standard deviation of the predictions over masked tokens.
    #[serde(deserialize_with = "number")]
    pub pred_std: f64,
}

/// An evaluation of fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationLine {
    /// Completed steps.
    pub step: u64,
    /// Mean loss over examples.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Metrics of the task by name: `wer`, `accuracy`, …; undefined ones are missing.
    pub metrics: BTreeMap<String, f64>,
}

/// Health metrics of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthLine {
    /// Completed steps.
    pub step: u64,
    /// Metrics by name: `target_rank`, `student_norm`, …; undefined ones are missing.
    pub metrics: BTreeMap<String, f64>,
}

/// An evaluation of a k-NN probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeLine {
    /// Completed steps.
    pub step: u64,
    /// Number of neighbours that vote.
    pub k: usize,
    /// Share of correctly classified examples.
    pub accuracy: f64,
    /// Accuracy of always answering the most frequent class.
    pub chance: f64,
}

/// An action of recovery and its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionLine {
    /// Completed steps after the action.
    pub step: u64,
    /// The action.
    pub action: Action,
    /// The reason, in one line.
    pub reason: String,
    /// New factor of the schedule's learning rates, if it was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_scale: Option<f64>,
    /// Completed steps before a roll-back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

/// What recovery does about a failing run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Logged a warning only.
    Warn,
    /// Skipped a step whose loss or gradient was not finite.
    Skip,
    /// Lowered the learning rate from here on.
    LowerLr,
    /// Restored an earlier checkpoint.
    RollBack,
    /// Ended training.
    Stop,
}

/// Reads `null` as NaN, which JSON lacks.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Line {
    /// Returns the number of completed steps when the line was written.
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

    /// Returns whether the line is an evaluation on held-out examples.
    pub fn is_evaluation(&self) -> bool {
        matches!(self, Self::HeldOut(_) | Self::Validation(_))
    }

    /// Returns the metrics of the line by tag, as in `train/loss`; undefined ones are missing.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let named = |kind: &str, metrics: &[(&str, f64)]| -> Vec<(String, f64)> {
            metrics.iter().map(|(name, value)| (format!("{kind}/{name}"), *value)).collect()
        };
        match self {
            Self::Train(line) => {
                let mut metrics = vec![
                    ("loss", line.loss),
                    ("grad_norm", line.grad_norm),
                    ("lr", line.lr),
                    ("epoch", line.epoch),
                    ("units_per_second", line.units_per_second),
                    ("waiting", line.waiting),
                    ("bad_examples", line.bad_examples as f64),
                ];
                metrics.extend(line.clipped.map(|share| ("clipped", share)));
                if let Some(line) = &line.pretraining {
                    metrics.extend([
                        ("target_std", line.target_std),
                        ("pred_std", line.pred_std),
                        ("masked_share", line.masked_share),
                        ("ema_decay", line.ema_decay),
                    ]);
                }
                let phases = line.phases.iter();
                let phases = phases.map(|(name, value)| (format!("train/phases/{name}"), *value));
                named("train", &metrics).into_iter().chain(phases).collect()
            }
            Self::HeldOut(line) => {
                let mut metrics = vec![("loss", line.loss)];
                let explained = [
                    ("explained_content", line.explained_content),
                    ("explained_by_position", line.explained_by_position),
                    ("explained_variance", line.explained_variance),
                ];
                metrics.extend(explained.into_iter().filter_map(|(name, v)| Some((name, v?))));
                metrics.extend([("target_std", line.target_std), ("pred_std", line.pred_std)]);
                named("held_out", &metrics)
            }
            Self::Validation(line) => {
                let metrics = line.metrics.iter().map(|(name, value)| (name.as_str(), *value));
                named(
                    "validation",
                    &[("loss", line.loss)].into_iter().chain(metrics).collect::<Vec<_>>(),
                )
            }
            Self::Health(line) => {
                let metrics = line.metrics.iter();
                metrics.map(|(name, value)| (format!("health/{name}"), *value)).collect()
            }
            Self::Probe(line) => {
                named("probe", &[("accuracy", line.accuracy), ("chance", line.chance)])
            }
            Self::Action(_) => Vec::new(),
        }
    }
}

/// Formats the line for the terminal.
impl Display for Line {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Train(line) => write!(f, "step {}: loss {:.3}", line.step, line.loss),
            Self::HeldOut(line) => {
                let number = |value: Option<f64>| value.map_or("–".into(), |v| format!("{v:.3}"));
                let content = number(line.explained_content);
                let explained = number(line.explained_variance);
                let by_position = number(line.explained_by_position);
                let (target, pred) = (line.target_std, line.pred_std);
                write!(
                    f,
                    "step {}: held out: loss {:.3}, explained content {content}, explained variance {explained} (positions alone {by_position}), target_std {target:.2}, pred_std {pred:.2}",
                    line.step, line.loss
                )
            }
            Self::Validation(line) => {
                write!(f, "step {}: held out: loss {:.3}", line.step, line.loss)?;
                let mut metrics = line.metrics.iter();
                metrics.try_for_each(|(name, value)| write!(f, ", {name} {value:.4}"))
            }
            Self::Health(line) => {
                write!(f, "step {}: health:", line.step)?;
                let mut metrics = line.metrics.iter();
                metrics.try_for_each(|(name, value)| write!(f, " {name} {value:.4}"))
            }
            Self::Probe(ProbeLine { step, k, accuracy, chance }) => {
                let [right, always] = [accuracy, chance].map(|share| 100.0 * share);
                write!(
                    f,
                    "step {step}: probe: accuracy {right:.1} % with {k} neighbours, chance {always:.1} %"
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
    fn lines_survive_a_round_trip() {
        let lines = [
            r#"{"kind":"train","step":20,"epoch":0.5,"loss":4.5,"grad_norm":null,"clipped":0.25,"lr":0.0003,"target_std":0.7,"pred_std":0.2,"masked_share":0.5,"ema_decay":0.998,"units_per_second":64.0,"waiting":0.01,"bad_examples":0}"#,
            r#"{"kind":"health","step":20,"metrics":{"student_norm":31.5,"target_rank":17.25}}"#,
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
