//! The rules by which a run's figures are signs of trouble, and why each is as it is.

use std::collections::{BTreeMap, VecDeque};

use super::{Sign, Symptom};
use crate::metrics::{HealthLine, HeldOutLine, Line, TrainLine};
use crate::page::number;

/// Targets that vary so little are equal, whatever they did at first: the spread of constant ones is 0.001. fairseq
/// stops at 0.1, after 5,000 steps, but only where targets are normalised to vary by about 1; those that are
/// not may begin at 0.005 and be learned well.
const FLAT: f64 = 0.002;

/// Share of the spread at the start below which targets have collapsed. Healthy runs keep more than a third.
const SHRUNK: f64 = 0.1;

/// Share of the targets' spread below which predictions are equal. fairseq stops at a tenth of this,
/// after 5,000 steps; predictions of a model that learns are means, but vary by more than a tenth of the targets.
const MUTE: f64 = 0.02;

/// Times [`MUTE`] that predictions must have varied by before: those of an untrained decoder hardly vary, and that
/// is no collapse.
const SPOKEN: f64 = 2.0;

/// Effective rank of what varies along one line.
const LINE: f64 = 1.5;

/// Effective rank that it must have had before: some data have few directions. Also the one below which features
/// vary in few.
const SPACE: f64 = 3.0;

/// Share of the rank at the start that features with few directions have lost most of. Tiny models of speech fell from
/// 190 to 5 in a few hundred steps that learned only places, from 100 to 20 in others that learned more, so this is
/// never more than a hint, and none above [`SPACE`].
const FEW: f64 = 0.1;

/// Share of its spread at the start below which the local encoder is silent.
const SILENT: f64 = 0.01;

/// Times the loss of an untrained model. A loss that rises is no sign in itself: that of speech falls, rises and stays
/// up, since the targets become richer. But it stays below that of a model that knows nothing.
const ABOVE: f64 = 3.0;

/// Times the usual gradient, which is the median of the last [`GRADIENTS`] lines.
const STEEP: f64 = 20.0;

/// Lines that tell what is usual, and how many of them suffice.
const GRADIENTS: usize = 50;
const ENOUGH: usize = 5;

/// Explained variance of predictions that are no better than a constant.
const NOTHING: f64 = 0.02;

/// Steps that any model needs to learn something, however short the run.
const LEARNING: u64 = 100;

/// And of those that certainly were.
const SOMETHING: f64 = 0.1;

/// And of those that cannot come from content: what is hidden is never known so well from what is left.
const ALL: f64 = 0.98;

/// A sign that lines show.
struct Shown {
    since: u64,
    lines: u32,
    evidence: String,
}

/// Reads a run's lines as they come.
pub struct Watch {
    /// Steps of the whole run.
    steps: u64,
    /// What figures were at first, by name.
    first: BTreeMap<String, f64>,
    /// The largest share of the targets' spread that predictions have had.
    spoken: f64,
    /// The largest share of the targets' variance that was explained.
    explained: f64,
    gradients: VecDeque<f64>,
    shown: BTreeMap<Sign, Shown>,
}

/// Signs that a line can show, and the evidence if it does.
type Findings = Vec<(Sign, Option<String>)>;

impl Watch {
    /// Of a run of so many steps, from its first line on.
    pub fn new(steps: u64) -> Self {
        Self {
            steps,
            first: BTreeMap::new(),
            spoken: 0.0,
            explained: f64::NEG_INFINITY,
            gradients: VecDeque::new(),
            shown: BTreeMap::new(),
        }
    }

