//! `data2vec data verify`: whether all examples can be read.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::Which;
use super::look::look_at_all;
use crate::report::{out, tell};

/// What `verify` is told.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
}

impl Args {
    /// Verifies.
    pub fn run(&self) -> Result<ExitCode> {
        self.which.with(|stored| {
            let survey = look_at_all(&stored);
            survey.broken.iter().for_each(|broken| out!("{broken}"));
            let (examples, noun) = (survey.examples, stored.noun);
            if !survey.broken.is_empty() {
                let broken = survey.broken.len();
                bail!(
                    "{}: {broken} broken, {examples} {noun} are whole",
                    self.which.data.display()
                );
            }
            tell!("{examples} {noun}, all of them whole");
            Ok(ExitCode::SUCCESS)
        })
    }
}
