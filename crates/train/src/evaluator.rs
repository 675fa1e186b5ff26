//! How good what a fine-tuned model says is, in the figures that are usual for its task.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use data2vec_core::head::Scored;
use data2vec_core::score::{Confusion, Edits, edits, pearson, ranks, spearman, top_k};
use data2vec_core::{HeadTask, Targets};
use data2vec_speech::ctc::{BeamSearch, Labels, SEPARATOR, greedy};
use ndarray::{ArrayD, ArrayView2, Ix2};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// By which figure of the evaluations the best model is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Figure {
    /// Word error rate; below 0 errors there are none.
    Wer,
    /// Letter error rate.
    Cer,
    /// Share of right answers.
    Accuracy,
    /// F1 of the second of two classes, or the mean over more.
    F1,
    /// Matthews correlation.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman correlation of ranks.
    Spearman,
}

impl Figure {
    /// Its name in evaluations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wer => "wer",
            Self::Cer => "cer",
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::Matthews => "matthews",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
        }
    }

    /// Whether `new` is better than `old`.
    pub fn is_better(self, new: f64, old: f64) -> bool {
        match self {
            Self::Wer | Self::Cer => new < old,
            _ => new > old,
        }
    }

    /// Whether a model for `task` has it.
    pub fn check(self, task: HeadTask) -> Result<()> {
        let of = match self {
            Self::Wer | Self::Cer => HeadTask::Ctc,
            Self::Accuracy | Self::F1 | Self::Matthews => HeadTask::Classification,
            Self::Pearson | Self::Spearman => HeadTask::Regression,
        };
        if of != task {
            bail!("select: `{}` is no figure of {task:?} heads", self.name());
        }
        Ok(())
    }
}

/// Gathers what a model says of examples, and what is right.
pub struct Judge<'a> {
    task: HeadTask,
    labels: &'a [String],
    symbols: Option<Labels>,
    search: Option<BeamSearch>,
    loss: f64,
    count: f64,
    words: Edits,
    letters: Edits,
    confusion: Confusion,
    /// How many classes have a higher score than the right one.
    ranks: Vec<usize>,
    /// The right number, and what was said.
    values: Vec<(f64, f64)>,
}