    /// What is newly wrong after this line. Each sign is told once, until it has gone away.
    pub fn see(&mut self, line: &Line) -> Vec<Symptom> {
        let findings = match line {
            Line::Train(line) => self.train(line),
            Line::HeldOut(line) => self.held_out(line),
            Line::Validation(line) => vec![finite(line.loss)],
            Line::Health(line) => self.health(line),
            Line::Probe(_) | Line::Action(_) => Vec::new(),
        };
        let mut news = Vec::new();
        for (sign, evidence) in findings {
            let Some(evidence) = evidence else {
                self.shown.remove(&sign);
                continue;
            };
            let new = Shown { since: line.step(), lines: 0, evidence: String::new() };
            let shown = self.shown.entry(sign).or_insert(new);
            shown.lines += 1;
            shown.evidence = format!("{evidence}, since step {}", shown.since);
            if shown.lines == sign.patience() {
                news.push(Symptom { sign, evidence: shown.evidence.clone(), since: shown.since });
            }
        }
        news
    }

    /// What is wrong now.
    pub fn present(&self) -> Vec<Symptom> {
        let shown = self.shown.iter().filter(|(sign, shown)| shown.lines >= sign.patience());
        shown
            .map(|(&sign, shown)| Symptom {
                sign,
                evidence: shown.evidence.clone(),
                since: shown.since,
            })
            .collect()
    }

    /// Whether predictions vary, or have done so: before, little can be told.
    pub fn has_begun(&self) -> bool {
        self.spoken >= SPOKEN * MUTE
    }

    /// The figure's first value, which this is if there was none.
    fn first(&mut self, name: &str, value: f64) -> f64 {
        if value.is_finite() {
            return *self.first.entry(name.to_owned()).or_insert(value);
        }
        self.first.get(name).copied().unwrap_or(value)
    }

    fn train(&mut self, line: &TrainLine) -> Findings {
        let spread = line.pretraining.as_ref().map(|line| line.target_var);
        let mut findings = vec![finite(line.loss), self.diverging(line.loss, spread)];
        findings.push((Sign::Gradient, self.steep(line.grad_norm)));
        if let Some(line) = &line.pretraining {
            findings.extend(self.spreads(line.target_var, line.pred_var));
        }
        findings
    }

    fn held_out(&mut self, line: &HeldOutLine) -> Findings {
        let mut findings = vec![finite(line.loss)];
        if line.step == 0 {
            self.first("loss", line.loss);
        }
        findings.extend(self.spreads(line.target_var, line.pred_var));
        if let Some(explained) = line.explained {
            self.explained = self.explained.max(explained);
            let best = self.explained;
            let of = number(explained);
            findings.push((
                Sign::Unlearned,
                (best < NOTHING && line.step >= LEARNING.max(self.steps / 2))
                    .then(|| format!("{of} of the targets' variance is explained, never more")),
            ));
            findings.push((
                Sign::Unlearning,
                (best > SOMETHING && explained < NOTHING).then(|| {
                    format!("{of} of the targets' variance is explained, once {}", number(best))
                }),
            ));
            findings.push((
                Sign::TooEasy,
                (explained > ALL).then(|| format!("{of} of the targets' variance is explained")),
            ));
        }
        findings
    }

    /// Ranks tell a collapse of the student some ten lines before spreads do, which follow the slow teacher.
    fn health(&mut self, line: &HealthLine) -> Findings {
        let figure = |name: &str| line.figures.get(name).copied();
        let mut findings: Findings =
            self.local(figure("local_rank"), figure("local_var")).into_iter().collect();
        let (mut blocks, mut few) = (Vec::new(), Vec::new());
        let ranks = line
            .figures
            .iter()
            .filter_map(|(name, rank)| Some((name.strip_suffix("_rank")?, *rank)));
        for (place, rank) in ranks {
            let first = self.first(place, rank);
            let is_line = rank < LINE && first > SPACE;
            let tell = || {
                format!(
                    "{} varies in {} directions, at first in {}",
                    place.replace('_', " "),
                    number(rank),
                    number(first)
                )
            };
            match place {
                "target" => findings.push((Sign::TargetRank, is_line.then(tell))),
                _ if place.starts_with("block_") => blocks.push((rank / first, is_line.then(tell))),
                _ => {}
            }
            if !is_line && rank < SPACE.min(FEW * first) {
                few.push((rank / first, Some(tell())));
            }
        }
        if !blocks.is_empty() {
            blocks.retain(|(_, evidence)| evidence.is_some());
            findings.push((Sign::Features, worst(blocks)));
        }
        findings.push((Sign::FewDirections, worst(few)));
        findings
    }

