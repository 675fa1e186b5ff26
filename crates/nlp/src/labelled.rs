//! Texts, or pairs of texts, with a class or a number, as examples for fine-tuning.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data2vec_core::data::split::{Amount, stratified_split};
use data2vec_core::modality::finetune::Splittable;
use data2vec_core::random::hash;
use data2vec_core::{Dataset, Error, HeadTask, LabelledBatch, Result, Targets};
use data2vec_source::is_shard_path;
use rand::rngs::StdRng;
use tch::Tensor;

use crate::config::LabelledTextConfig;
use crate::dataset::collate;
use crate::sequence::encode_all;
use crate::tokenizer::Tokenizer;

mod glue;
mod listing;
mod record;
mod shards;
mod tsv;

pub(crate) use listing::FileKind;
pub use listing::LabelledFiles;
use record::Record;
pub(crate) use record::Skipped;
pub(crate) use tsv::read as read_table;

/// Ratings up to this absolute value are neutral; classification leaves them out.
const MAX_NEUTRAL_RATING: f64 = 0.5;
/// Classes of ratings, in order.
const RATINGS: [&str; 2] = ["negative", "positive"];
/// Name of the output of regression.
const SCORE: &str = "score";

/// Texts, or pairs of texts, with a class or a number each.
///
/// An example is token ids and a target. A batch is `(B, T)` i64, padded with `<pad>`, and targets
/// `(B)`. Clones and both sides of a [`split`](Self::split) share the texts.
#[derive(Clone, Debug)]
pub struct LabelledTexts {
    corpus: Arc<Corpus>,
    /// Indices into the examples of `corpus`.
    chosen: Arc<[usize]>,
}

#[derive(Debug)]
struct Corpus {
    path: PathBuf,
    tokenizer: Arc<Tokenizer>,
    task: HeadTask,
    labels: Vec<String>,
    examples: Vec<Example>,
    skipped: Skipped,
    /// Number of neutral ratings that were left out.
    neutral: usize,
}

#[derive(Debug)]
struct Example {
    /// Its line, or its name in a shard.
    location: String,
    /// Hash of its texts.
    key: u64,
    ids: Vec<u32>,
    truncated: bool,
    /// The index of its class, or its number.
    target: f64,
}

