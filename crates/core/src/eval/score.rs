//! Evaluation metrics: edit distances, confusion matrices, top-k accuracy, correlations.
//!
//! An undefined metric is `None`, never a placeholder number.

use std::ops::AddAssign;

use ndarray::{Array2, ArrayView2};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Edit counts between references and hypotheses; add up the counts of several pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Number of substituted symbols.
    pub substitutions: usize,
    /// Number of symbols only in the hypothesis.
    pub insertions: usize,
    /// Number of symbols only in the reference.
    pub deletions: usize,
    /// Length of the reference.
    pub reference: usize,
}

impl Edits {
    /// Returns the total number of edits, the Levenshtein distance.
    pub fn errors(&self) -> usize {
        self.substitutions + self.insertions + self.deletions
    }

    /// Returns the error rate, errors per symbol of the reference; `None` without a reference.
    ///
    /// Insertions can raise it above 1.
    pub fn rate(&self) -> Option<f64> {
        (self.reference > 0).then(|| self.errors() as f64 / self.reference as f64)
    }
}

impl AddAssign for Edits {
    fn add_assign(&mut self, other: Self) {
        self.substitutions += other.substitutions;
        self.insertions += other.insertions;
        self.deletions += other.deletions;
        self.reference += other.reference;
    }
}

/// Counts the edits of a minimal alignment of `reference` and `hypothesis`.
///
/// Of several minimal alignments it takes one with the most substitutions, so that the counts are
/// unique. Takes O(length × errors) time and O(length) memory.
pub fn edits<T: PartialEq>(reference: &[T], hypothesis: &[T]) -> Edits {
    let equal = |(a, b): &(&T, &T)| a == b;
    let start = reference.iter().zip(hypothesis).take_while(equal).count();
    let (a, b) = (&reference[start..], &hypothesis[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(equal).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);

    // An alignment with at most `band` errors stays within `band` symbols of the diagonal.
    let mut band = a.len().abs_diff(b.len()).max(16);
    let (errors, insertions) = loop {
        let (errors, insertions) = align(a, b, band);
        if errors <= band {
            break (errors, insertions);
        }
        band *= 2;
    };
    let deletions = insertions + a.len() - b.len();
    let substitutions = errors - insertions - deletions;
    Edits { substitutions, insertions, deletions, reference: reference.len() }
}

/// Returns errors and insertions of the best alignment within `band` symbols of the diagonal.
fn align<T: PartialEq>(a: &[T], b: &[T], band: usize) -> (usize, usize) {
    // Errors in the upper half, insertions in the lower: the minimum has the fewest errors, then
    // the fewest insertions and so the fewest deletions, as their difference is fixed by the
    // lengths.
    const EDIT: u64 = 1 << 32;
    const UNREACHABLE: u64 = u64::MAX >> 1;
    // (b.len() + 1): costs of aligning a prefix of `a` with each prefix of `b`
    let start = |j: usize| if j <= band { j as u64 * (EDIT + 1) } else { UNREACHABLE };
    let mut row: Vec<u64> = (0..=b.len()).map(start).collect();
    for (i, x) in (1_usize..).zip(a) {
        let (first, last) = (i.saturating_sub(band), b.len().min(i + band));
        let (mut diagonal, mut left) = match first {
            0 => (std::mem::replace(&mut row[0], i as u64 * EDIT), i as u64 * EDIT),
            _ => (row[first - 1], UNREACHABLE),
        };
        for j in first.max(1)..=last {
            let substituted = diagonal + if *x == b[j - 1] { 0 } else { EDIT };
            diagonal = row[j];
            left = substituted.min(left + EDIT + 1).min(row[j] + EDIT);
            row[j] = left;
        }
    }
    let best = row[b.len()];
    ((best / EDIT) as usize, (best % EDIT) as usize)
}

/// A confusion matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    counts: Array2<u64>,
}

impl Confusion {
    /// Creates an empty matrix of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { counts: Array2::zeros([classes, classes]) }
    }

    /// Counts one prediction.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if a class is out of range.
    pub fn add(&mut self, target: usize, predicted: usize) -> Result<()> {
        let classes = self.classes();
        let count = self
            .counts
            .get_mut([target, predicted])
            .ok_or_else(|| Error::Input(format!("class {} of {classes}", target.max(predicted))))?;
        *count += 1;
        Ok(())
    }

    /// Returns the number of classes.
    pub fn classes(&self) -> usize {
        self.counts.nrows()
    }

    /// Returns the counts `(C, C)`; rows are targets, columns predictions.
    pub fn counts(&self) -> &Array2<u64> {
        &self.counts
    }

    /// Returns the number of predictions.
    pub fn total(&self) -> u64 {
        self.counts.sum()
    }

    /// Returns the fraction of correct predictions; `None` without predictions.
    pub fn accuracy(&self) -> Option<f64> {
        ratio(self.counts.diag().sum(), self.total())
    }

    /// Returns the F1 of `class`, 0 without true positives; `None` if it has neither targets nor
    /// predictions. The F1 of GLUE is that of class 1.
    pub fn f1(&self, class: usize) -> Option<f64> {
        ratio(2 * self.true_positives(class), self.predicted(class) + self.targets(class))
    }

    /// Returns the mean [`f1`](Self::f1) of the classes that have one; `None` without predictions.
    pub fn macro_f1(&self) -> Option<f64> {
        let all: Vec<f64> = (0..self.classes()).filter_map(|class| self.f1(class)).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }

    /// Returns Matthews' correlation coefficient in `[-1, 1]`; `None` without predictions.
    ///
    /// 0 if all targets or all predictions are of one class, as in GLUE.
    pub fn matthews(&self) -> Option<f64> {
        let total = self.total() as f64;
        let correct = self.counts.diag().sum() as f64;
        let (mut both, mut targets, mut predictions) = (0.0, 0.0, 0.0);
        for class in 0..self.classes() {
            let (actual, predicted) = (self.targets(class) as f64, self.predicted(class) as f64);
            both += actual * predicted;
            targets += actual * actual;
            predictions += predicted * predicted;
        }
        let scale = ((total * total - targets) * (total * total - predictions)).sqrt();
        let correlation = if scale > 0.0 { (correct * total - both) / scale } else { 0.0 };
        (total > 0.0).then_some(correlation)
    }

    /// Returns the true positives of `class`.
    fn true_positives(&self, class: usize) -> u64 {
        self.counts[[class, class]]
    }

    /// Returns the number of targets of `class`.
    fn targets(&self, class: usize) -> u64 {
        self.counts.row(class).sum()
    }

    /// Returns the number of predictions of `class`.
    fn predicted(&self, class: usize) -> u64 {
        self.counts.column(class).sum()
    }
}

