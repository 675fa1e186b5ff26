//! `data2vec data verify`: lists unreadable examples.

use std::process::ExitCode;

use anyhow::{Result, bail};
use tracing::info;

use super::DataArgs;
use super::survey::survey;
use crate::terminal::out;

/// Arguments of `verify`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
}

impl Args {
    /// Reads all examples and prints the unreadable ones.
    pub fn run(&self) -> Result<ExitCode> {
        let raw = self.data.open()?;
        let survey = survey(&raw);
        survey.broken.iter().for_each(|broken| out!("{broken}"));
        let (examples, noun) = (survey.examples, raw.noun);
        if !survey.broken.is_empty() {
            let (data, broken) = (self.data.data.display(), survey.broken.len());
            bail!("{data}: {broken} unreadable, {examples} {noun} readable");
        }
        info!("{examples} {noun}, all readable");
        Ok(ExitCode::SUCCESS)
    }
}
