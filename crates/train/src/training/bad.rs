//! `bad_examples.txt`: the unusable examples of a run, each once, with its reason.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;

use crate::run::{self, RunFolder};

/// The file of a run.
const FILE: &str = "bad_examples.txt";

/// The list, kept up as the run meets more.
pub struct BadExamples {
    path: PathBuf,
    lines: Vec<String>,
    known: BTreeSet<String>,
}

impl BadExamples {
    /// With what earlier processes of the run have met.
    pub fn of(folder: &RunFolder) -> Result<Self> {
        let path = folder.join(FILE);
        let text = run::read(&path)?.unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let known = lines.iter().cloned().collect();
        Ok(Self { path, lines, known })
    }

    /// Adds reasons, which name their examples; those that are known already change nothing.
    pub fn add<'a>(&mut self, reasons: impl IntoIterator<Item = &'a String>) -> Result<()> {
        let before = self.lines.len();
        for reason in reasons {
            let line = reason.lines().collect::<Vec<_>>().join(" ");
            if self.known.insert(line.clone()) {
                self.lines.push(line);
            }
        }
        if self.lines.len() > before {
            run::write(&self.path, &(self.lines.join("\n") + "\n"))?;
        }
        Ok(())
    }
}
