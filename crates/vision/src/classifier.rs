//! Inference with a fine-tuned classifier: images to classes.

use std::fs;
use std::path::Path;

use data2vec_core::data::batch::to_array;
use data2vec_core::{Error, FinetunedModel, HeadTask, Precision, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::feature::PatchEncoder;
use crate::labelled::LabelledImages;
use crate::pixels::Pixels;

/// File name of the preprocessing settings in a model directory; if absent, the center crop is 1.
const PREPROCESS: &str = "preprocess.toml";

/// Preprocessing of images before the encoder.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Preprocess {
    /// Center crop as a share of the shorter side, see [`Pixels::center_crop`].
    crop: f64,
}

impl LabelledImages {
    /// Writes the preprocessing settings to the model directory `dir`, so that
    /// [`ImageClassifier`] prepares images as evaluation does.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the file cannot be written.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let path = dir.join(PREPROCESS);
        let preprocess = Preprocess { crop: self.eval_crop() };
        let text = toml::to_string(&preprocess).map_err(|e| Error::file(&path, e.to_string()))?;
        fs::write(&path, text).map_err(|e| Error::io(path, e))
    }
}

/// A fine-tuned image classifier for inference.
#[derive(Debug)]
pub struct ImageClassifier {
    model: FinetunedModel<PatchEncoder>,
    crop: f64,
    device: Device,
}

impl ImageClassifier {
    /// Loads a fine-tuned model from the directory `dir`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, belongs to another feature encoder, or
    /// the head is not for classification.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let model = FinetunedModel::<PatchEncoder>::load(dir, device)?;
        model.config().features.validate_for_files()?;
        let task = model.head_config().task;
        if task != HeadTask::Classification {
            let reason = format!("the head is for {task:?}, not for classification");
            return Err(Error::file(dir, reason));
        }
        let path = dir.join(PREPROCESS);
        let crop = match fs::read_to_string(&path) {
            Ok(text) => {
                let invalid = |e: toml::de::Error| Error::file(&path, e.message());
                toml::from_str::<Preprocess>(&text).map_err(invalid)?.crop
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 1.0,
            Err(e) => return Err(Error::io(path, e)),
        };
        if !(0.1..=1.0).contains(&crop) {
            return Err(Error::file(path, format!("crop must be from 0.1 to 1, not {crop}")));
        }
        Ok(Self { model, crop, device })
    }

    /// Sets the precision of inference; scores are always f32. bf16 is faster on hardware that
    /// supports it.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { model: self.model.with_precision(precision), ..self }
    }

    /// Returns the class names, in the order of [`logits`](Self::logits).
    pub fn labels(&self) -> &[String] {
        self.model.labels()
    }

    /// Returns all classes with their probabilities, most probable first.
    ///
    /// # Errors
    /// Returns [`Error::Torch`] if a LibTorch operation fails.
    pub fn classify(&self, image: &Pixels) -> Result<Vec<(String, f64)>> {
        let probabilities = self.scores(std::slice::from_ref(image))?.softmax(-1, Kind::Double);
        Ok(self.model.rank_labels(Vec::try_from(probabilities.flatten(0, -1))?))
    }

    /// Classifies several images in one batch, see [`classify`](Self::classify).
    ///
    /// # Errors
    /// Returns the errors of [`classify`](Self::classify).
    pub fn classify_batch(&self, images: &[Pixels]) -> Result<Vec<Vec<(String, f64)>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let probabilities = self.scores(images)?.softmax(-1, Kind::Double); // (B, classes)
        let rank = |row| Ok(self.model.rank_labels(Vec::try_from(probabilities.get(row))?));
        (0..probabilities.size()[0]).map(rank).collect()
    }

    /// Returns the scores before softmax, `(B, classes)`.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if `images` is empty.
    pub fn logits(&self, images: &[Pixels]) -> Result<Array2<f32>> {
        to_array(&self.scores(images)?)
    }

    /// Returns the scores before softmax, `(B, classes)`, on the model's device.
    fn scores(&self, images: &[Pixels]) -> Result<Tensor> {
        let features = &self.model.config().features;
        let [height, width] = features.image_size.map(|side| side as usize);
        let mut values = Vec::new();
        for image in images {
            let image = image.clone().with_channels(features.channels as usize)?;
            let image = image.center_crop(self.crop, height, width);
            values.extend(image.normalized(&features.mean, &features.std, false));
        }
        let batch = features.batch(&values)?.to_device(self.device);
        Ok(self.model.forward(&batch)?.0)
    }
}
