//! The rules that turn a run's metrics into issues, and the reason for each threshold.

use std::collections::{BTreeMap, VecDeque};

use super::{Check, Issue};
use crate::metrics::{HealthLine, HeldOutLine, Line, TrainLine};
use crate::report::number;

/// Target standard deviation below which targets have collapsed, whatever it was at first: constant
/// targets have 0.001. fairseq stops at 0.1 after 5,000 steps, but only where targets are
/// normalized to about 1; others may begin at 0.005 and be learned well.
const MIN_TARGET_STD: f64 = 0.002;

/// Share of the first target standard deviation below which targets have collapsed. Healthy runs
/// keep more than a third.
const MIN_TARGET_SHARE: f64 = 0.1;

/// Prediction standard deviation, as a share of that of the targets, below which predictions have
/// collapsed. fairseq stops at a tenth of this after 5,000 steps. Predictions of a model that
/// learns are means, but reach more than a tenth of the targets' standard deviation.
const MIN_PRED_SHARE: f64 = 0.02;

/// Multiple of [`MIN_PRED_SHARE`] that predictions must have reached before: those of an untrained
/// decoder hardly vary, which is no collapse.
const PRED_BEGUN: f64 = 2.0;

/// Effective rank below which features vary along one direction.
const RANK_ONE: f64 = 1.5;

/// Effective rank that features must have had before a collapse, because some data have few
/// directions. Also the rank below which features count as low-rank.
const LOW_RANK: f64 = 3.0;

/// Share of the first rank below which features count as low-rank. Tiny speech models fell from 190
/// to 5 in a few hundred steps that learned only positions, and from 100 to 20 in others that
/// learned more. So this is only a hint, and none above [`LOW_RANK`].
const MIN_RANK_SHARE: f64 = 0.1;

/// Share of its first standard deviation below which the local encoder has collapsed.
const MIN_LOCAL_SHARE: f64 = 0.01;

/// Multiple of an untrained model's loss above which the loss diverges. A rising loss alone is no
/// issue: that of speech falls, rises and stays up, because the targets become richer. But it stays
/// below that of an untrained model.
const MAX_LOSS_RATIO: f64 = 3.0;

/// Multiple of the usual gradient norm, the median of the last [`GRADIENT_WINDOW`] lines, above
/// which gradients explode.
const MAX_GRADIENT_RATIO: f64 = 20.0;

/// Lines that define the usual gradient norm.
const GRADIENT_WINDOW: usize = 50;

/// Lines needed before there is a usual gradient norm.
const MIN_GRADIENTS: usize = 5;

/// Explained variance of predictions that are no better than a constant.
const NOTHING_EXPLAINED: f64 = 0.02;

/// Steps that any model needs to learn something, however short the run.
const MIN_LEARNING_STEPS: u64 = 100;

/// Explained variance of predictions that certainly are better than a constant.
const SOMETHING_EXPLAINED: f64 = 0.1;

/// Explained content of predictions that know positions alone. Predictions of positions have errors
/// of their own, so theirs is below 0 rather than at it.
const NO_CONTENT: f64 = 0.02;

/// Explained variance that cannot come from content: masked content is never that predictable from
/// what is visible.
const MAX_EXPLAINED: f64 = 0.98;

/// A check that the newest lines failed.
struct Failing {
    since: u64,
    lines: u32,
    evidence: String,
}

/// Checks the lines of a run as they are written.
pub struct Watch {
    /// Steps of the whole run.
    steps: u64,
    /// First finite values of metrics, by name.
    first: BTreeMap<String, f64>,
    /// Largest ratio so far of the standard deviations of predictions and targets.
    max_pred_share: f64,
    /// Largest explained variance so far.
    max_explained: f64,
    gradients: VecDeque<f64>,
    failing: BTreeMap<Check, Failing>,
}

/// Checks that apply to a line, each with the evidence if it failed.
type Findings = Vec<(Check, Option<String>)>;

impl Watch {
    /// Starts before the first line of a run of `steps` steps.
    pub fn new(steps: u64) -> Self {
        Self {
            steps,
            first: BTreeMap::new(),
            max_pred_share: 0.0,
            max_explained: f64::NEG_INFINITY,
            gradients: VecDeque::new(),
            failing: BTreeMap::new(),
        }
    }

