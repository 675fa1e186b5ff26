//! Texts so far, and the ways to have said them.

use std::{collections::HashMap, rc::Rc};

use super::trace::{Said, Symbol};
use crate::lm::LmState;

/// A text so far.
#[derive(Debug)]
pub(super) struct Hypothesis {
    /// Stands for the text. With the few thousand texts of a frame, two have the same by chance once
    /// in 10^12 frames.
    pub hash: u64,
    /// The text's last label. Before anything was said it is the separator, if there is one: another one
    /// says nothing then either.
    pub last: Option<usize>,
    /// Symbols since the last separator.
    pub open: usize,
    /// Where they lead in the lexicon.
    pub node: u32,
    /// All but the probability of the sound.
    pub bonus: f64,
    pub lm: Option<Rc<LmState>>,
    /// Ways that end in a blank.
    pub blank: Ways,
    /// Ways that end in the last label.
    pub label: Ways,
}

impl Hypothesis {
    /// Before the first frame.
    pub fn empty(last: Option<usize>, lm: Option<Rc<LmState>>) -> Self {
        let blank = Ways { sum: 0.0, best: 0.0, ..Ways::default() };
        let label = Ways::default();
        Self { hash: 0, last, open: 0, node: 0, bonus: 0.0, lm, blank, label }
    }

    /// The same text, and no way to have said it yet.
    pub fn fresh(&self) -> Self {
        let (blank, label) = (Ways::default(), Ways::default());
        Self { lm: self.lm.clone(), blank, label, ..*self }
    }

    pub fn score(&self) -> f64 {
        log_add(self.blank.sum, self.label.sum) + self.bonus
    }

    /// The ways with the most probable single one.
    fn better(&self) -> &Ways {
        if self.blank.best >= self.label.best { &self.blank } else { &self.label }
    }

    /// All ways together.
    pub fn either(&self) -> Ways {
        Ways { sum: log_add(self.blank.sum, self.label.sum), ..self.better().clone() }
    }

    /// What the most probable way says, and when.
    pub fn said(&self) -> Vec<Said> {
        let ways = self.better();
        let (mut said, mut end, mut at) = (Vec::new(), ways.end, &ways.trace);
        while let Some(trace) = at.as_deref() {
            said.push(Said { symbol: trace.symbol, start: trace.start, end });
            (end, at) = (trace.end_before, &trace.before);
        }
        said.reverse();
        said
    }

    /// Labels since the last separator.
    pub fn open_labels(&self) -> Vec<usize> {
        let (mut labels, mut at) = (Vec::with_capacity(self.open), &self.better().trace);
        while let Some(Trace { symbol: Symbol::Label(label), before, .. }) = at.as_deref() {
            labels.push(*label);
            at = before;
        }
        labels.reverse();
        labels
    }

    /// The same without the symbols since the last separator.
    pub fn without_open_word(self) -> Self {
        let mut ways = self.either();
        for _ in 0..self.open {
            if let Some(trace) = ways.trace.take() {
                (ways.end, ways.trace) = (trace.end_before, trace.before.clone());
            }
        }
        Self { open: 0, blank: ways, label: Ways::default(), ..self }
    }
}

/// Ways to say a text: all of them together, and the most probable one.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    /// Logarithm of the sum of their probabilities.
    pub sum: f64,
    best: f64,
    /// What the best one says.
    trace: Option<Rc<Trace>>,
    /// Frame after the last one of its last symbol.
    pub end: usize,
}

impl Default for Ways {
    fn default() -> Self {
        Self { sum: f64::NEG_INFINITY, best: f64::NEG_INFINITY, trace: None, end: 0 }
    }
}

impl Ways {
    /// As well as these, those of `from` with one more frame; `end`: which belongs to the last symbol.
    pub fn add(&mut self, from: &Self, log_prob: f32, end: Option<usize>) {
        self.join(from, log_prob, || (from.trace.clone(), end.unwrap_or(from.end)));
    }

    /// As well as these, those of `from`, which go on with a symbol in `frame`.
    pub fn say(&mut self, from: &Self, log_prob: f32, symbol: Symbol, frame: usize) {
        self.join(from, log_prob, || {
            let (before, end_before) = (from.trace.clone(), from.end);
            let trace = Trace { symbol, start: frame, end_before, before };
            (Some(Rc::new(trace)), frame + 1)
        });
    }

    fn join(
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

/// A symbol, the frame where it begins, and what was said before it.
#[derive(Debug)]
struct Trace {
    symbol: Symbol,
    start: usize,
    /// Where the symbol before it ends.
    end_before: usize,
    before: Option<Rc<Trace>>,
}

impl Drop for Trace {
    /// One after the other: a recording has more symbols than a stack has room for.
    fn drop(&mut self) {
        let mut before = self.before.take();
        while let Some(mut trace) = before.and_then(Rc::into_inner) {
            before = trace.before.take();
        }
    }
}

/// Texts of one frame, in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct Frontier {
    pub all: Vec<Hypothesis>,
    places: HashMap<u64, usize>,
}

impl Frontier {
    pub fn entry(&mut self, hash: u64, new: impl FnOnce() -> Hypothesis) -> &mut Hypothesis {
        let place = *self.places.entry(hash).or_insert(self.all.len());
        if place == self.all.len() {
            self.all.push(Hypothesis { hash, ..new() });
        }
        &mut self.all[place]
    }
}

/// The hash of a text with one symbol more (splitmix64's finaliser).
pub(super) fn mix(hash: u64, symbol: u64) -> u64 {
    let mut z = hash.wrapping_add((symbol + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `ln(exp(a) + exp(b))`.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}
