//! Texts weighed by all the ways to say them, a language model and a lexicon.

use std::{f64::consts::LN_10, rc::Rc, sync::Arc};

use data2vec_core::{Error, Result};
use ndarray::{ArrayView1, ArrayView2};

use super::{
    BLANK, Decoded, Labels, Lexicon, UNKNOWN,
    hypothesis::{Frontier, Hypothesis, mix},
    trace::{Symbol, decoded},
};
use crate::lm::{LanguageModel, LmState};

/// How wide a [`BeamSearch`] looks, and what it adds up.
///
/// A text of n words has the score
///
/// ```text
/// ln P(text | sound) + lm_weight · ln P(text) + word_score · n + unknown_score · unknown words
/// ```
///
/// in natural logarithms, the last three only where there is a language model; the first adds up all
/// alignments. (pyctcdecode's `alpha` and `beta` are
/// `lm_weight` and `word_score`. flashlight takes the language model's logarithm to base 10: its
/// weight is ln 10 = 2.303 times as large for the same effect.)
#[derive(Clone, Debug, PartialEq)]
pub struct BeamConfig {
    /// Texts that are kept from one frame to the next.
    pub beam: usize,
    /// Labels with a smaller log-probability in a frame are not tried in it, but for the best one.
    pub min_label: f32,
    /// Texts whose score is this much below the best one's are dropped.
    pub max_gap: f32,
    /// How much the language model counts.
    pub lm_weight: f32,
    /// What a word adds: above 0 for more words, below for fewer. (A language model likes few.)
    pub word_score: f32,
    /// What a word adds besides that the language model does not know.
    pub unknown_score: f32,
    /// Whether texts are whole sentences for the language model, which then weighs how they begin and end.
    pub sentence: bool,
}

impl Default for BeamConfig {
    fn default() -> Self {
        Self {
            beam: 100,
            min_label: -6.0,
            max_gap: 20.0,
            lm_weight: 0.5,
            word_score: 1.0,
            unknown_score: -10.0,
            sentence: true,
        }
    }
}

impl BeamConfig {
    fn validate(&self) -> Result<()> {
        if self.beam == 0 {
            return Err(Error::config("beam", "must be at least 1"));
        }
        if !(self.max_gap >= 0.0) {
            return Err(Error::config("max_gap", "must be at least 0"));
        }
        if self.min_label.is_nan() {
            return Err(Error::config("min_label", "is not a number"));
        }
        let weights = [self.lm_weight, self.word_score, self.unknown_score];
        for (key, value) in ["lm_weight", "word_score", "unknown_score"].iter().zip(weights) {
            if !value.is_finite() {
                return Err(Error::config(*key, format!("{value} is not a finite number")));
            }
        }
        Ok(())
    }
}

/// Prefix beam search.
///
/// It goes from frame to frame with the best texts so far, each with the probability of all ways to
/// have said it (apart for ways that end in a blank, after which the last label counts anew). Words
/// are weighed when they end. Separators that stand together, or at an end, say nothing. The result
/// depends on nothing but the input: of equal scores, the text found first wins, and texts are tried
/// from the best to the worst, labels in order.
#[derive(Clone, Debug)]
pub struct BeamSearch {
    labels: Labels,
    config: BeamConfig,
    lm: Option<Arc<LanguageModel>>,
    lexicon: Option<Arc<Lexicon>>,
}