    /// Checks the next line. Returns new issues; each is returned once until it is resolved.
    pub fn update(&mut self, line: &Line) -> Vec<Issue> {
        let results = match line {
            Line::Train(line) => self.train(line),
            Line::HeldOut(line) => self.held_out(line),
            Line::Validation(line) => vec![finite(line.loss)],
            Line::Health(line) => self.health(line),
            Line::Probe(_) | Line::Action(_) => Vec::new(),
        };
        let mut issues = Vec::new();
        for (check, evidence) in results {
            let Some(evidence) = evidence else {
                self.failing.remove(&check);
                continue;
            };
            let new = Failing { since: line.step(), lines: 0, evidence: String::new() };
            let failing = self.failing.entry(check).or_insert(new);
            failing.lines += 1;
            failing.evidence = format!("{evidence}, since step {}", failing.since);
            if failing.lines == check.patience() {
                let (evidence, since) = (failing.evidence.clone(), failing.since);
                issues.push(Issue { check, evidence, since });
            }
        }
        issues
    }

    /// Returns the issues that are not resolved.
    pub fn active(&self) -> Vec<Issue> {
        let active =
            self.failing.iter().filter(|(check, failing)| failing.lines >= check.patience());
        active
            .map(|(&check, failing)| Issue {
                check,
                evidence: failing.evidence.clone(),
                since: failing.since,
            })
            .collect()
    }

    /// Returns whether predictions vary or have varied; before that, little can be said.
    pub fn has_begun(&self) -> bool {
        self.max_pred_share >= PRED_BEGUN * MIN_PRED_SHARE
    }

    /// Returns the first value of a metric, which is `value` if there was none.
    fn first(&mut self, name: &str, value: f64) -> f64 {
        if value.is_finite() {
            return *self.first.entry(name.to_owned()).or_insert(value);
        }
        self.first.get(name).copied().unwrap_or(value)
    }

    fn train(&mut self, line: &TrainLine) -> Findings {
        let target_std = line.pretraining.as_ref().map(|line| line.target_std);
        let mut results = vec![finite(line.loss), self.diverging(line.loss, target_std)];
        results.push((Check::Gradient, self.exploding(line.grad_norm)));
        if let Some(line) = &line.pretraining {
            results.extend(self.collapse(line.target_std, line.pred_std));
        }
        results
    }

    fn held_out(&mut self, line: &HeldOutLine) -> Findings {
        let mut results = vec![finite(line.loss)];
        if line.step == 0 {
            self.first("loss", line.loss);
        }
        results.extend(self.collapse(line.target_std, line.pred_std));
        if let Some(explained) = line.explained_variance {
            self.max_explained = self.max_explained.max(explained);
            let best = self.max_explained;
            let evidence = format!("explained variance is {}", number(explained));
            let is_late = line.step >= MIN_LEARNING_STEPS.max(self.steps / 2);
            let nothing_learned = best < NOTHING_EXPLAINED && is_late;
            let forgetting = best > SOMETHING_EXPLAINED && explained < NOTHING_EXPLAINED;
            results.extend([
                (
                    Check::NothingLearned,
                    nothing_learned.then(|| format!("{evidence}, at most {} so far", number(best))),
                ),
                (
                    Check::Forgetting,
                    forgetting.then(|| format!("{evidence}, down from {}", number(best))),
                ),
                (Check::TooEasy, (explained > MAX_EXPLAINED).then_some(evidence.clone())),
            ]);
            if let Some(content) = line.explained_content {
                let positions_only =
                    is_late && explained > SOMETHING_EXPLAINED && content < NO_CONTENT;
                let evidence = || format!("{evidence}, but explained content {}", number(content));
                results.push((Check::PositionsOnly, positions_only.then(evidence)));
            }
        }
        results
    }

    /// Checks effective ranks. They show a collapse of the student some ten lines before the
    /// standard deviations, which follow the slow teacher.
    fn health(&mut self, line: &HealthLine) -> Findings {
        let metric = |name: &str| line.metrics.get(name).copied();
        let mut results: Findings =
            self.local(metric("local_rank"), metric("local_std")).into_iter().collect();
        let (mut blocks, mut low) = (Vec::new(), Vec::new());
        let ranks = line
            .metrics
            .iter()
            .filter_map(|(name, rank)| Some((name.strip_suffix("_rank")?, *rank)));
        for (layer, rank) in ranks {
            let first = self.first(layer, rank);
            let is_rank_one = rank < RANK_ONE && first > LOW_RANK;
            let evidence = || {
                format!(
                    "effective rank of {} is {}, at first {}",
                    layer.replace('_', " "),
                    number(rank),
                    number(first)
                )
            };
            match layer {
                "target" => results.push((Check::TargetRank, is_rank_one.then(evidence))),
                _ if layer.starts_with("block_") => {
                    blocks.push((rank / first, is_rank_one.then(evidence)));
                }
                _ => {}
            }
            if !is_rank_one && rank < LOW_RANK.min(MIN_RANK_SHARE * first) {
                low.push((rank / first, Some(evidence())));
            }
        }
        if !blocks.is_empty() {
            blocks.retain(|(_, evidence)| evidence.is_some());
            results.push((Check::Features, worst(blocks)));
        }
        results.push((Check::LowRank, worst(low)));
        results
    }

