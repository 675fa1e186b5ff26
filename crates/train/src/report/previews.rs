//! Rendered examples of a run, stored in `examples.json`, so that a report can be written again
//! without the model.

use std::path::Path;

use anyhow::{Context, Result};
use data2vec_core::HeadTask;
use serde::{Deserialize, Serialize};

use crate::evaluator::{Evaluator, Prediction};

/// Name of the file in a run directory.
const FILE: &str = "examples.json";

/// Rendered examples of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PreviewExamples {
    /// Completed steps of the model.
    pub step: u64,
    /// Examples of pretraining.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gallery: Option<Gallery>,
    /// Examples of fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated: Option<Evaluated>,
}

/// Examples of pretraining.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gallery {
    /// Whether the examples are held out.
    pub held_out: bool,
    /// Examples with masks and features.
    pub shown: Vec<Shown>,
    /// Share of the features' variance in red, green and blue.
    pub shares: [f64; 3],
    /// Examples with nearest neighbours.
    pub neighbours: Vec<Neighbours>,
    /// Number of examples among which neighbours were searched.
    pub among: usize,
}

/// An example with masks and features.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// The example.
    pub card: Card,
    /// Rows and columns of tokens; a sequence has one row.
    pub grid: [usize; 2],
    /// Masks, one character per token: `#` masked, `?` replaced by another token, `.` visible.
    pub masks: Vec<String>,
    /// Colour of each token's features.
    pub colours: Vec<[u8; 3]>,
}

/// An example and its nearest neighbours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Neighbours {
    /// The example.
    pub of: Card,
    /// Neighbours and their cosine similarity, the nearest first.
    pub nearest: Vec<(Card, f64)>,
}

/// Name, label and picture of an example.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Card {
    /// Shortened name.
    pub name: String,
    /// Class or transcript, if known.
    pub label: Option<String>,
    /// Preview of the input.
    pub picture: Picture,
}

/// Preview of an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Picture {
    /// An image, or a drawing such as a spectrogram.
    Raster {
        /// `data:` URL of the picture.
        url: String,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Whether it is dark on light, and inverted on a dark page.
        is_drawing: bool,
    },
    /// One piece of text per token.
    Text(Vec<String>),
}

/// Evaluation of a fine-tuned model on held-out examples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluated {
    /// Names of the classes; empty without classes.
    pub classes: Vec<String>,
    /// Confusion matrix: rows are labels, columns are predictions.
    pub confusion: Vec<Vec<u64>>,
    /// Worst predictions, the worst first.
    pub worst: Vec<Prediction>,
    /// Number of evaluated examples.
    pub among: usize,
}

/// Maximum number of worst predictions.
const WORST: usize = 12;

impl Evaluated {
    /// Summarizes `predictions` of an `evaluator`; `labels` are the names of the classes.
    pub fn new(evaluator: &Evaluator, mut predictions: Vec<Prediction>, labels: &[String]) -> Self {
        let among = predictions.len();
        predictions.sort_by(|a, b| b.error.total_cmp(&a.error));
        predictions.truncate(WORST);
        let has_classes = evaluator.task() == HeadTask::Classification;
        let rows = evaluator.confusion().counts().rows().into_iter();
        Self {
            classes: if has_classes { labels.to_vec() } else { Vec::new() },
            confusion: if has_classes {
                rows.map(|row| row.to_vec()).collect()
            } else {
                Vec::new()
            },
            worst: predictions,
            among,
        }
    }
}

impl PreviewExamples {
    /// Writes the examples to the run directory `dir`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        crate::run_dir::write(&dir.join(FILE), &serde_json::to_string(self)?)
    }

    /// Reads the examples of the run directory `dir`. Returns none if the file is missing.
    ///
    /// # Errors
    /// If the file is unreadable or invalid.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let Some(text) = crate::run_dir::read(&path)? else { return Ok(Self::default()) };
        serde_json::from_str(&text).with_context(|| {
            format!("{}: invalid; delete it, and the next report creates it again", path.display())
        })
    }
}
