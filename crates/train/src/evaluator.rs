//! Computes the usual metrics of fine-tuned models.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use data2vec_core::eval::score::{
    Confusion, Edits, SequenceDecoder, edits, pearson, spearman, target_ranks, top_k,
};
use data2vec_core::model::head::Scored;
use data2vec_core::{HeadTask, Targets};
use ndarray::{ArrayD, Ix2};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// A metric by which the best model can be selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Word error rate.
    Wer,
    /// Character error rate.
    Cer,
    /// Share of correct predictions.
    Accuracy,
    /// F1 of the second of two classes, or the mean over more classes.
    F1,
    /// Matthews correlation.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman correlation of ranks.
    Spearman,
}

impl Metric {
    /// Returns the name in logs and results.
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

    /// Returns whether `new` is better than `old`.
    pub fn is_better(self, new: f64, old: f64) -> bool {
        match self {
            Self::Wer | Self::Cer => new < old,
            _ => new > old,
        }
    }

    /// Checks that models for `task` have the metric.
    ///
    /// # Errors
    /// If they do not.
    pub fn check(self, task: HeadTask) -> Result<()> {
        let of = match self {
            Self::Wer | Self::Cer => HeadTask::Ctc,
            Self::Accuracy | Self::F1 | Self::Matthews => HeadTask::Classification,
            Self::Pearson | Self::Spearman => HeadTask::Regression,
        };
        if of != task {
            bail!("select: {task:?} heads have no metric `{}`", self.name());
        }
        Ok(())
    }
}

/// Accumulates predictions and targets.
pub struct Evaluator<'a> {
    task: HeadTask,
    labels: &'a [String],
    decoder: Option<Box<dyn SequenceDecoder>>,
    loss: f64,
    count: f64,
    words: Edits,
    letters: Edits,
    confusion: Confusion,
    /// Number of classes with a higher score than the target's, by example.
    ranks: Vec<usize>,
    /// Targets and predictions of a regression head.
    values: Vec<(f64, f64)>,
}

impl<'a> Evaluator<'a> {
    /// Creates an evaluator of a head for `task` with these labels; `decoder` is for CTC heads.
    pub fn new(
        task: HeadTask,
        labels: &'a [String],
        decoder: Option<Box<dyn SequenceDecoder>>,
    ) -> Self {
        Self {
            task,
            labels,
            decoder,
            loss: 0.0,
            count: 0.0,
            words: Edits::default(),
            letters: Edits::default(),
            confusion: Confusion::new(labels.len()),
            ranks: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Adds a batch. Returns the prediction for each row.
    ///
    /// # Errors
    /// If targets and task do not match.
    pub fn add(&mut self, scored: &Scored, targets: &Targets) -> Result<Vec<Prediction>> {
        self.loss += scored.loss.double_value(&[]);
        let scores = scored.scores.to_device(Device::Cpu).to_kind(Kind::Float);
        let rows = scores.size()[0];
        self.count += rows as f64;
        let mut answers = Vec::with_capacity(rows as usize);
        match targets {
            Targets::Classes(classes) => {
                self.ranks.extend(target_ranks(&scores, classes)?);
                let classes: Vec<i64> = classes.try_into()?;
                for (row, class) in classes.into_iter().enumerate() {
                    let (scores, class) = (scores.get(row as i64), class as usize);
                    let said = scores.argmax(0, false).int64_value(&[]) as usize;
                    let log_prob = scores.log_softmax(0, Kind::Float).double_value(&[class as i64]);
                    self.confusion.add(class, said)?;
                    let name = |class: usize| self.labels[class].clone();
                    answers.push(Prediction {
                        target: name(class),
                        prediction: name(said),
                        error: -log_prob,
                    });
                }
            }
            Targets::Values(values) => {
                let right: Vec<f32> = values.try_into()?;
                let said: Vec<f32> = scores.flatten(0, -1).try_into()?;
                for (right, said) in right.into_iter().zip(said) {
                    let (right, said) = (f64::from(right), f64::from(said));
                    self.values.push((right, said));
                    let [a, b] = [right, said].map(|value| format!("{value:.3}"));
                    answers.push(Prediction {
                        target: a,
                        prediction: b,
                        error: (right - said).abs(),
                    });
                }
            }
            Targets::Sequences { ids, lengths } => {
                let Some(decoder) = self.decoder.take() else {
                    bail!("only \"ctc\" heads have transcripts");
                };
                let ids: Vec<i64> = ids.try_into()?;
                let mut rest = &ids[..];
                let scores = scores.log_softmax(-1, Kind::Float);
                for (row, (&len, &frames)) in lengths.iter().zip(&scored.lengths).enumerate() {
                    let (right, after) = rest.split_at(len as usize);
                    rest = after;
                    let log_probs = scores.get(row as i64).narrow(0, 0, frames); // (T, C)
                    let log_probs: ArrayD<f32> = (&log_probs).try_into()?;
                    let log_probs = log_probs.into_dimensionality::<Ix2>()?;
                    let said = decoder.decode(log_probs.view())?;
                    answers.push(self.transcript(decoder.spell(right), said));
                }
                self.decoder = Some(decoder);
            }
            Targets::SoftLabels(_) => bail!("mixed examples cannot be evaluated"),
        }
        Ok(answers)
    }

    /// Adds the transcript of one example.
    pub fn transcript(&mut self, target: String, prediction: String) -> Prediction {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        self.words += edits(&words(&target), &words(&prediction));
        let letters = |text: &str| text.chars().collect::<Vec<_>>();
        let new = edits(&letters(&target), &letters(&prediction));
        let error = new.rate().unwrap_or(new.insertions as f64);
        self.letters += new;
        Prediction { target, prediction, error }
    }

    /// Returns the task of the head.
    pub fn task(&self) -> HeadTask {
        self.task
    }

    /// Returns the mean loss over examples.
    pub fn loss(&self) -> f64 {
        self.loss / self.count
    }

    /// Returns metrics by name; undefined ones (a class that is never predicted, a constant) are
    /// missing.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let mut metrics = BTreeMap::new();
        let mut put_as = |name: &str, value: Option<f64>| {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                metrics.insert(name.to_owned(), value);
            }
        };
        if self.task == HeadTask::Classification && self.labels.len() > 5 {
            put_as("top5", top_k(&self.ranks, 5));
        }
        let mut put = |figure: Metric, value| put_as(figure.name(), value);
        match self.task {
            HeadTask::Ctc => {
                put(Metric::Wer, self.words.rate());
                put(Metric::Cer, self.letters.rate());
            }
            HeadTask::Classification => {
                let confusion = &self.confusion;
                put(Metric::Accuracy, confusion.accuracy());
                let binary = confusion.classes() == 2;
                put(Metric::F1, if binary { confusion.f1(1) } else { confusion.macro_f1() });
                put(Metric::Matthews, confusion.matthews());
            }
            HeadTask::Regression => {
                put(Metric::Pearson, pearson(&self.values));
                put(Metric::Spearman, spearman(&self.values));
            }
        }
        metrics
    }

    /// Returns the confusion matrix.
    pub fn confusion(&self) -> &Confusion {
        &self.confusion
    }
}

/// A prediction for one example.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prediction {
    /// The target: a label, a number or a transcript.
    pub target: String,
    /// The prediction.
    pub prediction: String,
    /// Character error rate, −ln of the target's probability, or the absolute difference.
    pub error: f64,
}
