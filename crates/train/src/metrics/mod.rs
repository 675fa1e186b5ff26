//! `metrics.jsonl`: one object a line, in order of steps, whatever happened to the run.

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

/// What the next line tells of the steps before it. A part of each checkpoint: no line shows that a
/// run was stopped.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Pending {
    /// Steps since the last line.
    pub mean: Mean,
    /// Names of the unusable examples that training has met.
    pub bad: BTreeSet<String>,
}

impl Pending {
    /// TOML, which reads numbers back to the last bit.
    const FILE: &'static str = "metrics.toml";

    /// Adds it to a checkpoint.
    pub fn save(&self, snapshot: &mut Snapshot) -> Result<()> {
        snapshot.add_text(Self::FILE, toml::to_string(self)?);
        Ok(())
    }

    /// From a checkpoint's folder; nothing from one that was written without it.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(Self::FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        toml::from_str(&text(&path)?).with_context(|| path.display().to_string())
    }
}

/// Sums of steps until a line is due.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Mean {
    sum: TrainLine,
    count: f64,
    /// What the losses are means over, in all.
    #[serde(default)]
    weight: f64,
}

impl Mean {
    /// Adds a step, whose gradient was shortened to `clip`.
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
            sum.target_var += line.target_var;
            sum.pred_var += line.pred_var;
            sum.masked_share += line.masked_share;
            sum.ema_decay = line.ema_decay;
        }
    }

    /// The means; starts anew.
    pub fn take(&mut self) -> TrainLine {
        let (mut line, n) = (std::mem::take(&mut self.sum), self.count);
        line.loss /= self.weight;
        line.grad_norm /= n;
        line.clipped = line.clipped.map(|count| count / n);
        if let Some(line) = &mut line.pretraining {
            line.target_var /= n;
            line.pred_var /= n;
            line.masked_share /= n;
        }
        (self.count, self.weight) = (0.0, 0.0);
        line
    }
}

/// The file, open for more.
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file for a run that stands at `step`: lines of later steps, which will be taken
    /// again, go, and so does a line that was cut short. At step 0 there is nothing to keep.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let is_kept = |line: &Line| step > 0 && line.step() <= step;
        let mut kept = String::new();
        for line in text(path)?.lines() {
            // As they are: to read and to write a number again might change its last digit.
            if serde_json::from_str(line).is_ok_and(|line| is_kept(&line)) {
                kept += line;
                kept.push('\n');
            }
        }
        crate::run::write(path, &kept)?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The file, to be flushed to the disk by somebody else.
    pub fn handle(&self) -> Result<File> {
        self.file.try_clone().with_context(|| self.path.display().to_string())
    }

    /// Appends a line.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).with_context(|| self.path.display().to_string())
    }
}

/// All whole lines of the file; none if there is no file.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    Ok(parse(&text(path)?))
}

/// All whole lines of `text`.
pub fn parse(text: &str) -> Vec<Line> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The file as it is; nothing if there is none.
fn text(path: &Path) -> Result<String> {
    Ok(crate::run::read(path)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn going_on_drops_later_and_broken_lines() {
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
    fn steps_add_up_to_means() {
        let step = |step, grad_norm, (loss, weight)| TrainLine {
            step,
            grad_norm,
            loss,
            weight,
            ..TrainLine::default()
        };
        let mut mean = Mean::default();
        // Of 10 examples or tokens: 3 · 8 + 7 · 1 over 10, whatever the number of steps.
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
    fn scalars_have_a_tag_and_undefined_ones_are_missing() {
        let line = HeldOutLine {
            step: 3,
            loss: 0.5,
            explained: None,
            target_var: 0.0,
            pred_var: f64::NAN,
        };
        let scalars = Line::HeldOut(line).scalars();
        let tags: Vec<&str> = scalars.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["held_out/loss", "held_out/target_var", "held_out/pred_var"]);
        assert!(scalars[0].1 == 0.5 && scalars[2].1.is_nan());
        let figures = [("wer".to_owned(), 0.25)].into();
        let scalars = Line::Validation(ValidationLine { step: 3, loss: 1.0, figures }).scalars();
        let expected = [("validation/loss".to_owned(), 1.0), ("validation/wer".to_owned(), 0.25)];
        assert_eq!(scalars, expected);
        let train = TrainLine { lr: 0.1, bad_examples: 2, ..TrainLine::default() };
        let scalars = Line::Train(train).scalars();
        assert!(scalars.contains(&("train/lr".to_owned(), 0.1)));
        assert!(scalars.contains(&("train/bad_examples".to_owned(), 2.0)));
        assert!(!scalars.iter().any(|(tag, _)| tag == "train/target_var"));
    }
}
