//! Recordings with what is said in them, or what they are, as examples for fine-tuning.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use data2vec_core::{Dataset, Error, LabelledBatch, Result, Targets};
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{
    Batching, HeldOut, SpeechDataConfig, SpeechDataset, WaveEncoderConfig,
    audio::{MAX_SECONDS, SAMPLE_RATE},
    ctc::Labels,
    transcripts::{self, Case, normalize},
    vocabulary,
};

/// Which labelled recordings are used, and what their labels are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledSpeechConfig {
    /// What is learned.
    pub label: LabelKind,
    /// Shorter recordings are left out. Absent: those too short for a single frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_seconds: Option<f64>,
    /// Longer recordings are left out if they have texts; of those with classes a piece is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<f64>,
    /// What becomes of upper and lower case in texts.
    #[serde(default)]
    pub case: Case,
    /// The symbols that texts are written in: Hugging Face's `vocab.json` or fairseq's `dict.ltr.txt`.
    /// Absent: those of the texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<PathBuf>,
}

/// What is learned of recordings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelKind {
    /// What is said.
    Text,
    /// One of a set of classes: the label of a table `path<TAB>label`, or the name of the folder.
    Class,
}

/// How many recordings are not used, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Without a label, or with one that says nothing.
    pub unlabelled: usize,
    /// With fewer frames than their text has symbols, and blanks between equal ones.
    pub too_short_for_text: usize,
    /// Shorter than `min_seconds`.
    pub too_short: usize,
    /// Longer than `max_seconds`.
    pub too_long: usize,
    /// Of a class that is not among the labels.
    pub other_class: usize,
    /// Audio that cannot be read.
    pub unreadable: usize,
}

impl LeftOut {
    fn describe(&self) -> Option<String> {
        let reasons = [
            (self.unlabelled, "without a label"),
            (self.too_short_for_text, "too short for their text"),
            (self.too_short, "shorter than min_seconds"),
            (self.too_long, "longer than max_seconds"),
            (self.other_class, "of another class"),
            (self.unreadable, "unreadable"),
        ];
        let told = reasons.iter().filter(|(count, _)| *count > 0);
        let told: Vec<String> = told.map(|(count, reason)| format!("{count} {reason}")).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }
}

/// Recordings and their labels as they are written, before it is settled which numbers they have.
///
/// Texts are normalised ([`normalize_text`](crate::normalize_text)). The way to examples:
/// [`open`](Self::open), [`split`](Self::split), [`labels`](Self::labels) of the side to train on,
/// [`dataset`](Self::dataset) of both with these labels.
#[derive(Clone, Debug)]
pub struct LabelledSpeech {
    audio: SpeechDataset,
    /// Texts or classes, by relative path.
    labels: Arc<HashMap<PathBuf, String>>,
    config: LabelledSpeechConfig,
    features: WaveEncoderConfig,
    left_out: LeftOut,
}

