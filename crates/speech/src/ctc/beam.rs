//! Prefix beam search with a language model and a lexicon.

use std::f64::consts::LN_10;
use std::rc::Rc;
use std::sync::Arc;

use data2vec_core::{Error, Result};
use ndarray::{ArrayView1, ArrayView2};

use super::decoded::{Decoded, Symbol, assemble};
use super::hypothesis::{Frontier, Hypothesis, mix};
use super::labels::{BLANK, Labels};
use super::lexicon::Lexicon;
use crate::lm::{LanguageModel, LmState};

/// Width and score weights of a [`BeamSearch`].
///
/// The score of a text of n words is
///
/// ```text
/// ln P(text | audio) + lm_weight · ln P(text) + word_score · n + unknown_score · unknown words
/// ```
///
/// in natural logarithms; the first term sums over all alignments, the others need a language model.
/// pyctcdecode calls `lm_weight` `alpha` and `word_score` `beta`. flashlight takes the logarithm of the
/// language model to base 10, so its weight is ln 10 = 2.303 times as large for the same effect.
#[derive(Clone, Debug, PartialEq)]
pub struct BeamConfig {
    /// Maximum number of texts kept after each frame.
    pub beam: usize,
    /// Minimum log-probability of labels that are tried in a frame, besides the best one.
    pub min_label: f32,
    /// Maximum difference to the best score; texts with lower scores are dropped.
    pub max_gap: f32,
    /// Weight of the language model.
    pub lm_weight: f32,
    /// Score per word. Values above 0 compensate the language model's bias to few words.
    pub word_score: f32,
    /// Additional score per word that the language model does not know.
    pub unknown_score: f32,
    /// Treats texts as full sentences: the language model scores their beginning and end.
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
            return Err(Error::config("min_label", "must not be NaN"));
        }
        let weights = [self.lm_weight, self.word_score, self.unknown_score];
        for (key, value) in ["lm_weight", "word_score", "unknown_score"].iter().zip(weights) {
            if !value.is_finite() {
                return Err(Error::config(*key, format!("must be finite, not {value}")));
            }
        }
        Ok(())
    }
}

/// A prefix beam search decoder.
///
/// After each frame it keeps the best partial texts, each with the summed probability of its
/// alignments (separately for those that end in a blank, after which the last label may repeat). Words
/// are scored when they end. Repeated, leading and trailing separators have no effect. The result is
/// deterministic: texts are extended from best to worst and labels in order, and ties go to the text
/// found first.
#[derive(Clone, Debug)]
pub struct BeamSearch {
    labels: Labels,
    config: BeamConfig,
    lm: Option<Arc<LanguageModel>>,
    lexicon: Option<Arc<Lexicon>>,
}

