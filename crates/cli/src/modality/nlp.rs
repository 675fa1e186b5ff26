//! Text in the program.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use data2vec_core::split::Amount;
use data2vec_core::tune::TuneMasks;
use data2vec_core::{Batch, Dataset, EncoderConfig, Error, HeadTask, MaskStrategy};
use data2vec_nlp::{
    LabelledFiles, LabelledTextConfig, LabelledTexts, TextDataConfig, TextDataset, TextFile,
    TextFiles, TextMaskConfig, TokenEncoder, TokenEncoderConfig, Tokenizer,
};
use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind, Tensor};

use crate::data::portable;
use crate::modality::portrait;
use crate::modality::tunable::{Divide, NoMask, divide};
use crate::modality::{
    Examples, LabelledExamples, Measure, Modality, Parcel, Parcels, Portrait, Sight, Source,
    Stored, Tunable, reasons, split,
};
use crate::training::feed::Units;

/// Text, counted in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Nlp;

impl Modality for Nlp {
    type Encoder = TokenEncoder;
    type Dataset = TextDataset;
    type Data = TextDataConfig;
    type Mask = TextMaskConfig;
    const UNITS: Units = Units { name: "tokens", size: 1.0 };

    fn masking(mask: &Self::Mask, _: &TokenEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        mask.validate()?;
        Ok(Box::new(mask.clone()))
    }

    fn check(data: &Self::Data, features: &TokenEncoderConfig) -> Result<()> {
        data.validate()?;
        Ok(data.fits(features)?)
    }

    fn open(
        path: &Path,
        data: &Self::Data,
        features: &TokenEncoderConfig,
        held_out: f64,
        seed: u64,
        cache: &Path,
    ) -> Result<Examples<Self::Dataset>> {
        data.fits(features)?;
        let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
            "tokens {bar:24} {bytes}/{total_bytes} left {eta}",
        )?);
        let all = TextDataset::open(path, data, cache, &mut |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.bytes);
        })?;
        bar.finish_and_clear();
        all.tokenizer().check(features)?;
        let skipped = all.skipped();
        let (documents, replaced) = (all.documents(), all.replaced());
        let (train, held_out) = split(all, held_out, |all, share| all.split(share, seed))?;
        let amount = |d: &TextDataset| format!("{} in {} blocks", d.tokens(), d.len());
        let summary = format!(
            "{documents} documents; tokens to train on: {}; held out: {}; not UTF-8: {replaced} places",
            amount(&train),
            held_out.as_ref().map_or("none".into(), amount),
        );
        Ok(Examples { train, held_out, summary, skipped })
    }

    fn stored(path: &Path, data: Option<&Self::Data>) -> Result<Stored> {
        let as_usual = TextDataConfig::usual();
        let all = Arc::new(TextFiles::open(path, data.unwrap_or(&as_usual))?);
        let kept = all.clone();
        let parcel: Parcels = Box::new(move |at| {
            let (path, field, content) = kept.stored(at)?;
            Ok(Parcel { path: portable(path)?, field, content, beside: Vec::new() })
        });
        let tables = "is a table of labelled texts: only texts without labels are packed";
        Ok(Stored {
            noun: "documents",
            files: all.len(),
            measures: &[Measure { name: "letters", adds_up: true }],
            fates: Vec::new(),
            notes: Vec::new(),
            broken: reasons(all.skipped()),
            parcel: if all.are_tables() { Err(tables.into()) } else { Ok(parcel) },
            look: Box::new(move |at| {
                let TextFile { documents, labels, unusable, replaced } = all.read(at)?;
                let path = all.path(at);
                let not_text = (replaced > 0).then(|| format!("{replaced} places are not UTF-8"));
                let empty = documents.is_empty() && unusable.is_empty();
                let empty = empty.then(|| "no text in it".to_owned());
                let broken = unusable.into_iter().chain(not_text).chain(empty);
                Ok(Sight {
                    kind: path.extension().unwrap_or_default().to_string_lossy().into_owned(),
                    sizes: documents.into_iter().map(|letters| letters as f64).collect(),
                    labels,
                    broken: broken.map(|why| format!("{}: {why}", path.display())).collect(),
                })
            }),
        })
    }

    fn random(features: &TokenEncoderConfig, rows: i64, size: f64) -> Result<Batch> {
        let (vocabulary, kind) = (features.vocabulary, (Kind::Int64, Device::Cpu));
        Ok(Batch::new(Tensor::randint(vocabulary, [rows, size as i64], kind))?)
    }

    fn meaning(dataset: &TextDataset) -> Option<&str> {
        Some(dataset.tokenizer().fingerprint())
    }

    fn portray(
        dataset: &TextDataset,
        _: &TokenEncoderConfig,
        example: &Tensor,
        _tokens: i64,
    ) -> Result<Portrait> {
        portrait::text(example, dataset.tokenizer())
    }

    fn export(dataset: &TextDataset, dir: &Path) -> Result<()> {
        Ok(dataset.tokenizer().save_with_encoder(dir)?)
    }
}

impl Tunable for Nlp {
    type Labelled = LabelledTexts;
    type LabelledData = LabelledTextConfig;
    type TuneMask = NoMask;

    fn check_tuning(data: &LabelledTextConfig, task: HeadTask) -> Result<()> {
        if task == HeadTask::Ctc {
            return Err(Error::config("head.task", "texts have classes or numbers").into());
        }
        Ok(data.validate()?)
    }

    fn usual_data(
        config: &EncoderConfig<TokenEncoderConfig>,
        _: HeadTask,
    ) -> Result<LabelledTextConfig> {
        Ok(LabelledTextConfig { max_tokens: config.features.max_tokens as usize })
    }

    fn tune_masks(_mask: &NoMask) -> Result<TuneMasks> {
        Ok(TuneMasks::default())
    }

    fn open_labelled(source: &Source<Self>) -> Result<LabelledExamples<LabelledTexts>> {
        source.data.fits(&source.config.features)?;
        let tokenizer = Arc::new(Tokenizer::of_encoder(source.encoder)?);
        tokenizer.check(&source.config.features)?;
        let files = LabelledFiles::of(source.path)?;
        let open = |file: &Path, labels: Option<&[String]>| {
            LabelledTexts::open(file, source.data, source.task, tokenizer.clone(), labels)
        };
        let all = open(&files.train, source.labels)?;
        let labels = all.labels().to_vec();
        let own = files.validation.first().map(|file| open(file, Some(&labels))).transpose()?;
        let mut skipped = all.skipped();
        skipped.extend(own.iter().flat_map(LabelledTexts::skipped));
        let (train, held_out, test) = divide(all, own, source.split)?;
        let count = |texts: &Option<LabelledTexts>| texts.as_ref().map_or(0, LabelledTexts::len);
        let summary = format!(
            "{} to train on, {} held out, {} kept for the end",
            train.describe(),
            count(&held_out),
            count(&test),
        );
        Ok(LabelledExamples { train, held_out, test, labels, summary, skipped })
    }

    fn commands(model: &str, _task: HeadTask) -> Vec<String> {
        vec![format!("echo \"A TEXT\" | data2vec classify --model {model} -")]
    }

    fn export_labelled(dataset: &LabelledTexts, dir: &Path) -> Result<()> {
        Ok(dataset.tokenizer().save_with_encoder(dir)?)
    }
}

impl Divide for LabelledTexts {
    fn split(&self, share: f64, seed: u64) -> data2vec_core::Result<(Self, Self)> {
        self.split(share, seed)
    }

    fn few(&self, share: f64, seed: u64) -> data2vec_core::Result<Self> {
        self.few(Amount::Share(share), seed)
    }
}
