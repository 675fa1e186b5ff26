//! `data2vec evaluate`: how good a fine-tuned model is on labelled examples.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use data2vec_core::loader::{Plan, TOLERANCE};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Dataset, HeadTask, LabelledBatch, Tuned};
use indicatif::ProgressBar;
use ndarray::Array2;
use serde::Serialize;

use crate::device::Place;
use crate::finetune::MODEL_RECIPE;
use crate::judge::{Answer, Judge};
use crate::modality::{LabelledExamples, ModelTask, Source, Split, Tunable, with_model};
use crate::recipe::{explain, read, set};
use crate::report::{note, out};
use crate::transcribe::SearchArgs;
use crate::tune_recipe::TuneRecipe;

/// What `evaluate` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a fine-tuned model
    #[arg(long)]
    model: PathBuf,
    /// Labelled examples: a folder, a file, or shards
    #[arg(long)]
    data: PathBuf,
    /// Which of them: as fine-tuning divided them, or all
    #[arg(long, value_enum, default_value = "all")]
    split: Which,
    /// How many of the worst answers are shown
    #[arg(long, default_value_t = 5)]
    worst: usize,
    /// Most seconds of audio, images or tokens in a batch
    #[arg(long)]
    batch: Option<f64>,
    /// How a beam search weighs texts
    #[command(flatten)]
    search: SearchArgs,
    /// Another value for a key of the model's data section, as in --set data.case=lower
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Figures, confusion matrix and worst answers, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Part of the labelled examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// What nothing of fine-tuning depended on
    Test,
    /// What the best model was chosen by
    HeldOut,
    /// What was trained on
    Train,
    /// All of them
    All,
}

impl Args {
    /// Evaluates.
    pub fn run(&self) -> Result<ExitCode> {
        with_model(&self.model, self)
    }
}

/// What `--json` holds.
#[derive(Serialize)]
struct Report<'a> {
    examples: usize,
    loss: f64,
    figures: &'a BTreeMap<String, f64>,
    labels: &'a [String],
    /// Right classes down, answers across.
    #[serde(skip_serializing_if = "Option::is_none")]
    confusion: Option<Vec<Vec<u64>>>,
    worst: &'a [(String, Answer)],
    skipped: &'a [String],
}

impl ModelTask for &Args {
    fn run<M: Tunable>(self) -> Result<ExitCode> {
        let device = self.place.device()?;
        let model = Tuned::<M::Encoder>::load(&self.model, device)?;
        let model = model.in_precision(self.place.precision);
        let task = model.head_config().task;
        let (data, split) = self.settings::<M>(&model)?;
        let examples = M::open_labelled(&Source {
            path: &self.data,
            data: &data,
            encoder: &self.model,
            config: model.config(),
            task,
            labels: Some(model.labels()),
            split,
            cache: None,
        })?;
        let LabelledExamples { train, held_out, test, summary, mut skipped, .. } = examples;
        note(&summary);
        let dataset = match self.split {
            Which::Test => test,
            Which::HeldOut => held_out,
            Which::Train | Which::All => Some(M::unvaried(train)),
        };
        let dataset = dataset.with_context(|| {
            format!("--split {:?}: fine-tuning kept nothing of that kind", self.split)
        })?;

        let mut judge =
            Judge::new(task, model.labels(), self.search.search(model.labels(), task)?)?;
        let mut answers: Vec<(String, Answer)> = Vec::new();
        let largest = (0..dataset.len()).map(|i| dataset.size(i)).max().unwrap_or(1);
        let budget = self.batch.map_or(8 * largest, |batch| (batch * M::UNITS.size) as u64);
        let plan = Plan::new(&dataset, budget.max(largest), usize::MAX, TOLERANCE)?;
        let epoch = plan.epoch(0, 0);
        let bar = ProgressBar::new(dataset.len() as u64);
        for place in 0..plan.batches() {
            let mut rng = stream(0, Purpose::HeldOut, &[place]);
            let (mut examples, mut names) = (Vec::new(), Vec::new());
            for &index in epoch.batch(place) {
                bar.inc(1);
                match dataset.load(index as usize, &mut rng) {
                    Ok(example) => {
                        examples.push(example);
                        names.push(dataset.name(index as usize));
                    }
                    Err(error) => skipped.push(error.to_string()),
                }
            }
            if examples.is_empty() {
                continue;
            }
            let batch: LabelledBatch = dataset.collate(examples, &mut rng)?.to_device(device);
            let said = judge.add(&model.score(&batch)?, &batch.targets)?;
            answers.extend(names.into_iter().zip(said));
        }
        bar.finish_and_clear();
        for reason in skipped.iter().take(10) {
            note(format!("skipped {reason}"));
        }
        if answers.is_empty() {
            bail!("{}: no usable example", self.data.display());
        }
        answers.sort_by(|a, b| b.1.off.total_cmp(&a.1.off));
        self.tell(&judge, model.labels(), &answers, &skipped)
    }
}

impl Args {
    /// How the model's data were prepared and divided.
    fn settings<M: Tunable>(&self, model: &Tuned<M::Encoder>) -> Result<(M::LabelledData, Split)> {
        let path = self.model.join(MODEL_RECIPE);
        if path.exists() {
            let recipe = TuneRecipe::<M>::from_table(&path, read(&path, None, &self.set)?)?;
            let split = match self.split {
                Which::All => Split::NONE,
                _ => recipe.split(),
            };
            return Ok((recipe.data, split));
        }
        if self.split != Which::All {
            bail!("--split: {} was not made by `data2vec finetune`", self.model.display());
        }
        let usual = M::usual_data(model.config(), model.head_config().task)?;
        let mut table = toml::Table::new();
        table.insert("data".into(), toml::Value::try_from(&usual)?);
        for text in &self.set {
            set(&mut table, text).with_context(|| format!("--set {text}"))?;
        }
        let data = table.remove("data").context("--set: the section is `data`")?;
        let data = data
            .try_into()
            .map_err(|e: toml::de::Error| anyhow!("--set: {}", explain(&e.to_string())))?;
        Ok((data, Split::NONE))
    }

    /// Writes what came out.
    fn tell(
        &self,
        judge: &Judge,
        labels: &[String],
        answers: &[(String, Answer)],
        skipped: &[String],
    ) -> Result<ExitCode> {
        let figures = judge.figures();
        out!("{} examples, loss {:.4}", answers.len(), judge.loss());
        for (name, value) in &figures {
            out!("{name:<10} {value:.4}");
        }
        let confusion = judge.confusion().counts();
        let is_classification = judge.task() == HeadTask::Classification;
        if is_classification && labels.len() <= MOST_CLASSES {
            out!();
            out!("right ↓, said →");
            table(labels, confusion).iter().for_each(|line| out!("{line}"));
        }
        let worst = &answers[..self.worst.min(answers.len())];
        if !worst.is_empty() {
            out!();
            out!("worst:");
            for (name, Answer { right, said, off }) in worst {
                out!("  {name}: {right:?}, said {said:?} ({off:.2})");
            }
        }
        if let Some(path) = &self.json {
            let report = Report {
                examples: answers.len(),
                loss: judge.loss(),
                figures: &figures,
                labels,
                confusion: is_classification
                    .then(|| confusion.rows().into_iter().map(|row| row.to_vec()).collect()),
                worst,
                skipped,
            };
            crate::run::write(path, &serde_json::to_string_pretty(&report)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Most classes whose confusion is shown; the JSON file has any number.
const MOST_CLASSES: usize = 20;

/// Counts in columns.
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