    /// Collapse of the local encoder alone hides from the rest: norms above it blow up what little is left. So its
    /// own output is looked at, by spread and by rank.
    fn local(&mut self, rank: Option<f64>, spread: Option<f64>) -> Option<(Sign, Option<String>)> {
        let mut evidence = None;
        if let Some(rank) = rank {
            let first = self.first("local", rank);
            if rank < LINE && first > SPACE {
                evidence = Some(format!(
                    "its output varies in {} directions, at first in {}",
                    number(rank),
                    number(first)
                ));
            }
        }
        if let Some(spread) = spread {
            let first = self.first("local_var", spread);
            if spread < SILENT * first {
                evidence = Some(format!(
                    "its output varies by {}, at first by {}",
                    number(spread),
                    number(first)
                ));
            }
        }
        (rank.is_some() || spread.is_some()).then_some((Sign::LocalEncoder, evidence))
    }

    /// Of targets and predictions, whose spread tells a collapse that the loss hides: it falls as they shrink.
    fn spreads(&mut self, target: f64, prediction: f64) -> Findings {
        let first = self.first("target_var", target);
        let flat = target < FLAT.max(SHRUNK * first);
        let targets = flat
            .then(|| format!("targets vary by {}, at first by {}", number(target), number(first)));
        // Beside flat targets flat predictions are right, and no other trouble.
        let share = if flat { f64::NAN } else { prediction / target };
        self.spoken = self.spoken.max(share);
        let mute = share < MUTE && self.has_begun();
        let predictions = mute.then(|| {
            format!(
                "predictions hardly vary: {} of the targets' {}",
                number(prediction),
                number(target)
            )
        });
        vec![(Sign::Targets, targets), (Sign::Predictions, predictions)]
    }

    /// Where `spread` of the targets grows, the loss may grow with its square.
    fn diverging(&mut self, loss: f64, spread: Option<f64>) -> (Sign, Option<String>) {
        let first = self.first("loss", loss);
        let grown = spread.map_or(1.0, |spread| spread / self.first("target_var", spread));
        let above = loss > ABOVE * first * grown.powi(2).max(1.0);
        let evidence =
            above.then(|| format!("the loss is {}, at first {}", number(loss), number(first)));
        (Sign::Diverging, evidence)
    }

    fn steep(&mut self, norm: f64) -> Option<String> {
        let mut sorted: Vec<f64> = self.gradients.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let usual = (sorted.len() >= ENOUGH).then(|| sorted[sorted.len() / 2]);
        let steep = usual.filter(|usual| norm > STEEP * usual);
        // What is not usual shall not become so.
        if norm.is_finite() && steep.is_none() {
            self.gradients.push_back(norm);
            if self.gradients.len() > GRADIENTS {
                self.gradients.pop_front();
            }
        }
        steep.map(|usual| {
            format!("the gradient's norm is {}, usually {}", number(norm), number(usual))
        })
    }
}

fn finite(loss: f64) -> (Sign, Option<String>) {
    (Sign::NotFinite, (!loss.is_finite()).then(|| "the loss is not a number".to_owned()))
}

/// Of evidence from several places that with the smallest figure, which stands for all.
fn worst(mut places: Vec<(f64, Option<String>)>) -> Option<String> {
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    let others = places.len().saturating_sub(1);
    let worst = places.into_iter().next()?.1?;
    Some(match others {
        0 => worst,
        1 => format!("{worst}, and another place is like it"),
        _ => format!("{worst}, and {others} more places are like it"),
    })
}
