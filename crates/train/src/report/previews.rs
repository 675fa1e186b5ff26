//! What a page shows of examples. It is made while the model is at hand, and kept beside the run's other files, so
//! that a page can be written again without it.

use std::path::Path;

use anyhow::{Context, Result};
use data2vec_core::HeadTask;
use serde::{Deserialize, Serialize};

use crate::judge::{Answer, Judge};

/// Name of the file in a run's folder.
const FILE: &str = "examples.json";

/// All that is shown of examples.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Exhibits {
    /// Completed steps of the model that saw them.
    pub step: u64,
    /// Of pretraining.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gallery: Option<Gallery>,
    /// Of fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Judged>,
}

/// Examples as a pretrained encoder sees them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gallery {
    /// Whether training never sees them.
    pub held_out: bool,
    /// With masks and features.
    pub shown: Vec<Shown>,
    /// Share of the features' variance in each of the colours.
    pub shares: [f64; 3],
    pub neighbours: Vec<Neighbours>,
    /// Examples among which neighbours were looked for.
    pub among: usize,
}

/// An example, its masks and its features.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    pub card: Card,
    /// Rows and columns in which its tokens lie; a sequence has one row.
    pub grid: [usize; 2],
    /// Some of the masks that training might draw: for each token `#` hidden, `?` shown as another, `.` visible.
    pub masks: Vec<String>,
    /// Of each token's features.
    pub colours: Vec<[u8; 3]>,
}

/// An example, and those whose features are nearest to its.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Neighbours {
    pub of: Card,
    /// With the cosine of the angle between them, the nearest first.
    pub nearest: Vec<(Card, f64)>,
}

/// What an example is called and looks like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Card {
    pub name: String,
    /// Its class, or what is said in it, if that is known.
    pub label: Option<String>,
    pub picture: Picture,
}

/// What an example looks like.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Picture {
    Raster {
        /// The picture itself, as a URL that holds it.
        url: String,
        width: usize,
        height: usize,
        /// Dark on light: inverted where the page is dark.
        is_drawing: bool,
    },
    /// A piece for each token.
    Text(Vec<String>),
}

/// What a fine-tuned model makes of held-out examples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    /// Names of the classes; none where there are no classes.
    pub classes: Vec<String>,
    /// How often each class (row) was taken for each (column).
    pub confusion: Vec<Vec<u64>>,
    /// The worst answers, the worst first.
    pub worst: Vec<Answer>,
    /// Examples that were judged.
    pub among: usize,
}

/// Answers that are shown.
const WORST: usize = 12;

impl Judged {
    /// What `judge` made of `answers`.
    pub fn new(judge: &Judge, mut answers: Vec<Answer>, labels: &[String]) -> Self {
        let among = answers.len();
        answers.sort_by(|a, b| b.off.total_cmp(&a.off));
        answers.truncate(WORST);
        let has_classes = judge.task() == HeadTask::Classification;
        let rows = judge.confusion().counts().rows().into_iter();
        Self {
            classes: if has_classes { labels.to_vec() } else { Vec::new() },
            confusion: if has_classes {
                rows.map(|row| row.to_vec()).collect()
            } else {
                Vec::new()
            },
            worst: answers,
            among,
        }
    }
}

impl Exhibits {
    /// Puts them into a run's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        crate::run::write(&folder.join(FILE), &serde_json::to_string(self)?)
    }

    /// From a run's folder; nothing from a run that has shown none.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let Some(text) = crate::run::read(&path)? else { return Ok(Self::default()) };
        serde_json::from_str(&text).with_context(|| {
            format!("{}: remove it, the next report makes it anew", path.display())
        })
    }
}
