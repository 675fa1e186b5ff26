//! Speech in the program.

use std::path::Path;

use anyhow::Result;
use data2vec_core::{Batch, Dataset, Error, MaskStrategy};
use data2vec_speech::{
    HeldOut, SpeechDataConfig, SpeechDataset, SpeechMaskConfig, WaveEncoder, WaveEncoderConfig,
    audio,
};
use tch::{Device, Kind, Tensor};

use crate::modality::{Examples, Modality, reasons, split};
use crate::training::Units;

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

    fn random(_: &WaveEncoderConfig, rows: i64, size: f64) -> Result<Batch> {
        let samples = (size * Self::UNITS.size) as i64;
        Ok(Batch::new(Tensor::randn([rows, samples], (Kind::Float, Device::Cpu)))?)
    }
}
