//! [`Speech`]: pretraining, fine-tuning and conversion of speech encoders.

use std::path::Path;
use std::sync::Arc;

use data2vec_core::eval::score::SequenceDecoder;
use data2vec_core::io::convert::{
    ExportedModel, ImportOptions, Imported, Model, Source as Checkpoint,
};
use data2vec_core::modality::baseline::{Examples, standardized};
use data2vec_core::modality::finetune::{Classifier, split};
use data2vec_core::modality::hold_out;
use data2vec_core::modality::raw::{FileStats, Measure, RawDataset, ShardEntry, portable_path};
use data2vec_core::train::finetune::FinetuneMasks;
use data2vec_core::{
    Batch, ConvertModality, Dataset, EncoderConfig, Error, Extractor, FinetuneModality, HeadTask,
    LabelledSource, LabelledSplits, MaskStrategy, Modality, OnProgress, Precision, Preview,
    RawFeatures, Result, Source, Splits, Units,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::audio;
use crate::classifier::AudioClassifier;
use crate::config::{LabelKind, LabelledSpeechConfig, SpeechDataConfig, WaveEncoderConfig};
use crate::convert;
use crate::ctc::{Labels, SymbolDecoder};
use crate::dataset::SpeechDataset;
use crate::encoder::SpeechEncoder;
use crate::feature::WaveEncoder;
use crate::labelled::{LabelledSpeech, TranscribedDataset};
use crate::mask::{SpanMask, SpeechMaskConfig};
use crate::spectrogram::{log_mel, spectrogram};

/// Recordings; the batch size counts seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Speech;

impl Modality for Speech {
    const NAME: &'static str = "speech";
    const UNITS: Units = Units { name: "s of audio", size: audio::SAMPLE_RATE as f64 };
    type Encoder = WaveEncoder;
    type Dataset = SpeechDataset;
    type Data = SpeechDataConfig;
    type Mask = SpeechMaskConfig;

    fn masking(mask: &Self::Mask, _: &WaveEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        mask.validate()?;
        Ok(Box::new(mask.clone()))
    }

    fn validate(data: &Self::Data, features: &WaveEncoderConfig) -> Result<()> {
        data.validate()?;
        // Masks need a masked and a visible frame.
        let least = (features.receptive_field() + features.hop()) as f64 / Self::UNITS.size;
        if data.min_seconds < least {
            let reason = format!("{} is too short: two frames take {least} s", data.min_seconds);
            return Err(Error::config("data.min_seconds", reason));
        }
        Ok(())
    }

    fn open(source: &Source<Self>, _: OnProgress) -> Result<Splits<SpeechDataset>> {
        let Source { path, data, features, held_out, seed, cache } = *source;
        let all = SpeechDataset::open(path, data, Some(cache))?.normalized(features.normalize);
        let (skipped, too_short) = (all.skipped(), all.too_short());
        let (train, held_out) = hold_out(all, held_out, |all, share| all.split(share, seed))?;
        let amount = |d: &SpeechDataset| format!("{}, {:.1} min", d.len(), d.seconds() / 60.0);
        let summary = format!(
            "recordings to train on: {}; held out: {}; too short: {too_short}",
            amount(&train),
            held_out.as_ref().map_or("none".into(), amount),
        );
        Ok(Splits { train, held_out, summary, skipped })
    }

    fn extractor(dir: &Path, device: Device, precision: Precision) -> Result<Extractor> {
        let encoder = SpeechEncoder::load(dir, device)?.with_precision(precision);
        Ok(Extractor::new(encoder.depth(), move |path| encoder.layers(&audio::read(path)?)))
    }

    fn raw_dataset(path: &Path, data: Option<&Self::Data>) -> Result<RawDataset> {
        let all = Arc::new(SpeechDataset::open(path, &SpeechDataConfig::everything(), None)?);
        let mut broken = all.skipped();
        let all_indices: Vec<usize> = (0..all.len()).collect();
        let mut known = |labels: Result<Vec<Option<String>>>| {
            labels.unwrap_or_else(|error| {
                broken.push(error.to_string());
                vec![None; all_indices.len()]
            })
        };
        let texts = known(all.texts(path, &all_indices));
        let mut classes = known(all.classes(path, &all_indices));
        // Directory names are already in the paths.
        let folder = |at: usize| all.relative_path(at).parent()?.file_name()?.to_str();
        if classes.iter().enumerate().all(|(at, class)| class.as_deref() == folder(at)) {
            classes.fill(None);
        }
        let notes = match texts.iter().flatten().count() {
            0 => Vec::new(),
            count => vec![format!("with texts: {count}")],
        };
        let filters = data.iter().flat_map(|data| {
            let (least, most) = (data.min_seconds, data.max_seconds);
            [
                (format!("shorter than data.min_seconds = {least}, left out"), 0.0..least),
                (format!("longer than data.max_seconds = {most}, cut"), most..f64::INFINITY),
            ]
        });
        let kept = all.clone();
        let shard_entry = move |at| {
            let path = kept.relative_path(at);
            let notes = json!({"samples": kept.samples(at), "sample_rate": audio::SAMPLE_RATE});
            let mut sidecars = vec![("json", notes.to_string())];
            sidecars.extend(texts[at].clone().map(|text| ("txt", text)));
            sidecars.extend(classes[at].clone().map(|class| ("cls", class)));
            Ok(ShardEntry {
                path: portable_path(path)?,
                field: path.extension().unwrap_or_default().to_string_lossy().into_owned(),
                content: kept.bytes(at)?.into(),
                sidecars,
            })
        };
        Ok(RawDataset {
            noun: "recordings",
            files: all.len(),
            measures: &[Measure { name: "seconds", has_total: true }],
            filters: filters.collect(),
            notes,
            inspect: Box::new(move |at| {
                let audio::AudioInfo { samples, rate, channels } = all.inspect(at)?;
                let s = if channels == 1 { "" } else { "s" };
                Ok(FileStats {
                    kind: format!("{rate} Hz, {channels} channel{s}"),
                    sizes: vec![samples as f64 / Self::UNITS.size],
                    ..FileStats::default()
                })
            }),
            shard_entry: Ok(Box::new(shard_entry)),
            broken,
        })
    }

    fn random_batch(_: &WaveEncoderConfig, rows: i64, size: f64) -> Result<Batch> {
        let samples = (size * Self::UNITS.size) as i64;
        Batch::new(Tensor::randn([rows, samples], (Kind::Float, Device::Cpu)))
    }

    fn preview(
        _: &SpeechDataset,
        features: &WaveEncoderConfig,
        example: &Tensor,
        tokens: i64,
    ) -> Result<Option<Preview>> {
        spectrogram(example, features, tokens).map(|raster| Some(Preview::Raster(raster)))
    }

    fn labels(
        dataset: &SpeechDataset,
        data: &Path,
        indices: &[usize],
    ) -> Result<Vec<Option<String>>> {
        dataset.texts(data, indices)
    }
}

/// Masks during fine-tuning; absent ones mask nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeechFinetuneMask {
    /// Masks of frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frames: Option<SpanMask>,
    /// Masks of channels, for all frames of a recording.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channels: Option<SpanMask>,
}

