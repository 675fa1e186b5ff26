//! Reads and writes `metrics.jsonl`: one JSON object per line, in order of steps.

mod line;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use data2vec_core::Snapshot;
use serde::{Deserialize, Serialize};

pub use line::{
    Action, ActionLine, HealthLine, HeldOutLine, Line, Pretraining, ProbeLine, TrainLine,
    ValidationLine,
};

/// State of metrics between two lines. Checkpoints contain it, so that stopping a run changes no
/// line.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Pending {
    /// Sums over the steps since the last line.
    pub mean: Mean,
    /// Names of the unusable examples found in training.
    pub bad: BTreeSet<String>,
}

impl Pending {
    // TOML reads numbers back exactly.
    const FILE: &'static str = "metrics.toml";

    /// Adds the state to a checkpoint.
    ///
    /// # Errors
    /// If it cannot be serialized.
    pub fn save(&self, snapshot: &mut Snapshot) -> Result<()> {
        snapshot.add_file(Self::FILE, toml::to_string(self)?);
        Ok(())
    }

    /// Reads the state from the checkpoint directory `dir`. Returns the default if the file is
    /// missing.
    ///
    /// # Errors
    /// If the file is unreadable or invalid.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(Self::FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        toml::from_str(&text(&path)?).with_context(|| path.display().to_string())
    }
}

/// Sums over the steps since the last line.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Mean {
    sum: TrainLine,
    count: f64,
    /// Number of tokens or examples that the losses are means over.
    #[serde(default)]
    weight: f64,
}

impl Mean {
    /// Adds a step whose gradient norm was clipped to `clip`.
    pub fn add(&mut self, line: &TrainLine, clip: Option<f64>) {
        let sum = &mut self.sum;
        self.count += 1.0;
        (sum.step, sum.lr) = (line.step, line.lr);
        self.weight += line.weight;
        sum.loss += line.loss * line.weight;
        sum.grad_norm += line.grad_norm;
        if let Some(clip) = clip {
            *sum.clipped.get_or_insert_default() += f64::from(line.grad_norm > clip);
        }
        if let Some(line) = &line.pretraining {
            let sum = sum.pretraining.get_or_insert_default();
            sum.target_std += line.target_std;
            sum.pred_std += line.pred_std;
            sum.masked_share += line.masked_share;
            sum.ema_decay = line.ema_decay;
        }
    }

    /// Returns the means and resets the sums.
    pub fn take(&mut self) -> TrainLine {
        let (mut line, n) = (std::mem::take(&mut self.sum), self.count);
        line.loss /= self.weight;
        line.grad_norm /= n;
        line.clipped = line.clipped.map(|count| count / n);
        if let Some(line) = &mut line.pretraining {
            line.target_std /= n;
            line.pred_std /= n;
            line.masked_share /= n;
        }
        (self.count, self.weight) = (0.0, 0.0);
        line
    }
}

/// `metrics.jsonl`, open for appending.
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file for a run that resumes at `step`. Removes lines of later steps, incomplete
    /// lines, and at step 0 all lines.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let is_kept = |line: &Line| step > 0 && line.step() <= step;
        let mut kept = String::new();
        for line in text(path)?.lines() {
            // Lines are copied as text: formatting a number again could change its last digit.
            if serde_json::from_str(line).is_ok_and(|line| is_kept(&line)) {
                kept += line;
                kept.push('\n');
            }
        }
        crate::run_dir::write(path, &kept)?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Returns a handle that another thread can flush to disk.
    ///
    /// # Errors
    /// If the operating system has no handles left.
    pub fn handle(&self) -> Result<File> {
        self.file.try_clone().with_context(|| self.path.display().to_string())
    }

    /// Appends a line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).with_context(|| self.path.display().to_string())
    }
}

/// Reads all complete lines of a file. Returns none if the file is missing.
///
/// # Errors
/// If the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    Ok(parse(&text(path)?))
}

/// Parses all complete lines of `text`.
pub fn parse(text: &str) -> Vec<Line> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Reads a file. Returns an empty text if it is missing.
fn text(path: &Path) -> Result<String> {
    Ok(crate::run_dir::read(path)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn resume_drops_later_and_incomplete_lines() {
        let path = std::env::temp_dir().join(format!("data2vec-metrics-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let line = |step| Line::Train(TrainLine { step, ..TrainLine::default() });
        let mut metrics = Metrics::open(&path, 0).expect("a new file");
        for step in [10, 20, 30] {
            metrics.write(&line(step)).expect("space");
        }
        fs::write(&path, fs::read_to_string(&path).expect("text") + "{\"kind\":\"tra")
            .expect("space");
        let nan = TrainLine { step: 21, loss: f64::NAN, ..TrainLine::default() };
        Metrics::open(&path, 20).expect("the same file").write(&Line::Train(nan)).expect("space");
        let steps = || -> Vec<u64> { read(&path).expect("lines").iter().map(Line::step).collect() };
        assert_eq!(steps(), [10, 20, 21]);
        Metrics::open(&path, 0).expect("the same file");
        assert!(steps().is_empty());
        fs::remove_file(&path).expect("the file");
    }

    #[test]
    fn mean_weighs_losses_by_tokens() {
        let step = |step, grad_norm, (loss, weight)| TrainLine {
            step,
            grad_norm,
            loss,
            weight,
            ..TrainLine::default()
        };
        let mut mean = Mean::default();
        // (3 · 8 + 7 · 1) / 10: per token, not per step.
        let losses = [(8.0, 1.0), (8.0, 2.0), (1.0, 3.0), (1.0, 4.0)];
        for ((at, norm), loss) in [(1, 0.5), (2, 1.0), (3, 1.5), (4, 5.0)].into_iter().zip(losses) {
            mean.add(&step(at, norm, loss), Some(1.0));
        }
        let line = mean.take();
        assert_eq!((line.step, line.loss, line.grad_norm, line.clipped), (4, 3.1, 2.0, Some(0.5)));
        mean.add(&step(5, 7.0, (2.0, 5.0)), None);
        let line = mean.take();
        assert_eq!((line.loss, line.clipped), (2.0, None));
    }

    #[test]
    fn scalars_omit_undefined_metrics() {
        let line = HeldOutLine { step: 3, loss: 0.5, pred_std: f64::NAN, ..HeldOutLine::default() };
        let scalars = Line::HeldOut(line).scalars();
        let tags: Vec<&str> = scalars.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["held_out/loss", "held_out/target_std", "held_out/pred_std"]);
        assert!(scalars[0].1 == 0.5 && scalars[2].1.is_nan());
        let metrics = [("wer".to_owned(), 0.25)].into();
        let scalars = Line::Validation(ValidationLine { step: 3, loss: 1.0, metrics }).scalars();
        let expected = [("validation/loss".to_owned(), 1.0), ("validation/wer".to_owned(), 0.25)];
        assert_eq!(scalars, expected);
        let train = TrainLine { lr: 0.1, bad_examples: 2, ..TrainLine::default() };
        let scalars = Line::Train(train).scalars();
        assert!(scalars.contains(&("train/lr".to_owned(), 0.1)));
        assert!(scalars.contains(&("train/bad_examples".to_owned(), 2.0)));
        assert!(!scalars.iter().any(|(tag, _)| tag == "train/target_std"));
    }
}