impl LabelledSpeech {
    /// Lists the recordings at `path` as [`SpeechDataset::open`] does, and finds their labels beside
    /// them. Texts: `.ltr` or `.wrd` beside a fairseq manifest; tables `path<TAB>text` (`.tsv`);
    /// LibriSpeech's `*.trans.txt`; `NAME.txt` or `NAME.lab` beside `NAME.wav`; Asterisk's
    /// `core-sounds-*.txt`; Sphinx's `*.transcription`; the dialogues of Fish Fillets. Classes: tables
    /// `path<TAB>label`, else the name of the folder that a recording is in. In shards: fields `txt` or
    /// `cls`, columns `text` or `label` and the like, or these in a field `json`.
    ///
    /// # Errors
    /// As [`SpeechDataset::open`], or if there are no labels, or a file of labels is broken.
    pub fn open(
        path: impl AsRef<Path>,
        config: &LabelledSpeechConfig,
        features: &WaveEncoderConfig,
        index_folder: Option<&Path>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let least = features.receptive_field() as f64 / f64::from(SAMPLE_RATE);
        let most = config.max_seconds.unwrap_or(MAX_SECONDS as f64);
        let listed = SpeechDataConfig {
            min_seconds: config.min_seconds.unwrap_or(least).max(least),
            max_seconds: most,
            batching: Batching::Pad,
        };
        let audio = SpeechDataset::open(path, &listed, index_folder)?;
        let audio = audio.normalized(features.normalize);
        let all: Vec<usize> = (0..audio.len()).collect();
        let told = audio.labels(config.label, path, &all)?.into_iter().map(|label| {
            label.map(|label| match config.label {
                LabelKind::Text => normalize(&label, config.case),
                LabelKind::Class => label.trim().to_owned(),
            })
        });
        let labels: HashMap<PathBuf, String> = (0..audio.len())
            .zip(told)
            .filter_map(|(at, label)| Some((audio.relative_path(at).to_owned(), label?)))
            .collect();
        let mut left_out = LeftOut {
            too_short: audio.too_short(),
            unreadable: audio.skipped().len(),
            ..LeftOut::default()
        };
        let longest = (most * f64::from(SAMPLE_RATE)).round() as u64;
        let kept = (0..audio.len()).filter(|&at| {
            let labelled =
                labels.get(audio.relative_path(at)).is_some_and(|label| !label.is_empty());
            let too_long = config.label == LabelKind::Text && audio.samples(at) > longest;
            left_out.unlabelled += usize::from(!labelled);
            left_out.too_long += usize::from(labelled && too_long);
            labelled && !too_long
        });
        let kept: Vec<usize> = kept.collect();
        if kept.is_empty() {
            let found = audio.len();
            let reason = match left_out.too_long {
                0 => format!(
                    "no labels for its {found} recordings: looked for {}",
                    transcripts::LOOKED_FOR
                ),
                n => format!("all {n} labelled recordings are longer than max_seconds = {most}"),
            };
            return Err(Error::file(path, reason));
        }
        let audio = audio.subset(&kept);
        let (config, features) = (config.clone(), features.clone());
        Ok(Self { audio, labels: Arc::new(labels), config, features, left_out })
    }

    /// The rest, and what is held out, as [`SpeechDataset::split`] splits.
    ///
    /// # Errors
    /// [`Error::Config`] if one side would be empty.
    pub fn split(&self, held_out: HeldOut, seed: u64) -> Result<(Self, Self)> {
        let (rest, held_out) = self.audio.split(held_out, seed)?;
        // What was left out is told once.
        let side = |audio, left_out| Self { audio, left_out, ..self.clone() };
        Ok((side(rest, self.left_out), side(held_out, LeftOut::default())))
    }

    /// How many recordings there are.
    pub fn len(&self) -> usize {
        self.audio.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The recordings.
    pub fn audio(&self) -> &SpeechDataset {
        &self.audio
    }

    /// A recording's text, or class.
    pub fn label(&self, index: usize) -> &str {
        self.labels.get(self.audio.relative_path(index)).map_or("", String::as_str)
    }

    /// What the outputs of a head for these recordings mean. Of texts: the vocabulary that the
    /// configuration names, or `<pad>`, `<s>`, `</s>`, `<unk>`, `|` and then the symbols from the most
    /// to the least frequent. Of classes: their names, sorted.
    ///
    /// # Errors
    /// If the vocabulary cannot be read.
    pub fn labels(&self) -> Result<Vec<String>> {
        let all = (0..self.len()).map(|at| self.label(at));
        match (self.config.label, &self.config.vocabulary) {
            (LabelKind::Class, _) => {
                let classes: BTreeSet<&str> = all.collect();
                Ok(classes.into_iter().map(str::to_owned).collect())
            }
            (LabelKind::Text, Some(path)) => vocabulary::read(path),
            (LabelKind::Text, None) => Ok(vocabulary::of_texts(all)),
        }
    }

    /// The recordings as examples, their labels numbered by `labels`.
    ///
    /// # Errors
    /// [`Error::Config`] if no recording suits the labels.
    pub fn dataset(&self, labels: &[String]) -> Result<TranscribedDataset> {
        let mut left_out = self.left_out;
        let (mut kept, mut targets, mut unknown) = (Vec::new(), Vec::new(), 0);
        match self.config.label {
            LabelKind::Class => {
                let numbers: BTreeMap<&str, i64> =
                    (0..).zip(labels).map(|(n, name)| (name.as_str(), n)).collect();
                for at in 0..self.len() {
                    match numbers.get(self.label(at)) {
                        Some(&class) => {
                            kept.push(at);
                            targets.push(vec![class]);
                        }
                        None => left_out.other_class += 1,
                    }
                }
            }
            LabelKind::Text => {
                let known = Labels::new(labels.to_vec())?;
                for at in 0..self.len() {
                    let (ids, strange) = vocabulary::encode(self.label(at), &known);
                    let repeats = ids.windows(2).filter(|pair| pair[0] == pair[1]).count();
                    let frames = self.features.frames(self.audio.samples(at) as i64);
                    if ids.is_empty() {
                        left_out.unlabelled += 1;
                    } else if frames < (ids.len() + repeats) as i64 {
                        left_out.too_short_for_text += 1;
                    } else {
                        unknown += strange;
                        kept.push(at);
                        targets.push(ids);
                    }
                }
            }
        }
        if kept.is_empty() {
            let reason = left_out.describe().unwrap_or_default();
            return Err(Error::config("data", format!("no recording is left: {reason}")));
        }
        Ok(TranscribedDataset {
            texts: kept.iter().map(|&at| self.label(at).to_owned()).collect(),
            audio: self.audio.subset(&kept),
            targets,
            kind: self.config.label,
            labels: labels.len(),
            left_out,
            unknown,
        })
    }
}

/// Recordings with numbered labels: `load` gives the samples of a whole one at 16 kHz and its labels,
/// a batch is `(B, S)` f32, padded, with [`Targets::Sequences`] for texts or [`Targets::Classes`].
#[derive(Clone, Debug)]
pub struct TranscribedDataset {
    audio: SpeechDataset,
    texts: Vec<String>,
    targets: Vec<Vec<i64>>,
    kind: LabelKind,
    labels: usize,
    left_out: LeftOut,
    unknown: usize,
}

impl TranscribedDataset {
    /// The recordings.
    pub fn audio(&self) -> &SpeechDataset {
        &self.audio
    }

