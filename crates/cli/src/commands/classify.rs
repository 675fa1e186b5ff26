//! `data2vec classify`: classifies files with a fine-tuned model.

use std::io::{Write, copy, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use data2vec_core::ConvertModality;
use data2vec_core::modality::finetune::Classifier;
use data2vec_train::messages::describe;
use indicatif::ProgressBar;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::commands::shared::{ComputeArgs, HeadArgs, count};
use crate::registry::{self, ModalityTask};
use crate::terminal::{check_failed, each_file, out};

/// Arguments of `classify`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of a fine-tuned model
    #[arg(long)]
    model: PathBuf,
    /// Image, audio or text files; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Number of classes to print
    #[arg(long, default_value_t = 5, value_parser = count)]
    top: usize,
    /// Output format: one line of text or one JSON object per file
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    head: HeadArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// One line of `--format json`.
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

struct Load<'a>(&'a Args);

impl ModalityTask for Load<'_> {
    type Output = Box<Classifier>;

    fn run<M: ConvertModality>(self) -> Result<Box<Classifier>> {
        let ComputeArgs { precision, .. } = self.0.compute;
        Ok(M::classifier(&self.0.model, self.0.compute.device()?, precision)?)
    }
}

/// Classifies every file.
pub fn run(args: &Args) -> Result<ExitCode> {
    args.head.check(&args.model)?;
    let classify = registry::by_model(&args.model, Load(args))?;
    let name = |file: &Path| match is_stdin(file) {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    };
    let read = |file: &Path| classes(&classify, file).with_context(|| name(file));
    let write = |file: &Path, classes: Vec<(String, f64)>| {
        let top = classes.len().min(args.top);
        print(&name(file), &classes[..top], args.format)
    };
    // No bar: results are printed one by one.
    let failed = each_file(&args.files, &ProgressBar::hidden(), read, write)?;
    check_failed(failed, &args.files)?;
    Ok(ExitCode::SUCCESS)
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn classes(classify: &Classifier, file: &Path) -> Result<Vec<(String, f64)>> {
    if !is_stdin(file) {
        return Ok(classify(file)?);
    }
    // Decoders need a seekable file.
    let mut copied = NamedTempFile::new()?;
    copy(&mut stdin().lock(), &mut copied)?;
    copied.flush()?;
    let path = copied.path().display().to_string();
    classify(copied.path())
        .map_err(|e| anyhow!(describe(&e.into()).replace(&path, "standard input")))
}

fn print(file: &str, classes: &[(String, f64)], format: Format) -> Result<()> {
    match format {
        Format::Text => {
            let class = |(label, p): &(String, f64)| format!("{label} {:.1} %", 100.0 * p);
            out!("{file}: {}", classes.iter().map(class).collect::<Vec<_>>().join(", "));
        }
        Format::Json => {
            let classes =
                classes.iter().map(|(label, p)| Class { label, probability: *p }).collect();
            out!("{}", serde_json::to_string(&Line { file, classes })?);
        }
    }
    Ok(())
}
