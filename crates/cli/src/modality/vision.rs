//! Images in the program.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use data2vec_core::split::Amount;
use data2vec_core::tune::TuneMasks;
use data2vec_core::{Batch, Dataset, EncoderConfig, Error, HeadTask, MaskStrategy};
use data2vec_vision::{
    AugmentConfig, Images, LabelledImages, PatchEncoder, PatchEncoderConfig, VisionDataConfig,
    VisionDataset, VisionMaskConfig, has_sides,
};
use tch::{Device, Kind, Tensor};

use crate::data::portable;
use crate::modality::portrait;
use crate::modality::tunable::{Divide, NoMask, divide};
use crate::modality::{
    Examples, LabelledExamples, Measure, Modality, Parcel, Parcels, Portrait, Sight, Source,
    Stored, Tunable, reasons, split,
};
use crate::training::feed::Units;

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
        cache: &Path,
    ) -> Result<Examples<Self::Dataset>> {
        let all = VisionDataset::open(path, data, features, Some(cache))?;
        let skipped = reasons(all.skipped());
        let (train, held_out) = split(all, held_out, |all, share| all.split(share, seed))?;
        let summary = format!(
            "images to train on: {}; held out: {}",
            train.len(),
            held_out.as_ref().map_or("none".into(), |held_out| held_out.len().to_string()),
        );
        Ok(Examples { train, held_out, summary, skipped })
    }

    fn stored(path: &Path, _data: Option<&Self::Data>) -> Result<Stored> {
        let all = Arc::new(Images::open(path, None)?);
        let (files, broken) = (all.len(), reasons(all.skipped()));
        let classes = Arc::new(all.names_of_classes()?);
        let sides = "has images to train on and for validation: pack each of their folders, into folders \
                     that are called as they are";
        let parcel: Result<Parcels, String> = match has_sides(path)? {
            true => Err(sides.into()),
            false => Ok(Box::new({
                let (all, classes) = (all.clone(), classes.clone());
                move |at: usize| {
                    let (path, content) = all.file(at)?;
                    Ok(Parcel {
                        path: portable(&path)?,
                        field: path.extension().unwrap_or_default().to_string_lossy().into_owned(),
                        content: content.into(),
                        beside: classes[at]
                            .clone()
                            .map(|class| ("cls", class))
                            .into_iter()
                            .collect(),
                    })
                }
            })),
        };
        Ok(Stored {
            noun: "images",
            files,
            measures: &[
                Measure { name: "width", adds_up: false },
                Measure { name: "height", adds_up: false },
            ],
            fates: Vec::new(),
            notes: Vec::new(),
            look: Box::new(move |at| {
                let pixels = all.read(at)?;
                Ok(Sight {
                    kind: if pixels.channels() == 1 { "grey" } else { "colour" }.into(),
                    sizes: vec![pixels.width() as f64, pixels.height() as f64],
                    labels: classes[at].clone().map(|class| (class, 1)).into_iter().collect(),
                    broken: Vec::new(),
                })
            }),
            parcel,
            broken,
        })
    }

    fn random(features: &PatchEncoderConfig, rows: i64, _size: f64) -> Result<Batch> {
        let [height, width] = features.image_size;
        let size = [rows, features.channels, height, width];
        Ok(Batch::new(Tensor::randn(size, (Kind::Float, Device::Cpu)))?)
    }

    fn portray(
        _: &VisionDataset,
        features: &PatchEncoderConfig,
        example: &Tensor,
        _tokens: i64,
    ) -> Result<Portrait> {
        portrait::image(example, features)
    }

    fn labels(
        dataset: &VisionDataset,
        _data: &Path,
        indices: &[usize],
    ) -> Result<Vec<Option<String>>> {
        let classes = dataset.classes()?;
        let name = |&index: &usize| {
            let class = dataset.label(index)?.and_then(|label| classes.get(label));
            Ok(class.map(|class| format!("class {class}")))
        };
        indices.iter().map(name).collect()
    }
}

impl Tunable for Vision {
    type Labelled = LabelledImages;
    type LabelledData = AugmentConfig;
    type TuneMask = NoMask;

    fn check_tuning(data: &AugmentConfig, task: HeadTask) -> Result<()> {
        if task != HeadTask::Classification {
            return Err(Error::config("head.task", "images have classes alone").into());
        }
        Ok(data.validate()?)
    }

    fn usual_data(_: &EncoderConfig<PatchEncoderConfig>, _: HeadTask) -> Result<AugmentConfig> {
        Ok(AugmentConfig::default())
    }

    fn tune_masks(_mask: &NoMask) -> Result<TuneMasks> {
        Ok(TuneMasks::default())
    }

    fn open_labelled(source: &Source<Self>) -> Result<LabelledExamples<LabelledImages>> {
        let (mut all, mut own) =
            LabelledImages::open(source.path, source.data, &source.config.features, source.cache)?;
        if let Some(labels) = source.labels {
            all = all.with_classes(labels)?;
            own = own.map(|own| own.with_classes(labels)).transpose()?;
        }
        let skipped = reasons(all.skipped());
        let labels = all.classes().to_vec();
        let (train, held_out, test) = divide(all, own, source.split)?;
        let count =
            |images: &Option<LabelledImages>| images.as_ref().map_or(0, LabelledImages::len);
        let summary = format!(
            "images of {} classes: {} to train on, {} held out, {} kept for the end",
            labels.len(),
            train.len(),
            count(&held_out),
            count(&test),
        );
        Ok(LabelledExamples { train, held_out, test, labels, summary, skipped })
    }

    fn unvaried(dataset: LabelledImages) -> LabelledImages {
        dataset.without_augmentation()
    }

    fn export_labelled(dataset: &LabelledImages, dir: &Path) -> Result<()> {
        Ok(dataset.export(dir)?)
    }
}

impl Divide for LabelledImages {
    fn split(&self, share: f64, seed: u64) -> data2vec_core::Result<(Self, Self)> {
        self.split(share, seed)
    }

    fn few(&self, share: f64, seed: u64) -> data2vec_core::Result<Self> {
        self.few(Amount::Share(share), seed)
    }
}