    /// Checks the output of the local encoder by itself: the norms above it hide its collapse,
    /// because they rescale what little variation is left.
    fn local(&mut self, rank: Option<f64>, std: Option<f64>) -> Option<(Check, Option<String>)> {
        let mut evidence = None;
        if let Some(rank) = rank {
            let first = self.first("local", rank);
            if rank < RANK_ONE && first > LOW_RANK {
                evidence = Some(format!(
                    "effective rank of its output is {}, at first {}",
                    number(rank),
                    number(first)
                ));
            }
        }
        if let Some(std) = std {
            let first = self.first("local_std", std);
            if std < MIN_LOCAL_SHARE * first {
                evidence = Some(format!(
                    "standard deviation of its output is {}, at first {}",
                    number(std),
                    number(first)
                ));
            }
        }
        (rank.is_some() || std.is_some()).then_some((Check::LocalEncoder, evidence))
    }

    /// Checks the standard deviations of targets and predictions. They show a collapse that the
    /// loss hides: it falls as they shrink.
    fn collapse(&mut self, target: f64, prediction: f64) -> Findings {
        let first = self.first("target_std", target);
        let flat = target < MIN_TARGET_STD.max(MIN_TARGET_SHARE * first);
        let targets =
            flat.then(|| format!("target_std is {}, at first {}", number(target), number(first)));
        // Beside collapsed targets, collapsed predictions are right.
        let share = if flat { f64::NAN } else { prediction / target };
        self.max_pred_share = self.max_pred_share.max(share);
        let predictions = (share < MIN_PRED_SHARE && self.has_begun()).then(|| {
            format!("pred_std is {}, target_std is {}", number(prediction), number(target))
        });
        vec![(Check::Targets, targets), (Check::Predictions, predictions)]
    }

    /// Checks the loss. It may grow with the square of the targets' standard deviation.
    fn diverging(&mut self, loss: f64, target_std: Option<f64>) -> (Check, Option<String>) {
        let first = self.first("loss", loss);
        let growth = target_std.map_or(1.0, |std| std / self.first("target_std", std));
        let is_diverging = loss > MAX_LOSS_RATIO * first * growth.powi(2).max(1.0);
        let evidence =
            is_diverging.then(|| format!("loss is {}, at first {}", number(loss), number(first)));
        (Check::Diverging, evidence)
    }

    fn exploding(&mut self, norm: f64) -> Option<String> {
        let mut sorted: Vec<f64> = self.gradients.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let usual = (sorted.len() >= MIN_GRADIENTS).then(|| sorted[sorted.len() / 2]);
        let exceeded = usual.filter(|usual| norm > MAX_GRADIENT_RATIO * usual);
        // Outliers must not become usual.
        if norm.is_finite() && exceeded.is_none() {
            self.gradients.push_back(norm);
            if self.gradients.len() > GRADIENT_WINDOW {
                self.gradients.pop_front();
            }
        }
        exceeded
            .map(|usual| format!("gradient norm is {}, usually {}", number(norm), number(usual)))
    }
}

fn finite(loss: f64) -> (Check, Option<String>) {
    (Check::NotFinite, (!loss.is_finite()).then(|| "loss is NaN or infinite".to_owned()))
}

/// Returns the evidence with the smallest value, with the number of other layers that have some.
fn worst(mut layers: Vec<(f64, Option<String>)>) -> Option<String> {
    layers.sort_by(|a, b| a.0.total_cmp(&b.0));
    let others = layers.len().saturating_sub(1);
    let worst = layers.into_iter().next()?.1?;
    Some(match others {
        0 => worst,
        1 => format!("{worst} (and 1 other layer)"),
        _ => format!("{worst} (and {others} other layers)"),
    })
}
