//! `data2vec classify`: what a fine-tuned model takes files for.

use std::io::{Write, copy, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use indicatif::ProgressBar;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::device::Place;
use crate::modality::{Classifier, classifier};
use crate::report::{check_failed, describe, each_file, out};

/// What `classify` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a fine-tuned model
    #[arg(long)]
    model: PathBuf,
    /// Images, recordings or texts, as the model wants them; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// How many classes are told of each file, the most probable first
    #[arg(long, default_value_t = 5)]
    top: usize,
    /// For people, or an object of JSON for each file; a line each
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// A line of `--format json`.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    classes: Vec<Class<'a>>,
}

#[derive(Serialize)]
struct Class<'a> {
    label: &'a str,
    probability: f64,
}

/// Classifies every file.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.top > 0, "--top 0: nothing would be told");
    let classify = classifier(&args.model, &args.place)?;
    let name = |file: &Path| match is_stdin(file) {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    };
    let read = |file: &Path| classes(&classify, file).with_context(|| name(file));
    let write = |file: &Path, classes: Vec<(String, f64)>| {
        tell(&name(file), &classes[..args.top.min(classes.len())], args.format)
    };
    // Answers come as they are found: no bar between them.
    let failed = each_file(&args.files, &ProgressBar::hidden(), read, write)?;
    check_failed(failed, &args.files)
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn classes(classify: &Classifier, file: &Path) -> Result<Vec<(String, f64)>> {
    if !is_stdin(file) {
        return classify(file);
    }
    // Decoders want a file that they can go back in.
    let mut copied = NamedTempFile::new()?;
    copy(&mut stdin().lock(), &mut copied)?;
    copied.flush()?;
    let path = copied.path().display().to_string();
    classify(copied.path()).map_err(|e| anyhow!(describe(&e).replace(&path, "standard input")))
}

fn tell(file: &str, classes: &[(String, f64)], format: Format) -> Result<()> {
    match format {
        Format::Text => {
            let class = |(label, share): &(String, f64)| format!("{label} {:.1} %", 100.0 * share);
            out!("{file}: {}", classes.iter().map(class).collect::<Vec<_>>().join(", "));
        }
        Format::Json => {
            let classes =
                classes.iter().map(|(label, share)| Class { label, probability: *share }).collect();
            out!("{}", serde_json::to_string(&Line { file, classes })?);
        }
    }
    Ok(())
}