impl BeamSearch {
    /// Creates a decoder. Without a lexicon, any string is a word.
    ///
    /// # Errors
    /// Returns [`Error::Config`], which names the setting, if one is invalid.
    pub fn new(
        labels: Labels,
        config: BeamConfig,
        lm: Option<Arc<LanguageModel>>,
        lexicon: Option<Arc<Lexicon>>,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self { labels, config, lm, lexicon })
    }

    /// Decodes `log_probs` `(T, C)`, natural logarithms: returns at least one and at most
    /// [`BeamConfig::beam`] texts, best first.
    ///
    /// The frames of words are those of the most probable alignment. With a lexicon, texts that end in
    /// an incomplete word are dropped; if all do, the incomplete words are removed instead.
    ///
    /// # Errors
    /// Returns the errors of [`greedy`](super::greedy()).
    pub fn decode(&self, log_probs: ArrayView2<f32>) -> Result<Vec<Decoded>> {
        self.labels.check(&log_probs)?;
        let mut beams = vec![Hypothesis::empty(self.labels.separator(), self.start())];
        for (frame, row) in log_probs.rows().into_iter().enumerate() {
            let candidates = self.candidates(row);
            let mut next = Frontier::default();
            for hypothesis in &beams {
                self.extend(hypothesis, frame, row, &candidates, &mut next);
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
        Ok(self.best(done).iter().map(|hypothesis| self.decoded(hypothesis, &log_probs)).collect())
    }

    fn start(&self) -> Option<Rc<LmState>> {
        let lm = self.lm.as_ref()?;
        Some(Rc::new(if self.config.sentence { lm.begin() } else { LmState::default() }))
    }

    /// Returns the labels to try in a frame, without the blank.
    fn candidates(&self, row: ArrayView1<f32>) -> Vec<usize> {
        let extends_text = |label: usize| {
            Some(label) == self.labels.separator() || self.labels.text(label).is_some()
        };
        let mut best = BLANK;
        for (label, &log_prob) in row.iter().enumerate() {
            if log_prob > row[best] {
                best = label;
            }
        }
        let likely = |label: usize| row[label] >= self.config.min_label || label == best;
        (1..row.len()).filter(|&label| likely(label) && extends_text(label)).collect()
    }

    /// Adds all extensions of `old` by one frame to `next`.
    fn extend(
        &self,
        old: &Hypothesis,
        frame: usize,
        row: ArrayView1<f32>,
        candidates: &[usize],
        next: &mut Frontier,
    ) {
        let all = old.alignments();
        let same = next.entry(old.hash, || old.without_alignments());
        same.blank.extend(&all, row[BLANK], None);
        if let Some(last) = old.last {
            same.label.extend(&old.label, row[last], Some(frame + 1));
        }
        for &label in candidates {
            let from = if old.last == Some(label) { &old.blank } else { &all };
            if from.sum == f64::NEG_INFINITY || row[label] == f32::NEG_INFINITY {
                continue;
            }
            if Some(label) == self.labels.separator() {
                if old.open == 0 {
                    let same = next.entry(old.hash, || old.without_alignments());
                    same.label.extend(from, row[label], None);
                    continue;
                }
                self.end_word(old, |hash, word, new: &dyn Fn() -> Hypothesis| {
                    let symbol = Symbol::WordEnd(word);
                    next.entry(hash, new).label.emit(from, row[label], symbol, frame);
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
                let longer = Hypothesis {
                    last: Some(label),
                    open: old.open + 1,
                    node,
                    ..old.without_alignments()
                };
                if self.labels.separator().is_some() {
                    return longer;
                }
                // Without a separator, each symbol is a word.
                let word = self.labels.text(label).unwrap_or_default();
                let (bonus, lm) = self.score_word(old, word, self.labels.is_unknown(label));
                Hypothesis { open: 0, bonus: old.bonus + bonus, lm, ..longer }
            };
            let hash = mix(old.hash, label as u64);
            let symbol = Symbol::Label(label);
            next.entry(hash, new).label.emit(from, row[label], symbol, frame);
        }
    }

    /// Calls `add` for each word that the open symbols of `old` spell, with the hash of the text that
    /// ends in the word, the id of the word in the lexicon, and a constructor of the hypothesis without
    /// alignments.
    fn end_word(
        &self,
        old: &Hypothesis,
        mut add: impl FnMut(u64, Option<u32>, &dyn Fn() -> Hypothesis),
    ) {
        let hash = mix(old.hash, self.labels.separator().unwrap_or(BLANK) as u64);
        let ended = |(bonus, lm): (f64, Option<Rc<LmState>>)| Hypothesis {
            last: self.labels.separator(),
            open: 0,
            node: 0,
            bonus: old.bonus + bonus,
            lm,
            ..old.without_alignments()
        };
        match &self.lexicon {
            None => add(hash, None, &|| {
                let (word, unknown) = self.open_word(old);
                ended(self.score_word(old, &word, unknown))
            }),
            Some(lexicon) => {
                for &word in lexicon.words_at(old.node) {
                    add(mix(hash, u64::from(word)), Some(word), &|| {
                        ended(self.score_word(old, lexicon.word(word), false))
                    });
                }
            }
        }
    }

    /// Returns the score of a word after `old`, and the state of the language model after it.
    fn score_word(
        &self,
        old: &Hypothesis,
        word: &str,
        unknown: bool,
    ) -> (f64, Option<Rc<LmState>>) {
        let (Some(lm), Some(state)) = (&self.lm, &old.lm) else { return (0.0, None) };
        let (log10, state) = lm.word(state, word);
        let mut bonus = f64::from(self.config.word_score);
        bonus += f64::from(self.config.lm_weight) * LN_10 * f64::from(log10);
        if unknown || !lm.contains(word) {
            bonus += f64::from(self.config.unknown_score);
        }
        (bonus, Some(Rc::new(state)))
    }

    /// Returns the text since the last separator, and whether it has an unknown symbol.
    fn open_word(&self, old: &Hypothesis) -> (String, bool) {
        let labels = old.open_labels();
        let unknown = labels.iter().any(|&label| self.labels.is_unknown(label));
        let texts = labels.iter().filter_map(|&label| self.labels.text(label));
        (texts.collect(), unknown)
    }

    /// Ends the last word and the sentence, and adds the result to `done`.
    fn finish(&self, old: &Hypothesis, done: &mut Frontier) {
        let end = |mut hypothesis: Hypothesis| {
            if let (Some(lm), Some(state), true) = (&self.lm, &hypothesis.lm, self.config.sentence)
            {
                let log10 = f64::from(lm.end(state));
                hypothesis.bonus += f64::from(self.config.lm_weight) * LN_10 * log10;
            }
            hypothesis
        };
        let all = old.alignments();
        if old.open == 0 {
            let ended = done.entry(old.hash, || end(old.without_alignments()));
            ended.blank.extend(&all, 0.0, None);
            return;
        }
        self.end_word(old, |hash, word, new| {
            let ended = done.entry(hash, || end(new()));
            ended.blank.emit(&all, 0.0, Symbol::WordEnd(word), all.end);
        });
    }

    /// Returns the best hypotheses within the limits, best first.
    fn best(&self, found: Frontier) -> Vec<Hypothesis> {
        let mut ranked: Vec<(f64, Hypothesis)> =
            found.all.into_iter().map(|one| (one.score(), one)).collect();
        ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a)); // stable: ties keep their order
        ranked.truncate(self.config.beam);
        let best = ranked.first().map_or(f64::NEG_INFINITY, |&(score, _)| score);
        // The first one stays even if all scores are minus infinity.
        let floor = best - f64::from(self.config.max_gap);
        let kept = ranked.into_iter().enumerate();
        let kept = kept.filter(|&(rank, (score, _))| rank == 0 || score >= floor);
        kept.map(|(_, (_, hypothesis))| hypothesis).collect()
    }

    fn decoded(&self, hypothesis: &Hypothesis, log_probs: &ArrayView2<f32>) -> Decoded {
        let (emissions, lexicon) = (hypothesis.emissions(), self.lexicon.as_deref());
        assemble(&emissions, hypothesis.score(), &self.labels, lexicon, log_probs)
    }
}
