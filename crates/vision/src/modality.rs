//! Images as a modality: what a trainer and the conversions need.

use std::path::Path;
use std::sync::Arc;

use data2vec_core::io::convert::{
    ExportedModel, ImportOptions, Imported, Model, Source as Checkpoint,
};
use data2vec_core::modality::baseline::{Examples, standardized};
use data2vec_core::modality::finetune::{Classifier, split};
use data2vec_core::modality::hold_out;
use data2vec_core::modality::raw::{
    FileStats, Measure, RawDataset, ShardEntries, ShardEntry, portable_path,
};
use data2vec_core::{
    Batch, ConvertModality, Dataset, EncoderConfig, Error, Extractor, FinetuneModality, HeadTask,
    LabelledSource, LabelledSplits, MaskStrategy, Modality, NoMask, OnProgress, Precision, Preview,
    Raster, RawFeatures, Result, Source, Splits, Units,
};
use tch::{Device, Kind, Tensor};

use crate::classifier::ImageClassifier;
use crate::config::{AugmentConfig, PatchEncoderConfig, VisionDataConfig};
use crate::convert;
use crate::dataset::VisionDataset;
use crate::encoder::VisionEncoder;
use crate::feature::PatchEncoder;
use crate::labelled::{LabelledImages, has_validation_split};
use crate::listing::Images;
use crate::mask::VisionMaskConfig;
use crate::pixels::Pixels;

/// Images; the batch size counts images.
#[derive(Clone, Debug, PartialEq)]
pub struct Vision;

impl Modality for Vision {
    const NAME: &'static str = "vision";
    const UNITS: Units = Units { name: "images", size: 1.0 };
    type Encoder = PatchEncoder;
    type Dataset = VisionDataset;
    type Data = VisionDataConfig;
    type Mask = VisionMaskConfig;

    fn masking(mask: &Self::Mask, features: &PatchEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        features.validate()?;
        Ok(Box::new(mask.on_grid(features.grid())?))
    }

    fn validate(data: &Self::Data, _: &PatchEncoderConfig) -> Result<()> {
        data.validate()
    }

    fn open(source: &Source<Self>, _: OnProgress) -> Result<Splits<VisionDataset>> {
        let Source { path, data, features, held_out, seed, cache } = *source;
        let all = VisionDataset::open(path, data, features, Some(cache))?;
        let skipped = all.skipped();
        let (train, held_out) = hold_out(all, held_out, |all, share| all.split(share, seed))?;
        let summary = format!(
            "images to train on: {}; held out: {}",
            train.len(),
            held_out.as_ref().map_or("none".into(), |held_out| held_out.len().to_string()),
        );
        Ok(Splits { train, held_out, summary, skipped })
    }

    fn extractor(dir: &Path, device: Device, precision: Precision) -> Result<Extractor> {
        let encoder = VisionEncoder::load(dir, device)?.with_precision(precision);
        Ok(Extractor::new(encoder.depth(), move |path| encoder.layers(&Pixels::read(path)?)))
    }

    fn raw_dataset(path: &Path, _data: Option<&Self::Data>) -> Result<RawDataset> {
        let all = Arc::new(Images::open(path, None)?);
        let (files, broken) = (all.len(), all.skipped());
        let classes = Arc::new(all.class_names()?);
        let shard_entry: std::result::Result<ShardEntries, String> = match has_validation_split(
            path,
        )? {
            true => {
                let reason = "has training and validation images; pack each directory by itself, into \
                              a directory of the same name";
                Err(reason.into())
            }
            false => Ok(Box::new({
                let (all, classes) = (all.clone(), classes.clone());
                move |at: usize| {
                    let (path, content) = all.read_file(at)?;
                    Ok(ShardEntry {
                        path: portable_path(&path)?,
                        field: path.extension().unwrap_or_default().to_string_lossy().into_owned(),
                        content,
                        sidecars: classes[at]
                            .clone()
                            .map(|class| ("cls", class))
                            .into_iter()
                            .collect(),
                    })
                }
            })),
        };
        Ok(RawDataset {
            noun: "images",
            files,
            measures: &[
                Measure { name: "width", has_total: false },
                Measure { name: "height", has_total: false },
            ],
            filters: Vec::new(),
            notes: Vec::new(),
            inspect: Box::new(move |at| {
                let pixels = all.read(at)?;
                Ok(FileStats {
                    kind: if pixels.channels() == 1 { "grey" } else { "colour" }.into(),
                    sizes: vec![pixels.width() as f64, pixels.height() as f64],
                    labels: classes[at].clone().map(|class| (class, 1)).into_iter().collect(),
                    broken: Vec::new(),
                })
            }),
            shard_entry,
            broken,
        })
    }

    fn random_batch(features: &PatchEncoderConfig, rows: i64, _size: f64) -> Result<Batch> {
        let [height, width] = features.image_size;
        let size = [rows, features.channels, height, width];
        Batch::new(Tensor::randn(size, (Kind::Float, Device::Cpu)))
    }

