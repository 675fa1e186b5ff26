//! What was said in which frames, and the words in it.

use ndarray::ArrayView2;

use super::{Decoded, DecodedWord, Labels, lexicon::Lexicon};

/// Something said once, in the frames `start..end`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Said {
    pub symbol: Symbol,
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Symbol {
    /// A label that is part of a word.
    Label(usize),
    /// The end of a word, and which one of the lexicon it is, if there is one.
    Break(Option<u32>),
}

/// A word while its symbols are collected.
#[derive(Default)]
struct Open {
    text: String,
    frames: Option<(usize, usize)>,
    log_prob: f64,
    symbols: usize,
}

impl Open {
    fn push(&mut self, said: &Said, label: usize, text: &str, log_probs: &ArrayView2<f32>) {
        self.text.push_str(text);
        let start = self.frames.map_or(said.start, |(start, _)| start);
        self.frames = Some((start, said.end));
        let highest = (said.start..said.end).map(|frame| log_probs[[frame, label]]);
        self.log_prob += f64::from(highest.fold(f32::NEG_INFINITY, f32::max));
        self.symbols += 1;
    }

    fn close(&mut self, named: Option<&str>, words: &mut Vec<DecodedWord>) {
        let Self { text, frames, log_prob, symbols } = std::mem::take(self);
        let Some((start, end)) = frames else { return };
        let text = named.map_or(text, str::to_owned);
        let score = (log_prob / symbols as f64).exp() as f32;
        words.push(DecodedWord { text, start, end, score });
    }
}

/// The words of what was said.
pub(super) fn decoded(
    said: &[Said],
    score: f64,
    labels: &Labels,
    lexicon: Option<&Lexicon>,
    log_probs: &ArrayView2<f32>,
) -> Decoded {
    let (mut words, mut open) = (Vec::new(), Open::default());
    for said in said {
        match said.symbol {
            Symbol::Label(label) => {
                let Some(text) = labels.shown(label) else { continue };
                open.push(said, label, text, log_probs);
                if labels.separator.is_none() {
                    open.close(None, &mut words);
                }
            }
            Symbol::Break(word) => {
                let named = word.and_then(|word| lexicon.map(|lexicon| lexicon.word(word)));
                open.close(named, &mut words);
            }
        }
    }
    open.close(None, &mut words);
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    let text = texts.join(labels.space());
    Decoded { words, text, score }
}
