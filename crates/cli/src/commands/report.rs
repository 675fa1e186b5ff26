//! `data2vec report`: writes HTML reports.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use data2vec_core::ConvertModality;
use data2vec_train::messages::describe;
use data2vec_train::recipe::Recipe;
use data2vec_train::report::{lacks_previews, render_previews, write_comparison, write_report};
use toml::Table;
use tracing::warn;

use crate::registry::{self, ModalityTask};
use crate::terminal::out;

/// Arguments of `report`.
#[derive(clap::Args)]
pub struct Args {
    /// Run directories: one for its report, several to overlay their curves
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// File to write; required for several runs [default: report.html in the run directory]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Writes a report.
pub fn run(args: &Args) -> Result<ExitCode> {
    let path = match (&args.runs[..], &args.out) {
        ([run], out) => {
            if lacks_previews(run)? {
                let recipe = run.join("recipe.toml");
                let task = |table| Previews { run, recipe: &recipe, table };
                if let Err(error) = registry::by_recipe(&recipe, None, &[], task) {
                    warn!("the report has no examples: {}", describe(&error));
                }
            }
            write_report(run, out.as_deref())?
        }
        (runs, Some(out)) => {
            write_comparison(runs, out)?;
            out.clone()
        }
        (_, None) => bail!("a report of several runs needs an output file; add --out compare.html"),
    };
    out!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

struct Previews<'a> {
    run: &'a Path,
    recipe: &'a Path,
    table: Table,
}

impl ModalityTask for Previews<'_> {
    type Output = ();

    fn run<M: ConvertModality>(self) -> Result<()> {
        let recipe = Recipe::<M>::from_table(self.recipe, self.table)?;
        render_previews(self.run, &recipe)
    }
}
