//! `data2vec report`: the page of a run, or one that compares several.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use data2vec_core::Encoder;
use tch::Device;
use toml::Table;

use crate::modality::{Task, Tunable, with_recipe};
use crate::page::run_files::RunFiles;
use crate::page::{Curator, FILE, compare, page};
use crate::recipe::Recipe;
use crate::report::{describe, note, out};

/// What `report` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folders of runs: of one, its page is written; several are compared on one
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where the page goes; needed to compare [default: report.html in the run's folder]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Writes the page that `args` ask for.
pub fn run(args: &Args) -> Result<()> {
    let (path, text) = match &args.runs[..] {
        [one] => {
            let run = RunFiles::read(one)?;
            let run = match run.exhibits.gallery {
                None if one.join("encoder").exists() => look_again(one, run)?,
                _ => run,
            };
            (args.out.clone().unwrap_or_else(|| one.join(FILE)), page(&run)?)
        }
        several => {
            let out = args.out.clone();
            ensure!(
                out.is_some(),
                "several runs are compared in a file of their own: --out compare.html"
            );
            (out.unwrap_or_default(), compare::page(several)?)
        }
    };
    crate::run::write(&path, &text)?;
    out!("{}", path.display());
    Ok(())
}

/// Shows examples to the encoder that a run has left, if its data are still there: a run without a report has none.
fn look_again(folder: &Path, run: RunFiles) -> Result<RunFiles> {
    let Some(data) = run.recorded("data").map(PathBuf::from) else { return Ok(run) };
    if !data.exists() {
        note(format!(
            "no examples: {} is not there; run it from where the run was started",
            data.display()
        ));
        return Ok(run);
    }
    let look = Look { folder, data: &data, step: run.step() };
    if let Err(error) = with_recipe(&folder.join("recipe.toml"), None, &[], look) {
        note(format!("no examples: {}", describe(&error)));
    }
    RunFiles::read(folder)
}

struct Look<'a> {
    folder: &'a Path,
    data: &'a Path,
    step: u64,
}

impl Task for Look<'_> {
    fn run<M: Tunable>(self, path: &Path, table: Table) -> Result<ExitCode> {
        let recipe = Recipe::<M>::from_table(path, table)?;
        let (held_out, cache) = (recipe.train.held_out, self.folder.join("cache"));
        let examples =
            M::open(self.data, &recipe.data, &recipe.features, held_out, recipe.seed, &cache)?;
        let (encoder, _) = Encoder::<M::Encoder>::load(self.folder.join("encoder"), Device::Cpu)?;
        let curator = Curator::new(&recipe, self.data, examples.held_out.is_some());
        let shown = examples.held_out.as_ref().unwrap_or(&examples.train);
        curator.exhibit(shown, &encoder, Device::Cpu, self.step)?.write(self.folder)?;
        Ok(ExitCode::SUCCESS)
    }
}
