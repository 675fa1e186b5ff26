//! Partial texts of a beam search and their alignments.

use std::collections::HashMap;
use std::rc::Rc;

use super::decoded::{Emission, Symbol};
use crate::lm::LmState;

/// A partial text.
#[derive(Debug)]
pub(super) struct Hypothesis {
    /// Hash of the text. With a few thousand texts per frame, a collision is expected once in 10^12
    /// frames.
    pub hash: u64,
    /// Last label of the text. Initially the separator, if there is one, so that leading separators
    /// have no effect.
    pub last: Option<usize>,
    /// Number of symbols since the last separator.
    pub open: usize,
    /// Node of these symbols in the lexicon.
    pub node: u32,
    /// Score without the acoustic log-probability.
    pub bonus: f64,
    pub lm: Option<Rc<LmState>>,
    /// Alignments that end in a blank.
    pub blank: Alignments,
    /// Alignments that end in the last label.
    pub label: Alignments,
}

impl Hypothesis {
    /// Returns the empty text before the first frame.
    pub fn empty(last: Option<usize>, lm: Option<Rc<LmState>>) -> Self {
        let blank = Alignments { sum: 0.0, best: 0.0, ..Alignments::default() };
        let label = Alignments::default();
        Self { hash: 0, last, open: 0, node: 0, bonus: 0.0, lm, blank, label }
    }

    /// Returns the same text without alignments.
    pub fn without_alignments(&self) -> Self {
        let (blank, label) = (Alignments::default(), Alignments::default());
        Self { lm: self.lm.clone(), blank, label, ..*self }
    }

    pub fn score(&self) -> f64 {
        log_add(self.blank.sum, self.label.sum) + self.bonus
    }

    /// Returns the alignments that contain the most probable one.
    fn best(&self) -> &Alignments {
        if self.blank.best >= self.label.best { &self.blank } else { &self.label }
    }

    /// Returns all alignments together.
    pub fn alignments(&self) -> Alignments {
        Alignments { sum: log_add(self.blank.sum, self.label.sum), ..self.best().clone() }
    }

    /// Returns the emissions of the most probable alignment.
    pub fn emissions(&self) -> Vec<Emission> {
        let best = self.best();
        let (mut emissions, mut end, mut at) = (Vec::new(), best.end, &best.trace);
        while let Some(trace) = at.as_deref() {
            emissions.push(Emission { symbol: trace.symbol, start: trace.start, end });
            (end, at) = (trace.end_before, &trace.before);
        }
        emissions.reverse();
        emissions
    }

    /// Returns the labels since the last separator.
    pub fn open_labels(&self) -> Vec<usize> {
        let (mut labels, mut at) = (Vec::with_capacity(self.open), &self.best().trace);
        while let Some(Trace { symbol: Symbol::Label(label), before, .. }) = at.as_deref() {
            labels.push(*label);
            at = before;
        }
        labels.reverse();
        labels
    }

    /// Removes the symbols since the last separator.
    pub fn without_open_word(self) -> Self {
        let mut alignments = self.alignments();
        for _ in 0..self.open {
            if let Some(trace) = alignments.trace.take() {
                (alignments.end, alignments.trace) = (trace.end_before, trace.before.clone());
            }
        }
        Self { open: 0, blank: alignments, label: Alignments::default(), ..self }
    }
}

/// Alignments of a text: their total probability, and the most probable one.
#[derive(Clone, Debug)]
pub(super) struct Alignments {
    /// Logarithm of the sum of the probabilities.
    pub sum: f64,
    best: f64,
    /// Symbols of the best alignment.
    trace: Option<Rc<Trace>>,
    /// Frame after the last frame of its last symbol.
    pub end: usize,
}

impl Default for Alignments {
    fn default() -> Self {
        Self { sum: f64::NEG_INFINITY, best: f64::NEG_INFINITY, trace: None, end: 0 }
    }
}

impl Alignments {
    /// Adds those of `from`, extended by one frame. If the frame belongs to the last symbol, `end` is
    /// the frame after it.
    pub fn extend(&mut self, from: &Self, log_prob: f32, end: Option<usize>) {
        self.merge(from, log_prob, || (from.trace.clone(), end.unwrap_or(from.end)));
    }

    /// Adds those of `from`, extended by a new symbol in `frame`.
    pub fn emit(&mut self, from: &Self, log_prob: f32, symbol: Symbol, frame: usize) {
        self.merge(from, log_prob, || {
            let (before, end_before) = (from.trace.clone(), from.end);
            let trace = Trace { symbol, start: frame, end_before, before };
            (Some(Rc::new(trace)), frame + 1)
        });
    }

    fn merge(
        &mut self,
        from: &Self,
        log_prob: f32,
        trace: impl FnOnce() -> (Option<Rc<Trace>>, usize),
    ) {
        self.sum = log_add(self.sum, from.sum + f64::from(log_prob));
        let best = from.best + f64::from(log_prob);
        if best > self.best {
            self.best = best;
            (self.trace, self.end) = trace();
        }
    }
}

/// A symbol, its first frame, and the symbols before it.
#[derive(Debug)]
struct Trace {
    symbol: Symbol,
    start: usize,
    /// End of the symbol before it.
    end_before: usize,
    before: Option<Rc<Trace>>,
}

impl Drop for Trace {
    /// Drops the list iteratively: recursion would overflow the stack on long recordings.
    fn drop(&mut self) {
        let mut before = self.before.take();
        while let Some(mut trace) = before.and_then(Rc::into_inner) {
            before = trace.before.take();
        }
    }
}

/// Hypotheses of one frame, in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct Frontier {
    pub all: Vec<Hypothesis>,
    indices: HashMap<u64, usize>,
}

impl Frontier {
    pub fn entry(&mut self, hash: u64, new: impl FnOnce() -> Hypothesis) -> &mut Hypothesis {
        let at = *self.indices.entry(hash).or_insert(self.all.len());
        if at == self.all.len() {
            self.all.push(Hypothesis { hash, ..new() });
        }
        &mut self.all[at]
    }
}

/// Returns the hash of a text extended by a symbol (the finalizer of splitmix64).
pub(super) fn mix(hash: u64, symbol: u64) -> u64 {
    let mut z = hash.wrapping_add((symbol + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Computes `ln(exp(a) + exp(b))`.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}
