//! `data2vec evaluate`: evaluates a fine-tuned model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use data2vec_core::{ConvertModality, HeadTask};
use data2vec_train::evaluate::{EvaluateOptions, EvaluateSplit, Evaluation, evaluate};
use data2vec_train::evaluator::Prediction;
use data2vec_train::run_dir;
use ndarray::Array2;
use serde::Serialize;

use crate::commands::shared::ComputeArgs;
use crate::commands::transcribe::SearchArgs;
use crate::registry::{self, ModalityTask};
use crate::terminal::{Bar, out};

/// Arguments of `evaluate`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of a fine-tuned model
    #[arg(long)]
    model: PathBuf,
    /// Labelled examples: a directory, a file, or shards
    #[arg(long)]
    data: PathBuf,
    /// Examples to evaluate: a split that fine-tuning made, or all, which includes training examples
    /// [default: the test split; all if there is none]
    #[arg(long, value_enum)]
    split: Option<Split>,
    /// Number of worst predictions to print
    #[arg(long, default_value_t = 5)]
    worst: usize,
    /// Maximum size of a batch, in seconds of audio, images or tokens [default: 64 examples of
    /// the median size]
    #[arg(long)]
    batch: Option<f64>,
    #[command(flatten)]
    search: SearchArgs,
    /// Override a key of the model's data section, as in --set data.case=lower
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Write metrics, confusion matrix and worst predictions to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Split of the labelled examples.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Split {
    /// Test examples, unused in fine-tuning
    Test,
    /// Held-out examples, which selected the best model
    HeldOut,
    /// Training examples
    Train,
    /// All examples
    All,
}

/// Evaluates a model.
pub fn run(args: &Args) -> Result<ExitCode> {
    registry::by_model(&args.model, args)
}

/// Content of the `--json` file.
#[derive(Serialize)]
struct Report<'a> {
    split: &'static str,
    examples: usize,
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    most_frequent: Option<f64>,
    metrics: &'a BTreeMap<String, f64>,
    labels: &'a [String],
    /// Rows: targets; columns: predictions.
    #[serde(skip_serializing_if = "Option::is_none")]
    confusion: Option<Vec<Vec<u64>>>,
    worst: &'a [(String, Prediction)],
    skipped: &'a [String],
}

impl ModalityTask for &Args {
    type Output = ExitCode;

    fn run<M: ConvertModality>(self) -> Result<ExitCode> {
        let options = EvaluateOptions {
            model: self.model.clone(),
            data: self.data.clone(),
            split: self.split.map(|split| match split {
                Split::Test => EvaluateSplit::Test,
                Split::HeldOut => EvaluateSplit::HeldOut,
                Split::Train => EvaluateSplit::Train,
                Split::All => EvaluateSplit::All,
            }),
            batch: self.batch,
            set: self.set.clone(),
            device: self.compute.device()?,
            precision: self.compute.precision,
        };
        let decoder = |task, labels: &[String]| match self.search.decoder(labels, task)? {
            Some(decoder) => Ok(Some(decoder)),
            None if task == HeadTask::Ctc => Ok(Some(M::sequence_decoder(labels)?)),
            None => Ok(None),
        };
        let bar = Bar::default();
        let evaluation = evaluate::<M>(&options, decoder, &mut |progress| bar.update(progress))?;
        bar.clear();
        self.print(&evaluation)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Args {
    fn print(&self, evaluation: &Evaluation) -> Result<()> {
        let Evaluation { task, labels, loss, metrics, predictions, skipped, .. } = evaluation;
        let split = evaluation.split.name();
        out!("{} examples ({split}), loss {loss:.4}", predictions.len());
        for (name, value) in metrics {
            out!("{name:<10} {value:.4}");
        }
        match evaluation.most_frequent {
            Some(share) => out!("baseline: accuracy {share:.4} by the most frequent class"),
            None if *task == HeadTask::Ctc => out!("baseline: cer and wer 1 by empty transcripts"),
            None => {}
        }
        let confusion = evaluation.confusion.counts();
        let is_classification = *task == HeadTask::Classification;
        if is_classification && labels.len() <= MAX_CLASSES {
            out!();
            out!("target ↓, prediction →");
            table(labels, confusion).iter().for_each(|line| out!("{line}"));
        }
        let worst = &predictions[..self.worst.min(predictions.len())];
        if !worst.is_empty() {
            out!();
            out!("worst predictions:");
            for (name, Prediction { target, prediction, error }) in worst {
                out!("  {name}: target {target:?}, prediction {prediction:?} (error {error:.2})");
            }
        }
        if let Some(path) = &self.json {
            let rows = || confusion.rows().into_iter().map(|row| row.to_vec()).collect();
            let report = Report {
                split,
                examples: predictions.len(),
                loss: *loss,
                most_frequent: evaluation.most_frequent,
                metrics,
                labels,
                confusion: is_classification.then(rows),
                worst,
                skipped,
            };
            run_dir::write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        Ok(())
    }
}

/// Maximum number of classes for which the confusion matrix is printed; `--json` has no limit.
const MAX_CLASSES: usize = 20;

/// Formats a confusion matrix.
fn table(labels: &[String], counts: &Array2<u64>) -> Vec<String> {
    let short = |label: &String| label.chars().take(12).collect::<String>();
    let labels: Vec<String> = labels.iter().map(short).collect();
    let widest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let digits = counts.iter().max().map_or(1, |n| n.to_string().len());
    let width = widest.max(digits) + 2;
    let cells =
        |cells: Vec<String>| cells.iter().map(|c| format!("{c:>width$}")).collect::<String>();
    let mut lines = vec![format!("{:width$}{}", "", cells(labels.clone()))];
    for (label, row) in labels.iter().zip(counts.rows()) {
        let row = cells(row.iter().map(u64::to_string).collect());
        lines.push(format!("{label:<width$}{row}"));
    }
    lines
}