impl SpeechFinetuneMask {
    fn strategy(spans: &Option<SpanMask>) -> Result<Option<Box<dyn MaskStrategy>>> {
        let Some(spans) = spans else { return Ok(None) };
        let spans = SpeechMaskConfig::Spans(spans.clone());
        spans.validate()?;
        Ok(Some(Box::new(spans)))
    }
}

impl FinetuneModality for Speech {
    type Labelled = TranscribedDataset;
    type LabelledData = LabelledSpeechConfig;
    type FinetuneMask = SpeechFinetuneMask;

    fn validate_finetuning(data: &LabelledSpeechConfig, task: HeadTask) -> Result<()> {
        let is_valid = match task {
            HeadTask::Ctc => data.label == LabelKind::Text,
            HeadTask::Classification => data.label == LabelKind::Class,
            HeadTask::Regression => false,
        };
        if !is_valid {
            let reason = "recordings have texts (\"ctc\" with data.label = \"text\") or classes \
                          (\"classification\" with \"class\")";
            return Err(Error::config("head.task", reason));
        }
        Ok(())
    }

    fn default_data(
        _: &EncoderConfig<WaveEncoderConfig>,
        task: HeadTask,
    ) -> Result<LabelledSpeechConfig> {
        let label = if task == HeadTask::Ctc { LabelKind::Text } else { LabelKind::Class };
        Ok(LabelledSpeechConfig { label, ..LabelledSpeechConfig::default() })
    }

