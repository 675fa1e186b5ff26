//! A fine-tuned model, from pixels to classes.

use std::fs;
use std::path::Path;

use data2vec_core::{Error, HeadTask, Precision, Result, Tuned};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::encoder::to_array;
use crate::images;
use crate::labelled::LabelledImages;
use crate::{PatchEncoder, Pixels};

/// File in a model's folder that tells what is done to images; without it, all that fits is looked at.
const PREPROCESS: &str = "preprocess.toml";

/// What is done to images before the encoder sees them.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Preprocess {
    /// Share of the shorter side that is looked at, as [`Pixels::centre`] has it.
    crop: f64,
}

impl LabelledImages {
    /// Writes to a model's folder what [`ImageClassifier`] needs besides, so that it sees images as
    /// they are evaluated.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn export(&self, dir: &Path) -> Result<()> {
        let path = dir.join(PREPROCESS);
        let preprocess = Preprocess { crop: self.eval_crop() };
        let text = toml::to_string(&preprocess).map_err(|e| Error::file(&path, e.to_string()))?;
        fs::write(&path, text).map_err(|e| Error::io(path, e))
    }
}

/// An image model that was fine-tuned to tell classes apart.
#[derive(Debug)]
pub struct ImageClassifier {
    model: Tuned<PatchEncoder>,
    crop: f64,
    device: Device,
}

impl ImageClassifier {
    /// Reads the folder of a fine-tuned model.
    ///
    /// # Errors
    /// If a file is missing or broken, holds another kind of encoder, or the model was not tuned to
    /// tell classes apart.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let model = Tuned::<PatchEncoder>::load(dir, device)?;
        images::check(&model.config().features)?;
        let task = model.head_config().task;
        if task != HeadTask::Classification {
            let reason = format!("its head is for {task:?}, not for classification");
            return Err(Error::file(dir, reason));
        }
        let path = dir.join(PREPROCESS);
        let crop = match fs::read_to_string(&path) {
            Ok(text) => {
                let broken = |e: toml::de::Error| Error::file(&path, e.message());
                toml::from_str::<Preprocess>(&text).map_err(broken)?.crop
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 1.0,
            Err(e) => return Err(Error::io(path, e)),
        };
        if !(0.1..=1.0).contains(&crop) {
            return Err(Error::file(path, format!("crop: {crop} is no share from 0.1 to 1")));
        }
        Ok(Self { model, crop, device })
    }

    /// Computes in `precision` from now on; answers are f32 in any. bf16 is the faster one on hardware that has it.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { model: self.model.in_precision(precision), ..self }
    }

    /// Names of the classes, as [`logits`](Self::logits) has them.
    pub fn labels(&self) -> &[String] {
        self.model.labels()
    }

    /// Every class and its probability, the most probable first.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device refuses.
    pub fn classify(&self, image: &Pixels) -> Result<Vec<(String, f64)>> {
        let shares = self.scores(std::slice::from_ref(image))?.softmax(-1, Kind::Double);
        Ok(self.model.ranked(Vec::try_from(shares.flatten(0, -1))?))
    }

    /// `(B, classes)`: the scores of each image, of which a softmax makes probabilities.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no image.
    pub fn logits(&self, images: &[Pixels]) -> Result<Array2<f32>> {
        to_array(&self.scores(images)?)
    }

    /// `(B, classes)`
    fn scores(&self, images: &[Pixels]) -> Result<Tensor> {
        let features = &self.model.config().features;
        let [height, width] = features.image_size.map(|side| side as usize);
        let mut values = Vec::new();
        for image in images {
            let image = image.clone().with_channels(features.channels as usize)?;
            let image = image.centre(self.crop, height, width);
            values.extend(image.normalized(&features.mean, &features.std, false));
        }
        let batch = features.batch(&values)?.to_device(self.device);
        Ok(self.model.forward(&batch)?.0)
    }
}
