//! How good predictions are: edit distances, confusions of classes, correlations.
//!
//! Where a score is not defined it is `None`, never a number that looks like one.

use std::ops::AddAssign;

use ndarray::Array2;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// What turns a reference into a hypothesis. Of many pairs: their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Others in their place.
    pub substitutions: usize,
    /// In the hypothesis alone.
    pub insertions: usize,
    /// In the reference alone.
    pub deletions: usize,
    /// Length of the reference.
    pub reference: usize,
}

impl Edits {
    /// All three kinds together: Levenshtein's distance.
    pub fn errors(&self) -> usize {
        self.substitutions + self.insertions + self.deletions
    }

    /// Errors for each symbol of the reference, the error rate; above 1 when much is inserted. `None`
    /// without a reference.
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

/// The fewest edits from `reference` to `hypothesis`; of several ways the one with most substitutions,
/// so that the numbers are defined. Takes time of length × errors, and memory of the length.
pub fn edits<T: PartialEq>(reference: &[T], hypothesis: &[T]) -> Edits {
    let equal = |(a, b): &(&T, &T)| a == b;
    let start = reference.iter().zip(hypothesis).take_while(equal).count();
    let (a, b) = (&reference[start..], &hypothesis[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(equal).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);

    // With so many errors no alignment leaves the band of so many symbols around the diagonal.
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

/// Errors and insertions of the best alignment that stays within `band` of the diagonal.
fn align<T: PartialEq>(a: &[T], b: &[T], band: usize) -> (usize, usize) {
    // Errors in the upper half, insertions in the lower: the smallest has fewest errors, then fewest
    // insertions, and so fewest deletions, whose number differs by the lengths alone.
    const EDIT: u64 = 1 << 32;
    const FAR: u64 = u64::MAX >> 1;
    // (b.len() + 1): the alignment of `a` up to a place with each beginning of `b`
    let start = |j: usize| if j <= band { j as u64 * (EDIT + 1) } else { FAR };
    let mut row: Vec<u64> = (0..=b.len()).map(start).collect();
    for (i, x) in (1_usize..).zip(a) {
        let (first, last) = (i.saturating_sub(band), b.len().min(i + band));
        let (mut diagonal, mut left) = match first {
            0 => (std::mem::replace(&mut row[0], i as u64 * EDIT), i as u64 * EDIT),
            _ => (row[first - 1], FAR),
        };
        for j in first.max(1)..=last {
            let same = diagonal + if *x == b[j - 1] { 0 } else { EDIT };
            diagonal = row[j];
            left = same.min(left + EDIT + 1).min(row[j] + EDIT);
            row[j] = left;
        }
    }
    let best = row[b.len()];
    ((best / EDIT) as usize, (best % EDIT) as usize)
}

/// How often each class was taken for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    counts: Array2<u64>,
}

impl Confusion {
    /// Nothing counted yet.
    pub fn new(classes: usize) -> Self {
        Self { counts: Array2::zeros([classes, classes]) }
    }

    /// Counts one prediction.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no such class.
    pub fn add(&mut self, target: usize, predicted: usize) -> Result<()> {
        let classes = self.classes();
        let count = self
            .counts
            .get_mut([target, predicted])
            .ok_or_else(|| Error::Input(format!("class {} of {classes}", target.max(predicted))))?;
        *count += 1;
        Ok(())
    }

    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.counts.nrows()
    }

    /// `(C, C)`: a row is what a class was taken for.
    pub fn counts(&self) -> &Array2<u64> {
        &self.counts
    }

    /// How many predictions were counted.
    pub fn total(&self) -> u64 {
        self.counts.sum()
    }

    /// Share that is right. `None` when nothing was counted.
    pub fn accuracy(&self) -> Option<f64> {
        share(self.counts.diag().sum(), self.total())
    }

    /// Share of what was taken for `class` that is of it. `None` when nothing was.
    pub fn precision(&self, class: usize) -> Option<f64> {
        share(self.right(class), self.predicted(class))
    }

    /// Share of `class` that was found. `None` when there is nothing of it.
    pub fn recall(&self, class: usize) -> Option<f64> {
        share(self.right(class), self.there(class))
    }

    /// Harmonic mean of precision and recall of `class`. `None` when there is nothing of it and nothing
    /// was taken for it; 0 when nothing of it was found. GLUE's F1 is that of class 1.
    pub fn f1(&self, class: usize) -> Option<f64> {
        share(2 * self.right(class), self.predicted(class) + self.there(class))
    }

    /// Mean [`f1`](Self::f1) of the classes that have one. `None` when nothing was counted.
    pub fn macro_f1(&self) -> Option<f64> {
        let all: Vec<f64> = (0..self.classes()).filter_map(|class| self.f1(class)).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }

    /// Matthews' correlation of targets and predictions in `[-1, 1]`, for any number of classes. 0 when
    /// all targets or all predictions are of one class, as in GLUE; `None` when nothing was counted.
    pub fn matthews(&self) -> Option<f64> {
        let total = self.total() as f64;
        let right = self.counts.diag().sum() as f64;
        let (mut both, mut targets, mut predictions) = (0.0, 0.0, 0.0);
        for class in 0..self.classes() {
            let (there, predicted) = (self.there(class) as f64, self.predicted(class) as f64);
            both += there * predicted;
            targets += there * there;
            predictions += predicted * predicted;
        }
        let spread = ((total * total - targets) * (total * total - predictions)).sqrt();
        let correlation = if spread > 0.0 { (right * total - both) / spread } else { 0.0 };
        (total > 0.0).then_some(correlation)
    }

    /// Of `class`, and taken for it.
    fn right(&self, class: usize) -> u64 {
        self.counts[[class, class]]
    }

    /// Of `class`.
    fn there(&self, class: usize) -> u64 {
        self.counts.row(class).sum()
    }

    /// Taken for `class`.
    fn predicted(&self, class: usize) -> u64 {
        self.counts.column(class).sum()
    }
}

/// For each row of `logits` `(B, C)`, how many classes come before its target, one of `targets` `(B)`
/// i64: 0 where the prediction is right. Of equal logits the first comes first; one that is no number
/// comes last.
///
/// # Errors
/// [`Error::Input`] if the two do not go together.
pub fn ranks(logits: &Tensor, targets: &Tensor) -> Result<Vec<usize>> {
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

/// Share of [`ranks`] whose target is among the first `k`. `None` when there is none.
pub fn top_k(ranks: &[usize], k: usize) -> Option<f64> {
    share(ranks.iter().filter(|&&rank| rank < k).count() as u64, ranks.len() as u64)
}

/// Pearson's correlation of two variables, in `[-1, 1]`. `None` when one of them does not vary, which is
/// so with fewer than two pairs, or a value is not finite.
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

/// Spearman's correlation: [`pearson`] of the places in sorted order; equal values share the mean of
/// theirs. `None` as there.
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.iter().any(|(x, y)| x.is_nan() || y.is_nan()) {
        return None;
    }
    let (xs, ys): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let places: Vec<(f64, f64)> = places(&xs).into_iter().zip(places(&ys)).collect();
    pearson(&places)
}

/// The place of each value in sorted order, equal ones the mean of theirs.
fn places(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut places = vec![0.0; values.len()];
    let mut at = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = at as f64 + (equal.len() - 1) as f64 / 2.0;
        equal.iter().for_each(|&i| places[i] = mean);
        at += equal.len();
    }
    places
}

fn share(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}