/// Ranks the target (`targets` `(B)` i64) of each row of `logits` `(B, C)`: the number of classes
/// with a higher score, 0 for a correct prediction.
///
/// On ties the first class wins; NaN ranks last.
///
/// # Errors
/// Returns [`Error::Input`] if the shapes do not match or a target is out of range.
pub fn target_ranks(logits: &Tensor, targets: &Tensor) -> Result<Vec<usize>> {
    let (rows, classes) = logits.size2()?;
    let classes = classes as usize;
    if targets.size() != [rows] {
        let reason = format!("targets {:?} for logits {:?}", targets.size(), logits.size());
        return Err(Error::Input(reason));
    }
    let logits =
        Vec::<f32>::try_from(logits.to_device(Device::Cpu).to_kind(Kind::Float).flatten(0, 1))?;
    let targets = Vec::<i64>::try_from(targets.to_device(Device::Cpu))?;
    logits
        .chunks_exact(classes.max(1))
        .zip(targets)
        .map(|(row, target)| {
            let at = usize::try_from(target).ok().filter(|&at| at < classes);
            let at = at.ok_or_else(|| Error::Input(format!("class {target} of {classes}")))?;
            let own = row[at];
            let before = |&(i, &other): &(usize, &f32)| {
                other > own || (other == own && i < at) || (own.is_nan() && i != at)
            };
            Ok(row.iter().enumerate().filter(before).count())
        })
        .collect()
}

/// Returns the top-`k` accuracy for [`target_ranks`]; `None` without ranks.
pub fn top_k(ranks: &[usize], k: usize) -> Option<f64> {
    ratio(ranks.iter().filter(|&&rank| rank < k).count() as u64, ranks.len() as u64)
}

/// Returns Pearson's correlation in `[-1, 1]`; `None` if a variable is constant (also with fewer
/// than two pairs) or a value is not finite.
pub fn pearson(pairs: &[(f64, f64)]) -> Option<f64> {
    let &first = pairs.first()?;
    let finite = pairs.iter().all(|(x, y)| x.is_finite() && y.is_finite());
    let varies = pairs.iter().any(|p| p.0 != first.0) && pairs.iter().any(|p| p.1 != first.1);
    if !finite || !varies {
        return None;
    }
    let n = pairs.len() as f64;
    let mean = pairs.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0 / n, sum.1 + p.1 / n));
    let (mut both, mut xs, mut ys) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        let (x, y) = (x - mean.0, y - mean.1);
        both += x * y;
        xs += x * x;
        ys += y * y;
    }
    let correlation = both / (xs.sqrt() * ys.sqrt());
    correlation.is_finite().then(|| correlation.clamp(-1.0, 1.0))
}

/// Returns Spearman's correlation, [`pearson`] of the ranks (ties share their mean rank); `None` as
/// there, except that infinite values are ranked.
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.iter().any(|(x, y)| x.is_nan() || y.is_nan()) {
        return None;
    }
    let (xs, ys): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let ranks: Vec<(f64, f64)> = mean_ranks(&xs).into_iter().zip(mean_ranks(&ys)).collect();
    pearson(&ranks)
}

/// Returns the rank of each value in ascending order; ties share their mean rank.
fn mean_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for ties in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = start as f64 + (ties.len() - 1) as f64 / 2.0;
        ties.iter().for_each(|&i| ranks[i] = mean);
        start += ties.len();
    }
    ranks
}

/// Returns `part / total`; `None` if the total is 0.
fn ratio(part: u64, total: u64) -> Option<f64> {
    (total > 0).then(|| part as f64 / total as f64)
}

/// Turns the output of a CTC head into a transcript.
pub trait SequenceDecoder {
    /// Decodes the log-probabilities `(T, C)` of one example.
    ///
    /// # Errors
    /// [`Error::Input`] if C is not the number of labels.
    fn decode(&self, log_probs: ArrayView2<f32>) -> Result<String>;

    /// Spells the reference whose label ids are given.
    fn spell(&self, ids: &[i64]) -> String;
}
