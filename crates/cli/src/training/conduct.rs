//! How a run begins, whatever it trains: its processes meet, and rank 0 takes the folder and begins the record.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use data2vec_core::Ranks;
use tch::Device;
use toml::Table;

use crate::log::{self, Outlets};
use crate::ranks;
use crate::record::Record;
use crate::run::RunFolder;
use crate::signals::Stop;

/// What all runs are told of how to go about it.
#[derive(clap::Args)]
pub struct Conduct {
    /// Write no report.html
    #[arg(long)]
    no_report: bool,
    /// Seconds after which a process of several that does not answer is given up
    #[arg(long, value_name = "SECONDS", default_value_t = ranks::TIMEOUT)]
    dist_timeout: u64,
    #[command(flatten)]
    watch: log::Args,
}

/// A run that is about to begin or to go on.
pub struct Opening<'a> {
    /// Its folder.
    pub out: &'a Path,
    /// Where its data are.
    pub data: &'a Path,
    /// The whole recipe.
    pub recipe: &'a Table,
    /// The recipe's.
    pub seed: u64,
    /// Whether there has to be one to go on with.
    pub resume: bool,
    /// Whether nothing is trained: the folder stays as it is.
    pub only_looks: bool,
}

impl Conduct {
    /// Meets the other processes, if a launcher has started several, and has this one do `train`.
    pub fn begin(
        &self,
        device: Option<&str>,
        train: impl FnOnce(&Stop, &Ranks, Device) -> Result<ExitCode>,
    ) -> Result<ExitCode> {
        self.watch.begin();
        let stop = Stop::listen()?;
        let (ranks, device) = ranks::meet(device, self.dist_timeout)?;
        ranks::settle(&ranks, || train(&stop, &ranks, device))
    }

    /// The run's folder, once it is clear that all ranks have the recipe that belongs there; and what the log
    /// of the rank that writes goes to.
    pub fn open(
        &self,
        ranks: &Ranks,
        device: Device,
        run: &Opening,
    ) -> Result<(RunFolder, Option<Outlets>)> {
        let server = ranks.first_alone(|| self.watch.serve())?.flatten();
        let mut record = None;
        let folder = ranks::folder(ranks, run.out, |folder| {
            if run.only_looks {
                return Ok(());
            }
            folder.check_recipe(run.recipe, run.resume)?;
            record = Some(Record::begin(folder, run.data, device, run.seed)?);
            Ok(())
        })?;
        ranks.agree("the recipe", &toml::to_string(run.recipe)?)?;
        Ok((folder, record.map(|record| Outlets { record, server })))
    }

    /// Whether this rank writes the run's page.
    pub fn reports(&self, ranks: &Ranks) -> bool {
        !self.no_report && ranks.is_first()
    }
}
