//! Labelled texts as examples for fine-tuning: one text or a pair, and a class or a number.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use data2vec_core::{
    Dataset, Error, HeadTask, LabelledBatch, Result, Targets,
    random::hash,
    split::{Amount, stratified},
};
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{
    TokenEncoderConfig, Tokenizer, collate,
    glue::{Kind, kind},
    sequence::sequences,
    tsv::{Record, Skipped, read},
};

/// Special tokens of a pair and a token of each text.
const LEAST_TOKENS: usize = 6;
/// Ratings up to this are neither good nor bad.
const CLEAR_RATING: f64 = 0.5;
/// What ratings say, in the order of their classes.
const RATINGS: [&str; 2] = ["negative", "positive"];
/// What the number is called that is to be told.
const SCORE: &str = "score";

/// How labelled texts become examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledTextConfig {
    /// Most tokens of an example, special ones included: 512 in all of data2vec. Longer ones are cut, of a
    /// pair the longer text first.
    pub max_tokens: usize,
}

impl LabelledTextConfig {
    /// Checks it alone.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn validate(&self) -> Result<()> {
        if self.max_tokens < LEAST_TOKENS {
            let reason = format!("{} is below {LEAST_TOKENS}: no room for text", self.max_tokens);
            return Err(Error::config("data.max_tokens", reason));
        }
        Ok(())
    }

    /// Whether an encoder can take so many tokens.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn fits(&self, features: &TokenEncoderConfig) -> Result<()> {
        if self.max_tokens as i64 > features.max_tokens {
            let most = features.max_tokens;
            let reason = format!("{} is above the encoder's, {most}", self.max_tokens);
            return Err(Error::config("data.max_tokens", reason));
        }
        Ok(())
    }
}

/// Texts with a class or a number each: `load` gives token ids and what is to be told of them, a batch is
/// `(B, T)` i64, filled up with `<pad>`.
///
/// A clone, and each side of a [`split`](Self::split), shares the texts.
#[derive(Clone, Debug)]
pub struct LabelledTexts {
    corpus: Arc<Corpus>,
    /// Of its examples.
    places: Arc<Vec<usize>>,
}

#[derive(Debug)]
struct Corpus {
    path: PathBuf,
    tokenizer: Arc<Tokenizer>,
    task: HeadTask,
    labels: Vec<String>,
    examples: Vec<Example>,
    skipped: Skipped,
    left_out: usize,
}

#[derive(Debug)]
struct Example {
    /// Its line, or its name in shards.
    place: String,
    /// Hash of its texts.
    key: u64,
    ids: Vec<u32>,
    cut: bool,
    /// A class's number, or what is to be told.
    target: f64,
}

