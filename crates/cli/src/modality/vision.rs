//! Images in the program.

use std::path::Path;

use anyhow::Result;
use data2vec_core::{Batch, Dataset, MaskStrategy};
use data2vec_vision::{
    PatchEncoder, PatchEncoderConfig, VisionDataConfig, VisionDataset, VisionMaskConfig,
};
use tch::{Device, Kind, Tensor};

use crate::modality::{Examples, Modality, reasons, split};
use crate::training::Units;

/// Images, counted one by one.
#[derive(Clone, Debug, PartialEq)]
pub struct Vision;

impl Modality for Vision {
    type Encoder = PatchEncoder;
    type Dataset = VisionDataset;
    type Data = VisionDataConfig;
    type Mask = VisionMaskConfig;
    const UNITS: Units = Units { name: "images", size: 1.0 };

    fn masking(mask: &Self::Mask, features: &PatchEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        features.validate()?;
        Ok(Box::new(mask.on_grid(features.grid())?))
    }

    fn check(data: &Self::Data, _: &PatchEncoderConfig) -> Result<()> {
        Ok(data.validate()?)
    }

    fn open(
        path: &Path,
        data: &Self::Data,
        features: &PatchEncoderConfig,
        held_out: f64,
        seed: u64,
        _cache: &Path,
    ) -> Result<Examples<Self::Dataset>> {
        let all = VisionDataset::open(path, data, features)?;
        let skipped = reasons(all.skipped());
        let (train, held_out) = split(all, held_out, |all, share| all.split(share, seed))?;
        let summary = format!(
            "images to train on: {}; held out: {}",
            train.len(),
            held_out.as_ref().map_or("none".into(), |held_out| held_out.len().to_string()),
        );
        Ok(Examples { train, held_out, summary, skipped })
    }

    fn random(features: &PatchEncoderConfig, rows: i64, _size: f64) -> Result<Batch> {
        let [height, width] = features.image_size;
        let size = [rows, features.channels, height, width];
        Ok(Batch::new(Tensor::randn(size, (Kind::Float, Device::Cpu)))?)
    }
}
