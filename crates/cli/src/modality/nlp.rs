//! Text in the program.

use std::path::Path;

use anyhow::Result;
use data2vec_core::{Batch, Dataset, MaskStrategy};
use data2vec_nlp::{TextDataConfig, TextDataset, TextMaskConfig, TokenEncoder, TokenEncoderConfig};
use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind, Tensor};

use crate::modality::{Examples, Modality, split};
use crate::training::Units;

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

    fn random(features: &TokenEncoderConfig, rows: i64, size: f64) -> Result<Batch> {
        let (vocabulary, kind) = (features.vocabulary, (Kind::Int64, Device::Cpu));
        Ok(Batch::new(Tensor::randint(vocabulary, [rows, size as i64], kind))?)
    }

    fn meaning(dataset: &TextDataset) -> Option<&str> {
        Some(dataset.tokenizer().fingerprint())
    }

    fn export(dataset: &TextDataset, dir: &Path) -> Result<()> {
        Ok(dataset.tokenizer().save_with_encoder(dir)?)
    }
}