    /// A recording's normalised text, or class.
    pub fn text(&self, index: usize) -> &str {
        &self.texts[index]
    }

    /// A recording's labels as numbers; of a class one.
    pub fn target(&self, index: usize) -> &[i64] {
        &self.targets[index]
    }

    /// Which recordings are not in it.
    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// Symbols of the texts that are no label, and count as `<unk>`.
    pub fn unknown_symbols(&self) -> usize {
        self.unknown
    }

    /// In one line: recordings, minutes, labels, and what was left out.
    pub fn summary(&self) -> String {
        let minutes = self.audio.seconds() / 60.0;
        let what = match self.kind {
            LabelKind::Text => "symbols",
            LabelKind::Class => "classes",
        };
        let mut summary =
            format!("{} recordings, {minutes:.1} minutes, {} {what}", self.len(), self.labels);
        if self.unknown > 0 {
            summary += &format!(", {} of their texts unknown", self.unknown);
        }
        if let Some(left_out) = self.left_out.describe() {
            summary += &format!("; left out: {left_out}");
        }
        summary
    }
}

impl Dataset for TranscribedDataset {
    type Example = (Vec<f32>, Vec<i64>);
    type Batch = LabelledBatch;

    fn len(&self) -> usize {
        self.targets.len()
    }

    fn size(&self, index: usize) -> u64 {
        self.audio.size(index)
    }

    fn name(&self, index: usize) -> String {
        self.audio.name(index)
    }

    fn prefetch(&self, indices: &[u32]) {
        self.audio.prefetch(indices);
    }

    fn load(&self, index: usize, rng: &mut StdRng) -> Result<Self::Example> {
        Ok((self.audio.load(index, rng)?, self.targets[index].clone()))
    }

    fn collate(&self, examples: Vec<Self::Example>, rng: &mut StdRng) -> Result<LabelledBatch> {
        let (waves, targets): (Vec<_>, Vec<_>) = examples.into_iter().unzip();
        let batch = self.audio.collate(waves, rng)?;
        let ids = Tensor::from_slice(&targets.concat());
        let targets = match self.kind {
            LabelKind::Text => {
                let lengths = targets.iter().map(|ids| ids.len() as i64).collect();
                Targets::Sequences { ids, lengths }
            }
            LabelKind::Class => Targets::Classes(ids),
        };
        Ok(LabelledBatch { batch, targets })
    }
}
