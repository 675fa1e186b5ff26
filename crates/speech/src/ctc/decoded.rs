//! Decoded texts: their words, frames and scores.

use ndarray::ArrayView2;

use super::labels::Labels;
use super::lexicon::Lexicon;

/// A decoded word and its frames.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedWord {
    /// The word.
    pub text: String,
    /// First frame of the first symbol.
    pub start: usize,
    /// Frame after the last frame of the last symbol.
    pub end: usize,
    /// Confidence from 0 to 1: the geometric mean over symbols of the highest probability of the
    /// symbol in its frames.
    pub score: f32,
}

/// A text decoded from log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The words in order.
    pub words: Vec<DecodedWord>,
    /// The words, joined.
    pub text: String,
    /// Natural log-probability, plus the terms of [`BeamConfig`](super::BeamConfig).
    pub score: f64,
}

/// A symbol emitted in the frames `start..end`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Emission {
    pub symbol: Symbol,
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Symbol {
    /// A label that is part of a word.
    Label(usize),
    /// The end of a word, with its id in the lexicon if there is one.
    WordEnd(Option<u32>),
}

/// A word under construction.
#[derive(Default)]
struct PartialWord {
    text: String,
    frames: Option<(usize, usize)>,
    log_prob: f64,
    symbols: usize,
}

impl PartialWord {
    fn push(&mut self, emission: &Emission, label: usize, text: &str, log_probs: &ArrayView2<f32>) {
        self.text.push_str(text);
        let start = self.frames.map_or(emission.start, |(start, _)| start);
        self.frames = Some((start, emission.end));
        let highest = (emission.start..emission.end).map(|frame| log_probs[[frame, label]]);
        self.log_prob += f64::from(highest.fold(f32::NEG_INFINITY, f32::max));
        self.symbols += 1;
    }

    /// Appends the word, if it has symbols, as `name` or as it is spelled.
    fn finish(&mut self, name: Option<&str>, words: &mut Vec<DecodedWord>) {
        let Self { text, frames, log_prob, symbols } = std::mem::take(self);
        let Some((start, end)) = frames else { return };
        let text = name.map_or(text, str::to_owned);
        let score = (log_prob / symbols as f64).exp() as f32;
        words.push(DecodedWord { text, start, end, score });
    }
}

/// Assembles emissions into words.
pub(super) fn assemble(
    emissions: &[Emission],
    score: f64,
    labels: &Labels,
    lexicon: Option<&Lexicon>,
    log_probs: &ArrayView2<f32>,
) -> Decoded {
    let (mut words, mut word) = (Vec::new(), PartialWord::default());
    for emission in emissions {
        match emission.symbol {
            Symbol::Label(label) => {
                let Some(text) = labels.text(label) else { continue };
                word.push(emission, label, text, log_probs);
                if labels.separator().is_none() {
                    word.finish(None, &mut words);
                }
            }
            Symbol::WordEnd(id) => {
                let name = id.and_then(|id| lexicon.map(|lexicon| lexicon.word(id)));
                word.finish(name, &mut words);
            }
        }
    }
    word.finish(None, &mut words);
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    let text = texts.join(labels.space());
    Decoded { words, text, score }
}