impl<'a> Judge<'a> {
    /// Of a head for `task` with these labels; texts are found by `search`, or greedily.
    pub fn new(task: HeadTask, labels: &'a [String], search: Option<BeamSearch>) -> Result<Self> {
        let symbols = match task {
            HeadTask::Ctc => Some(Labels::new(labels.to_vec())?),
            _ => None,
        };
        Ok(Self {
            task,
            labels,
            symbols,
            search,
            loss: 0.0,
            count: 0.0,
            words: Edits::default(),
            letters: Edits::default(),
            confusion: Confusion::new(labels.len()),
            ranks: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Adds a batch. Returns what was said of each row.
    pub fn add(&mut self, scored: &Scored, targets: &Targets) -> Result<Vec<Answer>> {
        self.loss += scored.loss.double_value(&[]);
        let scores = scored.scores.to_device(Device::Cpu).to_kind(Kind::Float);
        let rows = scores.size()[0];
        self.count += rows as f64;
        let mut answers = Vec::with_capacity(rows as usize);
        match targets {
            Targets::Classes(classes) => {
                self.ranks.extend(ranks(&scores, classes)?);
                let classes: Vec<i64> = classes.try_into()?;
                for (row, class) in classes.into_iter().enumerate() {
                    let (scores, class) = (scores.get(row as i64), class as usize);
                    let said = scores.argmax(0, false).int64_value(&[]) as usize;
                    let log_prob = scores.log_softmax(0, Kind::Float).double_value(&[class as i64]);
                    self.confusion.add(class, said)?;
                    let name = |class: usize| self.labels[class].clone();
                    answers.push(Answer { right: name(class), said: name(said), off: -log_prob });
                }
            }
            Targets::Values(values) => {
                let right: Vec<f32> = values.try_into()?;
                let said: Vec<f32> = scores.flatten(0, -1).try_into()?;
                for (right, said) in right.into_iter().zip(said) {
                    let (right, said) = (f64::from(right), f64::from(said));
                    self.values.push((right, said));
                    let [a, b] = [right, said].map(|value| format!("{value:.3}"));
                    answers.push(Answer { right: a, said: b, off: (right - said).abs() });
                }
            }
            Targets::Sequences { ids, lengths } => {
                let ids: Vec<i64> = ids.try_into()?;
                let mut rest = &ids[..];
                let scores = scores.log_softmax(-1, Kind::Float);
                for (row, (&len, &frames)) in lengths.iter().zip(&scored.lengths).enumerate() {
                    let (right, after) = rest.split_at(len as usize);
                    rest = after;
                    let log_probs = scores.get(row as i64).narrow(0, 0, frames); // (T, C)
                    let log_probs: ArrayD<f32> = (&log_probs).try_into()?;
                    let log_probs = log_probs.into_dimensionality::<Ix2>()?;
                    let said = self.decode(log_probs.view())?;
                    let right = self.reading(right);
                    answers.push(self.transcript(right, said));
                }
            }
            Targets::Shares(_) => bail!("mixed examples cannot be judged"),
        }
        Ok(answers)
    }

    fn decode(&self, log_probs: ArrayView2<f32>) -> Result<String> {
        match (&self.symbols, &self.search) {
            (_, Some(search)) => Ok(search.decode(log_probs)?.swap_remove(0).text),
            (Some(symbols), None) => Ok(greedy(log_probs, symbols)?.text),
            (None, None) => bail!("texts are judged of \"ctc\" heads alone"),
        }
    }

    /// The text that the labels `ids` spell.
    fn reading(&self, ids: &[i64]) -> String {
        let letters: String = ids.iter().map(|&id| self.labels[id as usize].as_str()).collect();
        letters.split(SEPARATOR).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Adds what was said of a recording whose text is `right`.
    pub fn transcript(&mut self, right: String, said: String) -> Answer {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        self.words += edits(&words(&right), &words(&said));
        let letters = |text: &str| text.chars().collect::<Vec<_>>();
        let these = edits(&letters(&right), &letters(&said));
        let off = these.rate().unwrap_or(these.insertions as f64);
        self.letters += these;
        Answer { right, said, off }
    }

    /// What is judged.
    pub fn task(&self) -> HeadTask {
        self.task
    }

    /// Loss over examples.
    pub fn loss(&self) -> f64 {
        self.loss / self.count
    }

    /// The figures by name; those that are not defined (a class that is never said, a constant) are missing.
    pub fn figures(&self) -> BTreeMap<String, f64> {
        let mut figures = BTreeMap::new();
        let mut put_as = |name: &str, value: Option<f64>| {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                figures.insert(name.to_owned(), value);
            }
        };
        if self.task == HeadTask::Classification && self.labels.len() > 5 {
            put_as("top5", top_k(&self.ranks, 5));
        }
        let mut put = |figure: Figure, value| put_as(figure.name(), value);
        match self.task {
            HeadTask::Ctc => {
                put(Figure::Wer, self.words.rate());
                put(Figure::Cer, self.letters.rate());
            }
            HeadTask::Classification => {
                let confusion = &self.confusion;
                put(Figure::Accuracy, confusion.accuracy());
                let binary = confusion.classes() == 2;
                put(Figure::F1, if binary { confusion.f1(1) } else { confusion.macro_f1() });
                put(Figure::Matthews, confusion.matthews());
            }
            HeadTask::Regression => {
                put(Figure::Pearson, pearson(&self.values));
                put(Figure::Spearman, spearman(&self.values));
            }
        }
        figures
    }

    /// How often each class was taken for each other.
    pub fn confusion(&self) -> &Confusion {
        &self.confusion
    }
}

/// What was said of an example.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What is right.
    pub right: String,
    /// What was said.
    pub said: String,
    /// How far off that is: errors a letter, −ln of the right class's probability, or the difference.
    pub off: f64,
}