    fn finetune_masks(mask: &SpeechFinetuneMask) -> Result<FinetuneMasks> {
        let [tokens, channels] = [&mask.frames, &mask.channels].map(SpeechFinetuneMask::strategy);
        Ok(FinetuneMasks { tokens: tokens?, channels: channels? })
    }

    fn open_labelled(source: &LabelledSource<Self>) -> Result<LabelledSplits<TranscribedDataset>> {
        let features = &source.config.features;
        let all = LabelledSpeech::open(source.path, source.data, features, source.cache)?;
        let skipped = all.skipped();
        let (train, held_out, test) = split(all, None, source.split)?;
        let labels = match source.labels {
            Some(labels) => labels.to_vec(),
            None => train.labels()?,
        };
        let encode =
            |side: Option<LabelledSpeech>| side.map(|side| side.dataset(&labels)).transpose();
        let (train, held_out, test) = (train.dataset(&labels)?, encode(held_out)?, encode(test)?);
        let count = |side: &Option<TranscribedDataset>| side.as_ref().map_or(0, Dataset::len);
        let summary = format!(
            "to train on: {}; {} held out, {} test",
            train.summary(),
            count(&held_out),
            count(&test)
        );
        Ok(LabelledSplits { train, held_out, test, labels, summary, skipped })
    }

    /// Mean and standard deviation over time of 80 log-mel bands, of frames of 25 ms every 10 ms.
    fn raw_features(
        train: Examples<TranscribedDataset>,
        test: Examples<TranscribedDataset>,
    ) -> Result<Option<RawFeatures>> {
        let statistics = |batch: &Batch| {
            let frames = log_mel(&batch.inputs, [400, 160], 80)?; // (1, T, 80)
            let (variance, mean) = frames.var_mean_correction(&[1_i64][..], 0, false);
            Ok(Tensor::cat(&[mean, variance.sqrt()], 1)) // (1, 160)
        };
        let name = "log-mel means and deviations over time";
        standardized(name, train, test, statistics).map(Some)
    }

    fn classifier(model: &Path, device: Device, precision: Precision) -> Result<Box<Classifier>> {
        let model = AudioClassifier::load(model, device)?.with_precision(precision);
        Ok(Box::new(move |path| model.classify(&audio::read(path)?)))
    }

    fn sequence_decoder(labels: &[String]) -> Result<Box<dyn SequenceDecoder>> {
        Ok(Box::new(SymbolDecoder::greedy(Labels::new(labels.to_vec())?)))
    }
}

impl ConvertModality for Speech {
    fn import(
        source: &mut Checkpoint,
        options: &ImportOptions,
    ) -> Result<Option<Imported<WaveEncoderConfig>>> {
        convert::import(source, options)
    }

    fn to_hugging_face(model: &Model<WaveEncoderConfig>) -> Result<ExportedModel> {
        convert::to_hugging_face(model)
    }

    fn to_fairseq(model: &Model<WaveEncoderConfig>) -> Result<ExportedModel> {
        convert::to_fairseq(model)
    }
}
