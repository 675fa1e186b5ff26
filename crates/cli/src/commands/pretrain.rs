//! `data2vec pretrain`: pretrains an encoder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use data2vec_core::ConvertModality;
use data2vec_train::pretrain::pretrain_and_probe;
use data2vec_train::recipe::Recipe;
use data2vec_train::{PretrainOptions, pretrain};
use toml::Table;

use crate::commands::shared::{RunArgs, print_outcome};
use crate::registry::{self, ModalityTask};

/// Arguments of `pretrain`.
#[derive(clap::Args)]
pub struct Args {
    /// Recipe: a TOML file that defines the run
    recipe: PathBuf,
    /// Data: a directory of recordings, images or texts; a manifest or a file; shards (a directory
    /// of .tar or .parquet, or a pattern like "data-{000..041}.tar"); or a .toml that lists several
    /// of these with weights
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    /// Number of optimizer steps [default: the recipe's]
    #[arg(long)]
    steps: Option<u64>,
    /// Report how much memory the largest batch needs and what would fit, without training
    #[arg(long)]
    plan: bool,
    /// Probe the features with k-NN on these labelled examples at every evaluation
    #[arg(long, value_name = "DATA")]
    probe: Option<PathBuf>,
    /// Override a key of the recipe, as in --set transformer.depth=6
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Pretrains an encoder.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { recipe, data, run, steps, plan, probe, set } = args;
    let options = PretrainOptions { run: run.options()?, data, plan };
    registry::by_recipe(&recipe.clone(), steps, &set, |table| Task {
        recipe,
        table,
        options,
        probe,
    })
}

struct Task {
    recipe: PathBuf,
    table: Table,
    options: PretrainOptions,
    probe: Option<PathBuf>,
}

impl ModalityTask for Task {
    type Output = ExitCode;

    fn run<M: ConvertModality>(self) -> Result<ExitCode> {
        let recipe = Recipe::<M>::from_table(&self.recipe, self.table)?;
        let encoder = self.options.run.out.join("encoder");
        let outcome = match &self.probe {
            Some(labelled) => pretrain_and_probe(recipe, self.options, labelled)?,
            None => pretrain(recipe, self.options)?,
        };
        let next = [
            format!("cargo xtask finetune {} --encoder {}", M::NAME, encoder.display()),
            format!("cargo xtask train {} --data YOUR_DATA", M::NAME),
        ];
        Ok(print_outcome(&outcome, &next))
    }
}
