//! `data2vec finetune`: fine-tunes an encoder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use data2vec_core::ConvertModality;
use data2vec_train::evaluate::{Evaluation, test};
use data2vec_train::recipe::FinetuneRecipe;
use data2vec_train::{FinetuneOptions, Outcome, device, finetune};
use toml::Table;

use crate::commands::shared::{RunArgs, print_outcome};
use crate::registry::{self, ModalityTask};
use crate::terminal::{Bar, out};

/// Arguments of `finetune`.
#[derive(clap::Args)]
pub struct Args {
    /// Recipe: a TOML file that defines the run
    recipe: PathBuf,
    /// Directory with encoder.safetensors and encoder.toml
    #[arg(long)]
    encoder: PathBuf,
    /// Labelled examples: a directory, a file, or shards
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    /// Start from random weights instead of the encoder's, and freeze nothing
    #[arg(long)]
    from_scratch: bool,
    /// Number of optimizer steps [default: the recipe's]
    #[arg(long)]
    steps: Option<u64>,
    /// Override a key of the recipe, as in --set tune.layer_decay=0.8
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Fine-tunes an encoder.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { recipe, encoder, data, run, from_scratch, steps, set } = args;
    let options = FinetuneOptions { run: run.options()?, encoder, data, from_scratch };
    registry::by_recipe(&recipe.clone(), steps, &set, |table| Task { recipe, table, options })
}

struct Task {
    recipe: PathBuf,
    table: Table,
    options: FinetuneOptions,
}

impl ModalityTask for Task {
    type Output = ExitCode;

    fn run<M: ConvertModality>(self) -> Result<ExitCode> {
        let recipe = FinetuneRecipe::<M>::from_table(&self.recipe, self.table)?;
        let (data, device) = (self.options.data.clone(), self.options.run.device.clone());
        let outcome = finetune(recipe, self.options)?;
        let exit = print_outcome(&outcome, &[]);
        if let Outcome::Finished(Some(summary)) = &outcome {
            let (model, device) = (&summary.exported.dir, device::choose(device.as_deref())?);
            let bar = Bar::default();
            let tested = test::<M>(Path::new(model), &data, device, &mut |p| bar.update(p))?;
            bar.clear();
            if let Some(Evaluation { predictions, metrics, .. }) = tested {
                let metrics = metrics.iter().map(|(name, value)| format!("{name} {value:.4}"));
                let metrics = metrics.collect::<Vec<_>>().join(", ");
                out!();
                out!(
                    "On {} test examples, which nothing depended on: {metrics}",
                    predictions.len()
                );
            }
        }
        Ok(exit)
    }
}
