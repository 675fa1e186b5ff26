//! `data2vec data`: inspects data before training, or packs them.

mod histogram;
mod pack;
mod stats;
mod survey;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use data2vec_core::ConvertModality;
use data2vec_core::modality::raw::RawDataset;
use data2vec_train::recipe::Recipe;
use toml::Table;

use crate::registry::{self, ModalityTask};

/// Subcommands of `data`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Print statistics of all examples: number, sizes, kinds and labels
    Stats(stats::Args),
    /// Read all examples and list the unreadable ones
    ///
    /// The exit code is 1 if there are any.
    Verify(verify::Args),
    /// Pack a directory into tar shards (WebDataset), which --data accepts in its place
    Pack(pack::Args),
}

/// Runs a subcommand.
pub fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Stats(args) => args.run(),
        Command::Verify(args) => args.run(),
        Command::Pack(args) => args.run(),
    }
}

/// The data to read, and the settings for reading them.
#[derive(clap::Args)]
struct DataArgs {
    /// Data as for training: a directory, a manifest, a file or shards
    data: PathBuf,
    /// Modality: speech, vision or nlp; required without --recipe
    #[arg(long, required_unless_present = "recipe")]
    modality: Option<String>,
    /// Read the data with the settings of this pretraining recipe, which also names the modality;
    /// required without --modality
    #[arg(long, conflicts_with = "modality")]
    recipe: Option<PathBuf>,
    /// Override a key of the recipe, as in --set data.min_seconds=1
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "recipe")]
    set: Vec<String>,
}

impl DataArgs {
    /// Opens the data.
    fn open(&self) -> Result<RawDataset> {
        let raw = match &self.recipe {
            Some(recipe) => registry::by_recipe(recipe, None, &self.set, |table| Open {
                args: self,
                recipe: Some((recipe.clone(), table)),
            })?,
            None => {
                let name = self.modality.as_deref().unwrap_or_default();
                registry::by_name(name, Open { args: self, recipe: None })?
            }
        };
        let (data, noun) = (self.data.display(), raw.noun);
        ensure!(raw.files > 0 || !raw.broken.is_empty(), "{data}: the data contain no {noun}");
        Ok(raw)
    }
}

struct Open<'a> {
    args: &'a DataArgs,
    recipe: Option<(PathBuf, Table)>,
}

impl ModalityTask for Open<'_> {
    type Output = RawDataset;

    fn run<M: ConvertModality>(self) -> Result<RawDataset> {
        let recipe = self.recipe.map(|(path, table)| Recipe::<M>::from_table(&path, table));
        let recipe = recipe.transpose()?;
        Ok(M::raw_dataset(&self.args.data, recipe.as_ref().map(|recipe| &recipe.data))?)
    }
}
