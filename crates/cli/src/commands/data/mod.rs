//! `data2vec data`: what examples there are, whether all can be read, and in which form they are kept.

mod look;
mod pack;
mod stats;
mod verify;

pub use pack::portable;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use toml::Table;

use crate::modality::{self, Stored, Task, Tunable};

/// What there is to do with data.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Tell how many examples there are, how long or large, and which are broken; all are read
    Stats(stats::Args),
    /// Read all examples, and list those that are broken; the exit code is 1 if any is
    Verify(verify::Args),
    /// Write a folder's examples to tar shards, as WebDataset reads them; --data takes these as it takes the folder
    Pack(pack::Args),
}

/// Does it.
pub fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Stats(args) => args.run(),
        Command::Verify(args) => args.run(),
        Command::Pack(args) => args.run(),
    }
}

/// Which data, and as what they are read.
#[derive(clap::Args)]
struct Which {
    /// Whatever --data of `pretrain` may be: a folder, a manifest, a file, shards
    data: PathBuf,
    /// speech, vision or nlp
    #[arg(long, required_unless_present = "recipe")]
    modality: Option<String>,
    /// Read them as this recipe of pretraining does
    #[arg(long, conflicts_with = "modality")]
    recipe: Option<PathBuf>,
    /// Another value for a key of the recipe, as in --set data.min_seconds=1
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "recipe")]
    set: Vec<String>,
}

impl Which {
    /// Has `then` look at them.
    fn with(&self, then: impl FnOnce(Stored) -> Result<ExitCode>) -> Result<ExitCode> {
        let task = Look { data: &self.data, then };
        match (&self.recipe, &self.modality) {
            (Some(recipe), _) => modality::with_recipe(recipe, None, &self.set, task),
            (None, modality) => {
                modality::with_modality(modality.as_deref().unwrap_or_default(), task)
            }
        }
    }
}

struct Look<'a, T> {
    data: &'a Path,
    then: T,
}

impl<T: FnOnce(Stored) -> Result<ExitCode>> Look<'_, T> {
    fn at<M: Tunable>(self, data: Option<&M::Data>) -> Result<ExitCode> {
        let stored = M::stored(self.data, data)?;
        let (data, noun) = (self.data.display(), stored.noun);
        ensure!(stored.files > 0 || !stored.broken.is_empty(), "{data}: no {noun} in it");
        (self.then)(stored)
    }
}

impl<T: FnOnce(Stored) -> Result<ExitCode>> Task for Look<'_, T> {
    fn run<M: Tunable>(self, path: &Path, table: Table) -> Result<ExitCode> {
        let recipe = crate::recipe::Recipe::<M>::from_table(path, table)?;
        self.at::<M>(Some(&recipe.data))
    }
}

impl<T: FnOnce(Stored) -> Result<ExitCode>> modality::NamedTask for Look<'_, T> {
    fn run<M: Tunable>(self) -> Result<ExitCode> {
        self.at::<M>(None)
    }
}
