//! `report.html`: what a run is, how it goes and what it has learned, in one file that needs nothing else. The page
//! knows curves, pictures and texts; what a modality's examples look like, the modality says.

mod curves;
mod html;
mod run_files;
mod sections;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use maud::html;

use crate::report::out;
use run_files::RunFiles;

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

    /// Writes the page. Returns where it is.
    pub fn write(&mut self) -> Result<PathBuf> {
        let started = Instant::now();
        let written = write(&self.folder);
        self.next = Instant::now() + EVERY.max(SHARE * started.elapsed());
        written
    }
}

/// Writes the page of the run in `folder`. Returns where it is.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(FILE);
    crate::run::write(&path, &page(&RunFiles::read(folder)?)?)?;
    Ok(path)
}

fn page(run: &RunFiles) -> Result<String> {
    let groups = curves::groups(&run.curves);
    let body = html! {
        main {
            (sections::head(run))
            (html::figures(&groups))
            (sections::origin(run))
        }
    };
    let title = format!("{} – data2vec", run.name);
    html::document(&title, &body, &groups, run.steps().max(run.step()), &[])
}

/// What `report` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folders of runs: of one, its page is written; several are compared
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where the page goes [default: report.html in the run's folder]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// `data2vec report`.
pub fn run(args: &Args) -> Result<()> {
    let path = match (&args.runs[..], &args.out) {
        ([one], None) => write(one)?,
        ([one], Some(out)) => {
            crate::run::write(out, &page(&RunFiles::read(one)?)?)?;
            out.clone()
        }
        _ => bail!("not yet"),
    };
    out!("{}", path.display());
    Ok(())
}
