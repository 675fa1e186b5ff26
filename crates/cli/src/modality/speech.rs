//! Speech in the program.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use data2vec_core::tune::TuneMasks;
use data2vec_core::{Batch, Dataset, EncoderConfig, Error, HeadTask, MaskStrategy};
use data2vec_speech::{
    Case, HeldOut, LabelKind, LabelledSpeech, LabelledSpeechConfig, SpanMask, SpeechDataConfig,
    SpeechDataset, SpeechMaskConfig, TranscribedDataset, WaveEncoder, WaveEncoderConfig, audio,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::data::portable;
use crate::modality::portrait;
use crate::modality::tunable::{Divide, divide};
use crate::modality::{
    Examples, LabelledExamples, Measure, Modality, Parcel, Portrait, Sight, Source, Stored,
    Tunable, reasons, split,
};
use crate::training::feed::Units;

/// Recordings, counted in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Speech;

impl Modality for Speech {
    type Encoder = WaveEncoder;
    type Dataset = SpeechDataset;
    type Data = SpeechDataConfig;
    type Mask = SpeechMaskConfig;
    const UNITS: Units = Units { name: "s of audio", size: audio::SAMPLE_RATE as f64 };

    fn masking(mask: &Self::Mask, _: &WaveEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        mask.validate()?;
        Ok(Box::new(mask.clone()))
    }

    fn check(data: &Self::Data, features: &WaveEncoderConfig) -> Result<()> {
        data.validate()?;
        // Masks need a frame to hide and one to show.
        let least = (features.receptive_field() + features.hop()) as f64 / Self::UNITS.size;
        if data.min_seconds < least {
            let reason = format!("{} is too short: two frames take {least} s", data.min_seconds);
            return Err(Error::config("data.min_seconds", reason).into());
        }
        Ok(())
    }

    fn open(
        path: &Path,
        data: &Self::Data,
        features: &WaveEncoderConfig,
        held_out: f64,
        seed: u64,
        cache: &Path,
    ) -> Result<Examples<Self::Dataset>> {
        let all = SpeechDataset::open(path, data, Some(cache))?.normalized(features.normalize);
        let skipped = reasons(all.skipped());
        let too_short = all.too_short();
        let (train, held_out) =
            split(all, held_out, |all, share| all.split(HeldOut::Share(share), seed))?;
        let amount = |d: &SpeechDataset| format!("{}, {:.1} min", d.len(), d.seconds() / 60.0);
        let summary = format!(
            "recordings to train on: {}; held out: {}; too short: {too_short}",
            amount(&train),
            held_out.as_ref().map_or("none".into(), amount),
        );
        Ok(Examples { train, held_out, summary, skipped })
    }

    fn stored(path: &Path, data: Option<&Self::Data>) -> Result<Stored> {
        let all = Arc::new(SpeechDataset::open(path, &SpeechDataConfig::everything(), None)?);
        let mut broken = reasons(all.skipped());
        let every: Vec<usize> = (0..all.len()).collect();
        let mut known = |labels: data2vec_core::Result<Vec<Option<String>>>| {
            labels.unwrap_or_else(|error| {
                broken.push(error.to_string());
                vec![None; every.len()]
            })
        };
        let texts = known(all.texts(path, &every));
        let mut classes = known(all.classes(path, &every));
        // A path tells its folder itself.
        let folder = |at: usize| all.relative_path(at).parent()?.file_name()?.to_str();
        if classes.iter().enumerate().all(|(at, class)| class.as_deref() == folder(at)) {
            classes.fill(None);
        }
        let notes = match texts.iter().flatten().count() {
            0 => Vec::new(),
            count => vec![format!("with texts: {count}")],
        };
        let fates = data.iter().flat_map(|data| {
            let (least, most) = (data.min_seconds, data.max_seconds);
            [
                (format!("shorter than data.min_seconds = {least}, left out"), 0.0..least),
                (format!("longer than data.max_seconds = {most}, cut"), most..f64::INFINITY),
            ]
        });
        let kept = all.clone();
        let parcel = move |at| {
            let path = kept.relative_path(at);
            let notes = json!({"samples": kept.samples(at), "sample_rate": audio::SAMPLE_RATE});
            let mut beside = vec![("json", notes.to_string())];
            beside.extend(texts[at].clone().map(|text| ("txt", text)));
            beside.extend(classes[at].clone().map(|class| ("cls", class)));
            Ok(Parcel {
                path: portable(path)?,
                field: path.extension().unwrap_or_default().to_string_lossy().into_owned(),
                content: kept.bytes(at)?,
                beside,
            })
        };
        Ok(Stored {
            noun: "recordings",
            files: all.len(),
            measures: &[Measure { name: "seconds", adds_up: true }],
            fates: fates.collect(),
            notes,
            look: Box::new(move |at| {
                let audio::AudioInfo { samples, rate, channels } = all.inspect(at)?;
                let s = if channels == 1 { "" } else { "s" };
                Ok(Sight {
                    kind: format!("{rate} Hz, {channels} channel{s}"),
                    sizes: vec![samples as f64 / Self::UNITS.size],
                    ..Sight::default()
                })
            }),
            parcel: Ok(Box::new(parcel)),
            broken,
        })
    }

    fn random(_: &WaveEncoderConfig, rows: i64, size: f64) -> Result<Batch> {
        let samples = (size * Self::UNITS.size) as i64;
        Ok(Batch::new(Tensor::randn([rows, samples], (Kind::Float, Device::Cpu)))?)
    }

    fn portray(
        _: &SpeechDataset,
        features: &WaveEncoderConfig,
        example: &Tensor,
        tokens: i64,
    ) -> Result<Portrait> {
        portrait::spectrogram(example, features, tokens)
    }

    fn labels(
        dataset: &SpeechDataset,
        data: &Path,
        indices: &[usize],
    ) -> Result<Vec<Option<String>>> {
        Ok(dataset.texts(data, indices)?)
    }
}

/// What is hidden while a speech encoder is fine-tuned; an absent part: nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeechTuneMask {
    /// Frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frames: Option<SpanMask>,
    /// Channels of a whole recording.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channels: Option<SpanMask>,
}