impl LabelledTexts {
    /// Reads the file `path`, one of [`LabelledFiles`](crate::LabelledFiles), for classification or regression
    /// by `task`. Without `labels` the classes are those that the file has, in the order of their names or
    /// numbers; give those of a model, or of the file that was trained on, for any other one.
    ///
    /// Lines of no use are no error: see [`skipped`](Self::skipped).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if it cannot be read, has no columns of text and label, or no line of
    /// use; [`Error::Config`] if the configuration is impossible.
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
            return Err(Error::config("head.task", "\"ctc\" is not for labelled texts"));
        }
        let mut skipped = Skipped::default();
        let mut records = read(path, task, &mut skipped)?;
        let mut left_out = 0;
        if kind(path) == Kind::Ratings && task == HeadTask::Classification {
            records.retain_mut(|record| match rating(&record.label) {
                Ok(Some(class)) => {
                    record.label = class.to_owned();
                    true
                }
                Ok(None) => {
                    left_out += 1;
                    false
                }
                Err(reason) => {
                    skipped.add(format!("{}: {reason}", record.place));
                    false
                }
            });
        }
        let labels = match (labels, task) {
            (Some(labels), _) => labels.to_vec(),
            (None, HeadTask::Classification) => classes(&records),
            (None, _) => vec![SCORE.to_owned()],
        };
        let mut targets = Vec::with_capacity(records.len());
        records.retain(|record| match target(&record.label, task, &labels) {
            Ok(target) => {
                targets.push(target);
                true
            }
            Err(reason) => {
                skipped.add(format!("{}: {reason}", record.place));
                false
            }
        });
        if records.is_empty() {
            let why = skipped.list().into_iter().next();
            let why = why.unwrap_or_else(|| "there is only a header".into());
            return Err(Error::file(path, format!("no labelled text of use in it: {why}")));
        }
        if let ([one], HeadTask::Classification) = (&labels[..], task) {
            return Err(Error::file(path, format!("all labels are {one:?}: nothing to learn")));
        }
        let ids = sequences(&records, &tokenizer, config.max_tokens)?;
        let examples =
            records.iter().zip(ids).zip(targets).map(|((record, (ids, cut)), target)| Example {
                place: record.place.clone(),
                key: hash(record.texts.join("\t").as_bytes()),
                ids,
                cut,
                target,
            });
        let examples: Vec<Example> = examples.collect();
        let places = Arc::new((0..examples.len()).collect());
        let path = path.to_owned();
        let corpus = Corpus { path, tokenizer, task, labels, examples, skipped, left_out };
        Ok(Self { corpus: Arc::new(corpus), places })
    }

    /// The rest, and what is held out: about this share of each class, in `(0, 1)`. Which texts depends on
    /// themselves and `seed` alone, and equal ones are on one side.
    ///
    /// # Errors
    /// [`Error::Config`] if one side would be empty.
    pub fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)> {
        let (rest, held_out) = self.part("train.held_out", Amount::Share(share), seed)?;
        if rest.is_empty() {
            let reason = format!("{share} of {} texts leaves none to train on", self.len());
            return Err(Error::config("train.held_out", reason));
        }
        Ok((rest, held_out))
    }

    /// Only so many of each class, as [`split`](Self::split) chooses them; more include fewer.
    ///
    /// # Errors
    /// [`Error::Config`] if nothing would be left.
    pub fn few(&self, amount: Amount, seed: u64) -> Result<Self> {
        Ok(self.part("data.few", amount, seed)?.1)
    }

    /// What is left and what is taken.
    fn part(&self, key: &str, amount: Amount, seed: u64) -> Result<(Self, Self)> {
        let possible = match amount {
            Amount::Share(share) => share > 0.0 && share < 1.0,
            Amount::Each(count) => count > 0,
        };
        if !possible {
            let reason = format!("{amount:?}: a share is between 0 and 1, a number at least 1");
            return Err(Error::config(key, reason));
        }
        let of = |&place: &usize| {
            let Example { target, key, .. } = self.corpus.examples[place];
            // Numbers are of one kind.
            (if self.corpus.task == HeadTask::Classification { target as u64 } else { 0 }, key)
        };
        let all: Vec<(u64, u64)> = self.places.iter().map(of).collect();
        let (left, taken) = stratified(&all, amount, seed);
        if taken.is_empty() {
            let reason = format!("{amount:?} of {} texts is none", self.len());
            return Err(Error::config(key, reason));
        }
        let side = |side: Vec<usize>| {
            let places = side.into_iter().map(|at| self.places[at]).collect();
            Self { places: Arc::new(places), ..self.clone() }
        };
        Ok((side(left), side(taken)))
    }

    /// What the targets mean: the classes' names, in order, or the number's.
    pub fn labels(&self) -> &[String] {
        &self.corpus.labels
    }

    /// Text to ids and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.corpus.tokenizer
    }

    /// What is right: the number of a class, or the number that is to be told.
    pub fn target(&self, index: usize) -> f64 {
        self.example(index).target
    }

    /// The text as the model sees it, a pair's second one after ` | `.
    ///
    /// # Errors
    /// [`Error::Input`] if the tokenizer refuses the ids.
    pub fn text(&self, index: usize) -> Result<String> {
        let end = self.tokenizer().special().end;
        let ids: Vec<i64> = self.example(index).ids.iter().map(|&id| i64::from(id)).collect();
        let parts = ids.split(|&id| id == end).filter(|part| !part.is_empty());
        let texts: Vec<String> =
            parts.map(|part| self.tokenizer().decode(part)).collect::<Result<_>>()?;
        Ok(texts.join(" | "))
    }

    /// What is here, in one line: how many of each class, how many were cut to the most tokens, how many
    /// ratings of the file were unclear.
    pub fn describe(&self) -> String {
        let all = || self.places.iter().map(|&place| &self.corpus.examples[place]);
        let mut parts = Vec::new();
        if self.corpus.task == HeadTask::Classification && self.labels().len() <= 10 {
            parts.extend(self.labels().iter().enumerate().map(|(class, label)| {
                let count = all().filter(|example| example.target == class as f64).count();
                format!("{label} {count}")
            }));
        } else if self.corpus.task == HeadTask::Classification {
            parts.push(format!("{} classes", self.labels().len()));
        }
        let cut = all().filter(|example| example.cut).count();
        if cut > 0 {
            parts.push(format!("{cut} cut"));
        }
        if self.corpus.left_out > 0 {
            parts.push(format!("{} of the file between the classes", self.corpus.left_out));
        }
        match parts.is_empty() {
            true => format!("{} texts", self.len()),
            false => format!("{} texts ({})", self.len(), parts.join(", ")),
        }
    }

    /// Lines of the file that are of no use, each with its number and reason; beyond ten thousand they are only
    /// counted.
    pub fn skipped(&self) -> Vec<String> {
        let path = self.corpus.path.display();
        self.corpus.skipped.list().into_iter().map(|reason| format!("{path}: {reason}")).collect()
    }

    fn example(&self, index: usize) -> &Example {
        &self.corpus.examples[self.places[index]]
    }
}

/// What a rating says, if it is a clear one.
fn rating(text: &str) -> std::result::Result<Option<&'static str>, String> {
    let rating = number(text)?;
    Ok((rating.abs() > CLEAR_RATING).then_some(RATINGS[usize::from(rating > 0.0)]))
}

/// The classes there are: by number where all are numbers, else by name.
fn classes(records: &[Record]) -> Vec<String> {
    let names: BTreeSet<&str> = records.iter().map(|record| record.label.as_str()).collect();
    let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    if names.iter().all(|name| number(name).is_ok()) {
        let value = |name: &String| number(name).unwrap_or(f64::NAN);
        names.sort_by(|a, b| value(a).total_cmp(&value(b)));
    }
    names
}

fn target(label: &str, task: HeadTask, labels: &[String]) -> std::result::Result<f64, String> {
    if task == HeadTask::Regression {
        return number(label);
    }
    let class = labels.iter().position(|known| known == label);
    class.map(|class| class as f64).ok_or_else(|| {
        let known = labels.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
        format!("label {label:?} is none of {known}")
    })
}

fn number(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{text:?} is no number"))
}

impl Dataset for LabelledTexts {
    type Example = (Vec<i64>, f64);
    type Batch = LabelledBatch;

    fn len(&self) -> usize {
        self.places.len()
    }

    fn size(&self, index: usize) -> u64 {
        self.example(index).ids.len() as u64
    }

    fn name(&self, index: usize) -> String {
        format!("{}, {}", self.corpus.path.display(), self.example(index).place)
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
