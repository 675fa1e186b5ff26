//! Writes `bad_examples.txt`: the unusable examples of a run, each once, with the reason.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;

use crate::run_dir::{self, RunDir};

/// Name of the file in a run directory.
const FILE: &str = "bad_examples.txt";

/// The list of unusable examples, updated during the run.
pub struct BadExamples {
    path: PathBuf,
    lines: Vec<String>,
    known: BTreeSet<String>,
}

impl BadExamples {
    /// Opens the list in `dir`, with what earlier processes of the run have found.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn open(dir: &RunDir) -> Result<Self> {
        let path = dir.join(FILE);
        let text = run_dir::read(&path)?.unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let known = lines.iter().cloned().collect();
        Ok(Self { path, lines, known })
    }

    /// Adds reasons, which name their examples. Ignores known ones.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add<'a>(&mut self, reasons: impl IntoIterator<Item = &'a String>) -> Result<()> {
        let before = self.lines.len();
        for reason in reasons {
            let line = reason.lines().collect::<Vec<_>>().join(" ");
            if self.known.insert(line.clone()) {
                self.lines.push(line);
            }
        }
        if self.lines.len() > before {
            run_dir::write(&self.path, &(self.lines.join("\n") + "\n"))?;
        }
        Ok(())
    }
}
