//! Labelled recordings as examples for fine-tuning: transcripts or classes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data2vec_core::data::split::Amount;
use data2vec_core::modality::finetune::Splittable;
use data2vec_core::random::hash;
use data2vec_core::{Dataset, Error, LabelledBatch, Result, Targets};
use rand::rngs::StdRng;
use tch::Tensor;

use crate::audio::{MAX_SECONDS, SAMPLE_RATE};
use crate::config::{
    Batching, LabelKind, LabelledSpeechConfig, SpeechDataConfig, WaveEncoderConfig,
};
use crate::ctc::Labels;
use crate::dataset::SpeechDataset;
use crate::transcripts::{self, normalize};
use crate::vocabulary;

/// Number of recordings that were left out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Without a label, or with an empty one.
    pub unlabelled: usize,
    /// With fewer frames than CTC needs for their transcript: one per symbol, and a blank between
    /// equal symbols.
    pub too_short_for_text: usize,
    /// Shorter than `min_seconds`.
    pub too_short: usize,
    /// Longer than `max_seconds`.
    pub too_long: usize,
    /// Of a class that is not among the labels.
    pub other_class: usize,
    /// Unreadable audio.
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
        let counts = reasons.iter().filter(|(count, _)| *count > 0);
        let parts: Vec<String> =
            counts.map(|(count, reason)| format!("{count} {reason}")).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// Recordings with transcripts or class names, before these are encoded as label ids.
///
/// Transcripts are normalized ([`normalize_text`](crate::normalize_text)). To get examples:
/// [`open`](Self::open), [`split`](Self::split), [`labels`](Self::labels) of the training side,
/// [`dataset`](Self::dataset) of both sides with these labels.
#[derive(Clone, Debug)]
pub struct LabelledSpeech {
    audio: SpeechDataset,
    /// Transcripts or classes by relative path.
    labels: Arc<HashMap<PathBuf, String>>,
    config: LabelledSpeechConfig,
    features: WaveEncoderConfig,
    left_out: LeftOut,
}

impl LabelledSpeech {
    /// Lists the recordings at `path` as [`SpeechDataset::open`] does, and finds their labels.
    ///
    /// Transcripts: `.ltr` or `.wrd` beside a fairseq manifest; tables `path<TAB>text` (`.tsv`);
    /// LibriSpeech's `*.trans.txt`; `NAME.txt` or `NAME.lab` beside `NAME.wav`. Classes: tables
    /// `path<TAB>label`, else the directory names. In shards: fields `txt` or `cls`, columns such as
    /// `text` or `label`, or these keys in a field `json`.
    ///
    /// # Errors
    /// Returns the errors of [`SpeechDataset::open`], and [`Error::File`] if there are no labels or
    /// a label file is invalid.
    pub fn open(
        path: impl AsRef<Path>,
        config: &LabelledSpeechConfig,
        features: &WaveEncoderConfig,
        cache: Option<&Path>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let least = features.receptive_field() as f64 / f64::from(SAMPLE_RATE);
        let most = config.max_seconds.unwrap_or(MAX_SECONDS as f64);
        let data = SpeechDataConfig {
            min_seconds: config.min_seconds.unwrap_or(least).max(least),
            max_seconds: most,
            batching: Batching::Pad,
        };
        let audio = SpeechDataset::open(path, &data, cache)?.normalized(features.normalize);
        let all: Vec<usize> = (0..audio.len()).collect();
        let found = audio.labels(config.label, path, &all)?.into_iter().map(|label| {
            label.map(|label| match config.label {
                LabelKind::Text => normalize(&label, config.case),
                LabelKind::Class => label.trim().to_owned(),
            })
        });
        let labels: HashMap<PathBuf, String> = (0..audio.len())
            .zip(found)
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
        let audio = audio.select(&kept);
        let (config, features) = (config.clone(), features.clone());
        Ok(Self { audio, labels: Arc::new(labels), config, features, left_out })
    }

    /// Returns the number of recordings.
    pub fn len(&self) -> usize {
        self.audio.len()
    }

    /// Returns true if there are no recordings.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the recordings without labels.
    pub fn audio(&self) -> &SpeechDataset {
        &self.audio
    }

    /// Returns one line for each unreadable audio file: `path: reason`.
    pub fn skipped(&self) -> Vec<String> {
        self.audio.skipped()
    }

    /// Returns the transcript or class of a recording.
    pub fn label(&self, index: usize) -> &str {
        self.labels.get(self.audio.relative_path(index)).map_or("", String::as_str)
    }