impl LabelledTexts {
    /// Reads the file or shards at `path`, see [`LabelledFiles`], for classification or regression.
    ///
    /// Without `labels`, the classes are those of the file, sorted by value if all are numbers,
    /// else by name. Pass the labels of the model, or of the training file, for any other file.
    /// Invalid lines are skipped, see [`skipped`](Self::skipped).
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::File`] if the file cannot be read, has no columns of text
    /// and label, or has no valid line; [`Error::Config`] if a setting is invalid.
    pub fn open(
        path: impl AsRef<Path>,
        config: &LabelledTextConfig,
        task: HeadTask,
        tokenizer: Arc<Tokenizer>,
        labels: Option<&[String]>,
    ) -> Result<Self> {
        let path = path.as_ref();
        config.validate()?;
        if task == HeadTask::Ctc {
            return Err(Error::config(
                "head.task",
                "must be \"classification\" or \"regression\" for texts",
            ));
        }
        let mut skipped = Skipped::default();
        let mut records = read(path, task, &mut skipped)?;
        let mut neutral = 0;
        if FileKind::of(path) == FileKind::Ratings && task == HeadTask::Classification {
            records.retain_mut(|record| match rating_class(&record.label) {
                Ok(Some(class)) => {
                    record.label = class.to_owned();
                    true
                }
                Ok(None) => {
                    neutral += 1;
                    false
                }
                Err(reason) => {
                    skipped.add(format!("{}: {reason}", record.location));
                    false
                }
            });
        }
        let labels = match (labels, task) {
            (Some(labels), _) => labels.to_vec(),
            (None, HeadTask::Classification) => sorted_classes(&records),
            (None, _) => vec![SCORE.to_owned()],
        };
        let mut targets = Vec::with_capacity(records.len());
        records.retain(|record| match target(&record.label, task, &labels) {
            Ok(target) => {
                targets.push(target);
                true
            }
            Err(reason) => {
                skipped.add(format!("{}: {reason}", record.location));
                false
            }
        });
        if records.is_empty() {
            let reason = skipped.list().into_iter().next();
            let reason = reason.unwrap_or_else(|| "the header is its only line".into());
            return Err(Error::file(path, format!("no valid labelled text: {reason}")));
        }
        if let ([one], HeadTask::Classification) = (&labels[..], task) {
            let reason = format!("all labels are {one:?}; two classes are needed");
            return Err(Error::file(path, reason));
        }
        let texts: Vec<&[String]> = records.iter().map(|record| &record.texts[..]).collect();
        let ids = encode_all(&tokenizer, &texts, config.max_tokens)?;
        let examples: Vec<Example> = records
            .into_iter()
            .zip(ids)
            .zip(targets)
            .map(|((record, (ids, truncated)), target)| Example {
                location: record.location,
                key: hash(record.texts.join("\t").as_bytes()),
                ids,
                truncated,
                target,
            })
            .collect();
        let chosen = (0..examples.len()).collect();
        let path = path.to_owned();
        let corpus = Corpus { path, tokenizer, task, labels, examples, skipped, neutral };
        Ok(Self { corpus: Arc::new(corpus), chosen })
    }

    /// Takes an amount of each class: returns (rest, taken).
    fn take(&self, key: &str, amount: Amount, seed: u64) -> Result<(Self, Self)> {
        let valid = match amount {
            Amount::Share(share) => share > 0.0 && share < 1.0,
            Amount::Each(count) => count > 0,
        };
        if !valid {
            let reason =
                format!("{amount:?} is invalid; a share is between 0 and 1, a number at least 1");
            return Err(Error::config(key, reason));
        }
        let class_and_key = |&at: &usize| {
            let Example { target, key, .. } = self.corpus.examples[at];
            // Regression has one class.
            let is_class = self.corpus.task == HeadTask::Classification;
            (if is_class { target as u64 } else { 0 }, key)
        };
        let all: Vec<(u64, u64)> = self.chosen.iter().map(class_and_key).collect();
        let (rest, taken) = stratified_split(&all, amount, seed);
        if taken.is_empty() {
            let reason = format!("{amount:?} of {} texts leaves none", self.len());
            return Err(Error::config(key, reason));
        }
        let select = |indices: Vec<usize>| {
            let chosen = indices.into_iter().map(|index| self.chosen[index]).collect();
            Self { chosen, ..self.clone() }
        };
        Ok((select(rest), select(taken)))
    }

    /// Returns the class names in order, or the name of the number.
    pub fn labels(&self) -> &[String] {
        &self.corpus.labels
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.corpus.tokenizer
    }

    /// Returns the target of an example: the index of its class, or its number.
    pub fn target(&self, index: usize) -> f64 {
        self.example(index).target
    }

    /// Returns the text as the model sees it; ` | ` separates the texts of a pair.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the tokenizer rejects the ids.
    pub fn text(&self, index: usize) -> Result<String> {
        let eos = self.tokenizer().special().eos;
        let ids: Vec<i64> = self.example(index).ids.iter().map(|&id| i64::from(id)).collect();
        let parts = ids.split(|&id| id == eos).filter(|part| !part.is_empty());
        let texts: Vec<String> =
            parts.map(|part| self.tokenizer().decode(part)).collect::<Result<_>>()?;
        Ok(texts.join(" | "))
    }

    /// Summarizes the examples in one line: their number per class, and the numbers of truncated
    /// texts and of neutral ratings that were left out.
    pub fn describe(&self) -> String {
        let all = || self.chosen.iter().map(|&at| &self.corpus.examples[at]);
        let mut parts = Vec::new();
        if self.corpus.task == HeadTask::Classification && self.labels().len() <= 10 {
            parts.extend(self.labels().iter().enumerate().map(|(class, label)| {
                let count = all().filter(|example| example.target == class as f64).count();
                format!("{label} {count}")
            }));
        } else if self.corpus.task == HeadTask::Classification {
            parts.push(format!("{} classes", self.labels().len()));
        }
        let truncated = all().filter(|example| example.truncated).count();
        if truncated > 0 {
            parts.push(format!("{truncated} truncated"));
        }
        if self.corpus.neutral > 0 {
            parts.push(format!("{} neutral left out of the file", self.corpus.neutral));
        }
        match parts.is_empty() {
            true => format!("{} texts", self.len()),
            false => format!("{} texts ({})", self.len(), parts.join(", ")),
        }
    }

    /// Returns one line for each skipped line of the file: `path: line N: reason`. Beyond ten
    /// thousand, the last line counts the rest.
    pub fn skipped(&self) -> Vec<String> {
        let path = self.corpus.path.display();
        self.corpus.skipped.list().into_iter().map(|reason| format!("{path}: {reason}")).collect()
    }

    fn example(&self, index: usize) -> &Example {
        &self.corpus.examples[self.chosen[index]]
    }
}

impl Splittable for LabelledTexts {
    /// Splits off about `share` of each class: returns (train, held out).
    ///
    /// The split depends only on the texts and `seed`; equal texts stay on the same side.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if one side would be empty.
    fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)> {
        let (train, held_out) = self.take("train.held_out", Amount::Share(share), seed)?;
        if train.is_empty() {
            let reason = format!("{share} of {} texts leaves none to train on", self.len());
            return Err(Error::config("train.held_out", reason));
        }
        Ok((train, held_out))
    }

    /// Returns a subset of each class, e.g. 1 % of the labels. Larger amounts with the same `seed`
    /// contain smaller ones.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if the subset would be empty.
    fn subsample(&self, amount: Amount, seed: u64) -> Result<Self> {
        if amount == Amount::Share(1.0) {
            return Ok(self.clone());
        }
        Ok(self.take("label_share", amount, seed)?.1)
    }
}

/// Reads the records of a file or of shards.
fn read(path: &Path, task: HeadTask, skipped: &mut Skipped) -> Result<Vec<Record>> {
    let is_file = FileKind::of(path) != FileKind::Other && path.is_file();
    if path.is_dir() || (is_shard_path(path) && !is_file) {
        return shards::read(path, task, skipped);
    }
    tsv::read(path, task, skipped)
}

/// Returns the class of a rating; `None` if it is neutral.
fn rating_class(text: &str) -> std::result::Result<Option<&'static str>, String> {
    let rating = number(text)?;
    Ok((rating.abs() > MAX_NEUTRAL_RATING).then_some(RATINGS[usize::from(rating > 0.0)]))
}

/// Returns all classes, sorted by value if all are numbers, else by name.
fn sorted_classes(records: &[Record]) -> Vec<String> {
    let names: BTreeSet<&str> = records.iter().map(|record| record.label.as_str()).collect();
    let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    if names.iter().all(|name| number(name).is_ok()) {
        let value = |name: &String| number(name).unwrap_or(f64::NAN);
        names.sort_by(|a, b| value(a).total_cmp(&value(b)));
    }
    names
}

/// Returns the target of a label.
fn target(label: &str, task: HeadTask, labels: &[String]) -> std::result::Result<f64, String> {
    if task == HeadTask::Regression {
        return number(label);
    }
    let class = labels.iter().position(|known| known == label);
    class.map(|class| class as f64).ok_or_else(|| {
        let known = labels.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
        format!("label {label:?} is not one of {known}")
    })
}

fn number(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{text:?} is not a number"))
}

impl Dataset for LabelledTexts {
    type Example = (Vec<i64>, f64);
    type Batch = LabelledBatch;

    fn len(&self) -> usize {
        self.chosen.len()
    }

    fn size(&self, index: usize) -> u64 {
        self.example(index).ids.len() as u64
    }

    fn name(&self, index: usize) -> String {
        format!("{}, {}", self.corpus.path.display(), self.example(index).location)
    }

    fn load(&self, index: usize, _rng: &mut StdRng) -> Result<Self::Example> {
        let Example { ids, target, .. } = self.example(index);
        Ok((ids.iter().map(|&id| i64::from(id)).collect(), *target))
    }

    fn collate(&self, examples: Vec<Self::Example>, _rng: &mut StdRng) -> Result<LabelledBatch> {
        let (rows, targets): (Vec<_>, Vec<f64>) = examples.into_iter().unzip();
        let targets = match self.corpus.task {
            HeadTask::Regression => {
                let values: Vec<f32> = targets.iter().map(|&value| value as f32).collect();
                Targets::Values(Tensor::from_slice(&values)) // (B)
            }
            _ => {
                let classes: Vec<i64> = targets.iter().map(|&class| class as i64).collect();
                Targets::Classes(Tensor::from_slice(&classes)) // (B)
            }
        };
        Ok(LabelledBatch { batch: collate(&rows, self.tokenizer().special().pad)?, targets })
    }
}