    fn preview(
        _: &VisionDataset,
        features: &PatchEncoderConfig,
        example: &Tensor,
        _tokens: i64,
    ) -> Result<Option<Preview>> {
        preview(example, features).map(|raster| Some(Preview::Raster(raster)))
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

impl FinetuneModality for Vision {
    type Labelled = LabelledImages;
    type LabelledData = AugmentConfig;
    type FinetuneMask = NoMask;

    fn validate_finetuning(data: &AugmentConfig, task: HeadTask) -> Result<()> {
        if task != HeadTask::Classification {
            return Err(Error::config("head.task", "must be \"classification\" for images"));
        }
        data.validate()
    }

    fn default_data(_: &EncoderConfig<PatchEncoderConfig>, _: HeadTask) -> Result<AugmentConfig> {
        Ok(AugmentConfig::default())
    }

    fn open_labelled(source: &LabelledSource<Self>) -> Result<LabelledSplits<LabelledImages>> {
        let (mut all, mut own) =
            LabelledImages::open(source.path, source.data, &source.config.features, source.cache)?;
        if let Some(labels) = source.labels {
            all = all.with_classes(labels)?;
            own = own.map(|own| own.with_classes(labels)).transpose()?;
        }
        let skipped = all.skipped();
        let labels = all.classes().to_vec();
        let (train, held_out, test) = split(all, own, source.split)?;
        let count =
            |images: &Option<LabelledImages>| images.as_ref().map_or(0, LabelledImages::len);
        let summary = format!(
            "images of {} classes: {} to train on, {} held out, {} for the final test",
            labels.len(),
            train.len(),
            count(&held_out),
            count(&test),
        );
        Ok(LabelledSplits { train, held_out, test, labels, summary, skipped })
    }

    fn without_augmentation(dataset: LabelledImages) -> LabelledImages {
        dataset.without_augmentation()
    }

    /// Pixels of the resized images.
    fn raw_features(
        train: Examples<LabelledImages>,
        test: Examples<LabelledImages>,
    ) -> Result<Option<RawFeatures>> {
        let pixels = |batch: &Batch| Ok(batch.inputs.flatten(1, -1)); // (1, C·H·W)
        standardized("standardised pixels", train, test, pixels).map(Some)
    }

    fn classifier(model: &Path, device: Device, precision: Precision) -> Result<Box<Classifier>> {
        let model = ImageClassifier::load(model, device)?.with_precision(precision);
        Ok(Box::new(move |path| model.classify(&Pixels::read(path)?)))
    }

    fn export_labelled(dataset: &LabelledImages, dir: &Path) -> Result<()> {
        dataset.export(dir)
    }
}

impl ConvertModality for Vision {
    fn import(
        source: &mut Checkpoint,
        options: &ImportOptions,
    ) -> Result<Option<Imported<PatchEncoderConfig>>> {
        convert::import(source, options)
    }

    fn to_hugging_face(model: &Model<PatchEncoderConfig>) -> Result<ExportedModel> {
        convert::to_hugging_face(model)
    }

    fn to_fairseq(model: &Model<PatchEncoderConfig>) -> Result<ExportedModel> {
        convert::to_fairseq(model)
    }
}

/// Renders normalised values `(C, H, W)` as the image they came from.
fn preview(values: &Tensor, features: &PatchEncoderConfig) -> Result<Raster> {
    let channel = |values: &[f64]| Tensor::from_slice(values).reshape([-1, 1, 1]); // (C, 1, 1)
    let values = values.to_device(Device::Cpu).to_kind(Kind::Double);
    let light = values * channel(&features.std) + channel(&features.mean);
    let bytes = (light * 255.0).f_round()?.f_clamp(0.0, 255.0)?.f_to_kind(Kind::Uint8)?;
    let size = bytes.size();
    let values = bytes.f_permute([1, 2, 0])?.f_contiguous()?.f_flatten(0, -1)?; // H, W, C
    let [channels, height, width] = [size[0], size[1], size[2]].map(|n| n as usize);
    Ok(Raster { width, height, channels, values: values.try_into()?, is_drawing: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preview_undoes_normalisation() {
        let features = PatchEncoderConfig {
            image_size: [1, 2],
            channels: 3,
            mean: vec![0.5, 0.4, 0.3],
            std: vec![0.2, 0.1, 0.3],
            patch_size: 1,
            positions: crate::Positions::SinCos,
        };
        let bytes = [[10.0, 200.0], [0.0, 255.0], [77.0, 78.0_f64]];
        let normalised: Vec<f64> = bytes
            .iter()
            .zip(features.mean.iter().zip(&features.std))
            .flat_map(|(row, (mean, std))| row.map(|v| (v / 255.0 - mean) / std))
            .collect();
        let values = Tensor::from_slice(&normalised).reshape([3, 1, 2]);
        let raster = preview(&values, &features).expect("a picture");
        assert_eq!(raster.values, [10, 0, 77, 200, 255, 78]);
    }
}
