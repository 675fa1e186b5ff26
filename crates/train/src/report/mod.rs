//! Writes `report.html`: curves, verdict, examples, recipe and record of a run in one
//! self-contained file. Modalities provide previews of examples as pictures or texts.

mod compare;
mod curves;
mod features;
mod gallery;
mod html;
mod known;
mod picture;
mod previews;
mod run_files;
mod sections;
mod verdict;
mod views;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use data2vec_core::{Encoder, Modality, Source};
use maud::html;
use tch::Device;
use tracing::warn;

use crate::recipe::Recipe;
use run_files::RunFiles;

pub use curves::curves;
pub use gallery::PreviewBuilder;
pub use html::number;
pub use previews::{Evaluated, PreviewExamples};

/// Name of the report in a run directory.
pub const FILE: &str = "report.html";

/// Minimum time between two reports of a running run.
const MIN_INTERVAL: Duration = Duration::from_secs(120);

/// Writing reports takes at most one part in this many of the time.
const MAX_SHARE: u32 = 100;

/// Writes the report of a run from time to time.
pub struct Reporter {
    dir: PathBuf,
    next: Instant,
}

impl Reporter {
    /// Creates a reporter for the run in `dir`. The first report is due at once.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), next: Instant::now() }
    }

    /// Returns whether a new report is due.
    pub fn is_due(&self) -> bool {
        Instant::now() >= self.next
    }

    /// Writes the report with new examples from `preview`, or with the previous ones if it returns
    /// nothing or fails. Returns all errors; none of them should end a run.
    pub fn write(
        &mut self,
        preview: impl FnOnce() -> Result<Option<PreviewExamples>>,
    ) -> Vec<Error> {
        let started = Instant::now();
        let rendered = preview().and_then(|previews| match previews {
            Some(previews) => previews.write(&self.dir),
            None => Ok(()),
        });
        let written = write(&self.dir);
        self.next = Instant::now() + MIN_INTERVAL.max(MAX_SHARE * started.elapsed());
        [rendered, written].into_iter().filter_map(Result::err).collect()
    }
}

/// Writes the report of the run in `dir`.
fn write(dir: &Path) -> Result<()> {
    crate::run_dir::write(&dir.join(FILE), &page(&RunFiles::read(dir)?)?)
}

/// Writes the report of one run to `out`, or to `report.html` in its directory. Returns its path.
///
/// # Errors
/// If a file of the run is missing or damaged, or `out` cannot be written.
pub fn write_report(dir: &Path, out: Option<&Path>) -> Result<PathBuf> {
    let path = out.map_or_else(|| dir.join(FILE), Path::to_owned);
    crate::run_dir::write(&path, &page(&RunFiles::read(dir)?)?)?;
    Ok(path)
}

/// Writes a page that overlays several runs to `out`.
///
/// # Errors
/// If a file of a run is missing or damaged, or `out` cannot be written.
pub fn write_comparison(dirs: &[PathBuf], out: &Path) -> Result<()> {
    crate::run_dir::write(out, &compare::page(dirs)?)
}

/// Whether the report of the run in `dir` lacks previews of examples that its encoder could make.
///
/// # Errors
/// If a file of the run is damaged.
pub fn lacks_previews(dir: &Path) -> Result<bool> {
    Ok(dir.join("encoder").exists() && PreviewExamples::read(dir)?.gallery.is_none())
}

/// Renders examples with the encoder that the run in `dir` has left, for runs without a report.
/// Returns without doing so, with a warning, if its data are gone.
///
/// # Errors
/// If the recipe or the data are unusable.
pub fn render_previews<M: Modality>(dir: &Path, recipe: &Recipe<M>) -> Result<()> {
    let run = RunFiles::read(dir)?;
    let Some(data) = run.recorded("data").map(PathBuf::from) else { return Ok(()) };
    if !data.exists() {
        let data = data.display();
        warn!(
            "the report shows no examples: {data} does not exist; run the command where training was started"
        );
        return Ok(());
    }
    let splits = M::open(
        &Source {
            path: &data,
            data: &recipe.data,
            features: &recipe.features,
            held_out: recipe.train.held_out,
            seed: recipe.seed,
            cache: &dir.join("cache"),
        },
        &mut |_| {},
    )?;
    let (encoder, _) = Encoder::<M::Encoder>::load(dir.join("encoder"), Device::Cpu)?;
    let builder = PreviewBuilder::new(recipe, &data, splits.held_out.is_some());
    let examples = splits.held_out.as_ref().unwrap_or(&splits.train);
    builder.preview(examples, &encoder, Device::Cpu, run.step())?.write(dir)
}

/// Renders the report of one run.
fn page(run: &RunFiles) -> Result<String> {
    let groups = curves::groups(&run.curves);
    let body = html! {
        main {
            (sections::head(run))
            (verdict::verdict(&run.diagnosis))
            (html::charts(&groups))
            (views::previews(&run.previews)?)
            (sections::provenance(run))
        }
    };
    let title = format!("{} – data2vec", run.name);
    html::document(&title, &body, &groups, run.steps().max(run.step()), &run.diagnosis.actions)
}