    /// Returns the labels of the outputs of a head for these recordings.
    ///
    /// For transcripts: the vocabulary file of the settings, or `<pad>`, `<s>`, `</s>`, `<unk>`, `|`
    /// and the symbols from most to least frequent. For classes: their sorted names.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::File`] if the vocabulary file cannot be read.
    pub fn labels(&self) -> Result<Vec<String>> {
        let all = (0..self.len()).map(|at| self.label(at));
        match (self.config.label, &self.config.vocabulary) {
            (LabelKind::Class, _) => {
                let classes: BTreeSet<&str> = all.collect();
                Ok(classes.into_iter().map(str::to_owned).collect())
            }
            (LabelKind::Text, Some(path)) => vocabulary::read(path),
            (LabelKind::Text, None) => Ok(vocabulary::from_texts(all)),
        }
    }

    /// Encodes the transcripts or classes as ids into `labels`.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if no recording fits the labels.
    pub fn dataset(&self, labels: &[String]) -> Result<TranscribedDataset> {
        let mut left_out = self.left_out;
        let (mut kept, mut targets, mut unknown) = (Vec::new(), Vec::new(), 0);
        match self.config.label {
            LabelKind::Class => {
                let ids: BTreeMap<&str, i64> =
                    (0..).zip(labels).map(|(id, name)| (name.as_str(), id)).collect();
                for at in 0..self.len() {
                    match ids.get(self.label(at)) {
                        Some(&class) => {
                            kept.push(at);
                            targets.push(vec![class]);
                        }
                        None => left_out.other_class += 1,
                    }
                }
            }
            LabelKind::Text => {
                let labels = Labels::new(labels.to_vec())?;
                for at in 0..self.len() {
                    let (ids, unknown_symbols) = vocabulary::encode(self.label(at), &labels);
                    let repeats = ids.windows(2).filter(|pair| pair[0] == pair[1]).count();
                    let frames = self.features.frames(self.audio.samples(at) as i64);
                    if ids.is_empty() {
                        left_out.unlabelled += 1;
                    } else if frames < (ids.len() + repeats) as i64 {
                        left_out.too_short_for_text += 1;
                    } else {
                        unknown += unknown_symbols;
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
            audio: self.audio.select(&kept),
            targets,
            kind: self.config.label,
            labels: labels.len(),
            left_out,
            unknown,
        })
    }
}

impl Splittable for LabelledSpeech {
    /// Splits off about `share` of the recordings: returns (train, held out), see
    /// [`SpeechDataset::split`].
    ///
    /// # Errors
    /// Returns [`Error::Config`] if one side would be empty.
    fn split(&self, share: f64, seed: u64) -> Result<(Self, Self)> {
        let (train, held_out) = self.audio.split(share, seed)?;
        // Only one side counts the recordings that were left out.
        let side = |audio, left_out| Self { audio, left_out, ..self.clone() };
        Ok((side(train, self.left_out), side(held_out, LeftOut::default())))
    }

    /// Returns a subset, e.g. 1 % of the recordings. Larger amounts with the same `seed` contain
    /// smaller ones.
    ///
    /// [`Amount::Share`] is a share of all recordings, [`Amount::Each`] a number of each class, or of
    /// all recordings with transcripts.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if the subset would be empty.
    fn subsample(&self, amount: Amount, seed: u64) -> Result<Self> {
        let valid = match amount {
            Amount::Share(share) => share > 0.0 && share <= 1.0,
            Amount::Each(count) => count > 0,
        };
        if !valid {
            let reason = format!("{amount:?} leaves no recordings");
            return Err(Error::config("label_share", reason));
        }
        if amount == Amount::Share(1.0) {
            return Ok(self.clone());
        }
        let class = |index| match self.config.label {
            LabelKind::Class => hash(self.label(index).as_bytes()),
            LabelKind::Text => 0,
        };
        let audio = self.audio.select(&self.audio.sample_indices(amount, class, seed));
        Ok(Self { audio, left_out: LeftOut::default(), ..self.clone() })
    }
}

/// Recordings with label ids: an example is the samples of a full recording at 16 kHz and its label
/// ids, a batch `(B, S)` f32, padded, with [`Targets::Sequences`] for transcripts or
/// [`Targets::Classes`].
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
    /// Returns the recordings without labels.
    pub fn audio(&self) -> &SpeechDataset {
        &self.audio
    }

    /// Returns the normalized transcript, or the class, of a recording.
    pub fn text(&self, index: usize) -> &str {
        &self.texts[index]
    }

    /// Returns the label ids of a recording; one for a class.
    pub fn target(&self, index: usize) -> &[i64] {
        &self.targets[index]
    }

    /// Returns the number of recordings that were left out, by reason.
    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// Returns the number of symbols of the transcripts that are no label; they are encoded as
    /// `<unk>`.
    pub fn unknown_symbols(&self) -> usize {
        self.unknown
    }

    /// Describes the data in one line: recordings, minutes, labels, and what was left out.
    pub fn summary(&self) -> String {
        let minutes = self.audio.seconds() / 60.0;
        let noun = match self.kind {
            LabelKind::Text => "symbols",
            LabelKind::Class => "classes",
        };
        let mut summary =
            format!("{} recordings, {minutes:.1} minutes, {} {noun}", self.len(), self.labels);
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