impl SpeechTuneMask {
    fn strategy(spans: &Option<SpanMask>) -> Result<Option<Box<dyn MaskStrategy>>> {
        let Some(spans) = spans else { return Ok(None) };
        let spans = SpeechMaskConfig::Spans(spans.clone());
        spans.validate()?;
        Ok(Some(Box::new(spans)))
    }
}

impl Tunable for Speech {
    type Labelled = TranscribedDataset;
    type LabelledData = LabelledSpeechConfig;
    type TuneMask = SpeechTuneMask;

    fn check_tuning(data: &LabelledSpeechConfig, task: HeadTask) -> Result<()> {
        let suits = match task {
            HeadTask::Ctc => data.label == LabelKind::Text,
            HeadTask::Classification => data.label == LabelKind::Class,
            HeadTask::Regression => false,
        };
        if !suits {
            let reason = "recordings have texts (\"ctc\" with data.label = \"text\") or classes \
                          (\"classification\" with \"class\")";
            return Err(Error::config("head.task", reason).into());
        }
        Ok(())
    }

    fn usual_data(
        _: &EncoderConfig<WaveEncoderConfig>,
        task: HeadTask,
    ) -> Result<LabelledSpeechConfig> {
        let label = if task == HeadTask::Ctc { LabelKind::Text } else { LabelKind::Class };
        Ok(LabelledSpeechConfig {
            label,
            min_seconds: None,
            max_seconds: None,
            case: Case::Upper,
            vocabulary: None,
        })
    }

    fn tune_masks(mask: &SpeechTuneMask) -> Result<TuneMasks> {
        let [tokens, channels] = [&mask.frames, &mask.channels].map(SpeechTuneMask::strategy);
        Ok(TuneMasks { tokens: tokens?, channels: channels? })
    }

    fn open_labelled(source: &Source<Self>) -> Result<LabelledExamples<TranscribedDataset>> {
        let features = &source.config.features;
        let all = LabelledSpeech::open(source.path, source.data, features, source.cache)?;
        let skipped = reasons(all.audio().skipped());
        let (train, held_out, test) = divide(all, None, source.split)?;
        let labels = match source.labels {
            Some(labels) => labels.to_vec(),
            None => train.labels()?,
        };
        let number =
            |side: Option<LabelledSpeech>| side.map(|side| side.dataset(&labels)).transpose();
        let (train, held_out, test) = (train.dataset(&labels)?, number(held_out)?, number(test)?);
        let count = |side: &Option<TranscribedDataset>| side.as_ref().map_or(0, Dataset::len);
        let summary = format!(
            "to train on: {}; {} held out, {} kept for the end",
            train.summary(),
            count(&held_out),
            count(&test)
        );
        Ok(LabelledExamples { train, held_out, test, labels, summary, skipped })
    }
}

impl Divide for LabelledSpeech {
    fn split(&self, share: f64, seed: u64) -> data2vec_core::Result<(Self, Self)> {
        self.split(HeldOut::Share(share), seed)
    }

    fn few(&self, share: f64, seed: u64) -> data2vec_core::Result<Self> {
        let count = (share * self.len() as f64).round().max(1.0) as usize;
        Ok(self.split(HeldOut::Count(count), seed)?.1)
    }
}