impl BeamSearch {
    /// A search with the given labels. Without `lexicon` any string is a word.
    ///
    /// # Errors
    /// [`Error::Config`] that names the impossible setting.
    pub fn new(
        labels: Labels,
        config: BeamConfig,
        lm: Option<Arc<LanguageModel>>,
        lexicon: Option<Arc<Lexicon>>,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self { labels, config, lm, lexicon })
    }

    /// The best texts for `log_probs` `(T, C)`, natural logarithms, best first; up to
    /// [`BeamConfig::beam`] of them, at least one.
    ///
    /// A word's frames are those of the most probable way to say its text. With a lexicon, a last
    /// word that is not complete does not count, unless no text has a complete one: then it is cut off.
    ///
    /// # Errors
    /// As [`greedy`](super::greedy()).
    pub fn decode(&self, log_probs: ArrayView2<f32>) -> Result<Vec<Decoded>> {
        self.labels.check(&log_probs)?;
        let mut beams = vec![Hypothesis::empty(self.labels.separator, self.start())];
        for (frame, row) in log_probs.rows().into_iter().enumerate() {
            let tried = self.tried(row);
            let mut next = Frontier::default();
            for hypothesis in &beams {
                self.extend(hypothesis, frame, row, &tried, &mut next);
            }
            beams = self.best(next);
        }
        let mut done = Frontier::default();
        for hypothesis in &beams {
            self.finish(hypothesis, &mut done);
        }
        if done.all.is_empty() {
            done.all.extend(beams.into_iter().map(Hypothesis::without_open_word));
        }
        Ok(self.best(done).iter().map(|hypothesis| self.read_out(hypothesis, &log_probs)).collect())
    }

    fn start(&self) -> Option<Rc<LmState>> {
        let lm = self.lm.as_ref()?;
        Some(Rc::new(if self.config.sentence { lm.begin() } else { LmState::default() }))
    }

    /// Labels worth a try in a frame.
    fn tried(&self, row: ArrayView1<f32>) -> Vec<usize> {
        let says = |label: usize| {
            Some(label) == self.labels.separator || self.labels.shown(label).is_some()
        };
        let mut best = BLANK;
        for (label, &log_prob) in row.iter().enumerate() {
            if log_prob > row[best] {
                best = label;
            }
        }
        let likely = |label: usize| row[label] >= self.config.min_label || label == best;
        (1..row.len()).filter(|&label| likely(label) && says(label)).collect()
    }

    /// Everything that `old` can become by one frame.
    fn extend(
        &self,
        old: &Hypothesis,
        frame: usize,
        row: ArrayView1<f32>,
        tried: &[usize],
        next: &mut Frontier,
    ) {
        let either = old.either();
        let same = next.entry(old.hash, || old.fresh());
        same.blank.add(&either, row[BLANK], None);
        if let Some(last) = old.last {
            same.label.add(&old.label, row[last], Some(frame + 1));
        }
        for &label in tried {
            let from = if old.last == Some(label) { &old.blank } else { &either };
            if from.sum == f64::NEG_INFINITY || row[label] == f32::NEG_INFINITY {
                continue;
            }
            if Some(label) == self.labels.separator {
                if old.open == 0 {
                    next.entry(old.hash, || old.fresh()).label.add(from, row[label], None);
                    continue;
                }
                self.close(old, |hash, word, new: &dyn Fn() -> Hypothesis| {
                    let symbol = Symbol::Break(word);
                    next.entry(hash, new).label.say(from, row[label], symbol, frame);
                });
                continue;
            }
            let node = match &self.lexicon {
                Some(lexicon) => match lexicon.child(old.node, label) {
                    Some(node) => node,
                    None => continue,
                },
                None => 0,
            };
            let new = || {
                let grown =
                    Hypothesis { last: Some(label), open: old.open + 1, node, ..old.fresh() };
                if self.labels.separator.is_some() {
                    return grown;
                }
                // Without a label between words, each symbol is one.
                let word = self.labels.shown(label).unwrap_or_default();
                let (bonus, lm) = self.weigh(old, word, label_is_unknown(&self.labels, label));
                Hypothesis { open: 0, bonus: old.bonus + bonus, lm, ..grown }
            };
            let hash = mix(old.hash, label as u64);
            next.entry(hash, new).label.say(from, row[label], Symbol::Label(label), frame);
        }
    }

    /// Offers each word that the open symbols of `old` can be: the hash of the text with it, its
    /// number in the lexicon, and what makes the hypothesis, without its ways yet.
    fn close(
        &self,
        old: &Hypothesis,
        mut offer: impl FnMut(u64, Option<u32>, &dyn Fn() -> Hypothesis),
    ) {
        let hash = mix(old.hash, self.labels.separator.unwrap_or(BLANK) as u64);
        let closed = |(bonus, lm): (f64, Option<Rc<LmState>>)| Hypothesis {
            last: self.labels.separator,
            open: 0,
            node: 0,
            bonus: old.bonus + bonus,
            lm,
            ..old.fresh()
        };
        match &self.lexicon {
            None => offer(hash, None, &|| {
                let (word, unknown) = self.open_word(old);
                closed(self.weigh(old, &word, unknown))
            }),
            Some(lexicon) => {
                for &word in lexicon.ending(old.node) {
                    offer(mix(hash, u64::from(word)), Some(word), &|| {
                        closed(self.weigh(old, lexicon.word(word), false))
                    });
                }
            }
        }
    }

    /// What a word adds to the score after `old`, and the language model's state after it.
    fn weigh(&self, old: &Hypothesis, word: &str, unknown: bool) -> (f64, Option<Rc<LmState>>) {
        let (Some(lm), Some(state)) = (&self.lm, &old.lm) else { return (0.0, None) };
        let (log10, state) = lm.word(state, word);
        let mut bonus = f64::from(self.config.word_score);
        bonus += f64::from(self.config.lm_weight) * LN_10 * f64::from(log10);
        if unknown || !lm.contains(word) {
            bonus += f64::from(self.config.unknown_score);
        }
        (bonus, Some(Rc::new(state)))
    }

    /// The symbols since the last separator, and whether one of them is unknown.
    fn open_word(&self, old: &Hypothesis) -> (String, bool) {
        let labels = old.open_labels();
        let unknown = labels.iter().any(|&label| label_is_unknown(&self.labels, label));
        let shown = labels.iter().filter_map(|&label| self.labels.shown(label));
        (shown.collect(), unknown)
    }

    /// Ends the last word, and the sentence.
    fn finish(&self, old: &Hypothesis, done: &mut Frontier) {
        let end = |mut hypothesis: Hypothesis| {
            if let (Some(lm), Some(state), true) = (&self.lm, &hypothesis.lm, self.config.sentence)
            {
                let log10 = f64::from(lm.end(state));
                hypothesis.bonus += f64::from(self.config.lm_weight) * LN_10 * log10;
            }
            hypothesis
        };
        let either = old.either();
        if old.open == 0 {
            done.entry(old.hash, || end(old.fresh())).blank.add(&either, 0.0, None);
            return;
        }
        self.close(old, |hash, word, new| {
            let ways = &mut done.entry(hash, || end(new())).blank;
            ways.say(&either, 0.0, Symbol::Break(word), either.end);
        });
    }

    /// The best of what was found, best first.
    fn best(&self, found: Frontier) -> Vec<Hypothesis> {
        let mut ranked: Vec<(f64, Hypothesis)> =
            found.all.into_iter().map(|one| (one.score(), one)).collect();
        ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a)); // stable: of equal ones the first
        ranked.truncate(self.config.beam);
        let best = ranked.first().map_or(f64::NEG_INFINITY, |&(score, _)| score);
        // Where everything is impossible the first one goes on.
        let floor = best - f64::from(self.config.max_gap);
        let kept = ranked.into_iter().enumerate();
        let kept = kept.filter(|&(rank, (score, _))| rank == 0 || score >= floor);
        kept.map(|(_, (_, hypothesis))| hypothesis).collect()
    }

    fn read_out(&self, hypothesis: &Hypothesis, log_probs: &ArrayView2<f32>) -> Decoded {
        let lexicon = self.lexicon.as_deref();
        decoded(&hypothesis.said(), hypothesis.score(), &self.labels, lexicon, log_probs)
    }
}

fn label_is_unknown(labels: &Labels, label: usize) -> bool {
    labels.names[label] == UNKNOWN
}
