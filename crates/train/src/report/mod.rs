//! `report.html`: what a run is, how it goes and what it has learned, in one file that needs nothing else. The page
//! knows curves, pictures and texts; what a modality's examples look like, the modality says.

mod command;
mod compare;
mod curves;
mod exhibits;
mod features;
mod gallery;
mod html;
mod known;
mod picture;
mod run_files;
mod sections;
mod verdict;
mod views;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use maud::html;

use run_files::RunFiles;

pub use command::{Args, run};
pub use curves::curves;
pub use exhibits::{Exhibits, Judged};
pub use gallery::Curator;
pub use html::number;

/// Name of the page in a run's folder.
pub const FILE: &str = "report.html";

/// While a run goes on, its page is not written more often than so.
const EVERY: Duration = Duration::from_secs(120);

/// And no more than this share of the time goes into it.
const SHARE: u32 = 100;

/// Writes a run's page every now and then.
pub struct Reporter {
    folder: PathBuf,
    next: Instant,
}

impl Reporter {
    /// For the run in `folder`; the first page is due at once.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), next: Instant::now() }
    }

    /// Whether the last page is old enough for another one.
    pub fn is_due(&self) -> bool {
        Instant::now() >= self.next
    }

    /// Writes the page, with what `exhibit` shows or, where that fails or is nothing, with what was shown last.
    /// Returns what went wrong.
    pub fn write(&mut self, exhibit: impl FnOnce() -> Result<Option<Exhibits>>) -> Vec<Error> {
        let started = Instant::now();
        let shown = exhibit().and_then(|exhibits| match exhibits {
            Some(exhibits) => exhibits.write(&self.folder),
            None => Ok(()),
        });
        let written = write(&self.folder);
        self.next = Instant::now() + EVERY.max(SHARE * started.elapsed());
        [shown, written].into_iter().filter_map(Result::err).collect()
    }
}

/// Writes the page of the run in `folder`.
fn write(folder: &Path) -> Result<()> {
    crate::run::write(&folder.join(FILE), &page(&RunFiles::read(folder)?)?)
}

fn page(run: &RunFiles) -> Result<String> {
    let groups = curves::groups(&run.curves);
    let body = html! {
        main {
            (sections::head(run))
            (verdict::verdict(&run.diagnosis))
            (html::figures(&groups))
            (views::exhibits(&run.exhibits)?)
            (sections::origin(run))
        }
    };
    let title = format!("{} – data2vec", run.name);
    html::document(&title, &body, &groups, run.steps().max(run.step()), &run.diagnosis.actions)
}
