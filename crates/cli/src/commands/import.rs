//! `data2vec import`: imports checkpoints of other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use data2vec_core::ConvertModality;
use data2vec_core::io::convert::{ImportOptions, Report, Source};
use tracing::warn;

use crate::commands::hub;
use crate::commands::shared::check_empty;
use crate::registry::{self, ModalityTask};
use crate::terminal::out;

/// The layouts that `import` detects.
const LAYOUTS: &str = "\
Supported checkpoints, detected by their tensor names:
  Hugging Face  Data2VecAudio, Data2VecVision, Data2VecText, also with heads (ForCTC,
                ForSequenceClassification, ForImageClassification)
  fairseq       data2vec 1.0 and 2.0, pretrained and fine-tuned
  BEiT's fork   data2vec 1.0 for images

Pickles are read as data: nothing in them is executed. The model directory is like that of
`pretrain`, or like that of `finetune` if the checkpoint has a head.";

/// Arguments of `import`.
#[derive(clap::Args)]
#[command(after_help = LAYOUTS)]
pub struct Args {
    /// Checkpoint: a directory with config.json and model.safetensors or pytorch_model.bin; a .pt,
    /// .pth, .bin or .safetensors file; or a name on the hub, as in
    /// facebook/data2vec-audio-base-960h
    checkpoint: String,
    /// Directory to write the model to; must be new or empty
    #[arg(long)]
    out: PathBuf,
    /// Import the teacher's weights instead of the student's, if the checkpoint has them
    #[arg(long)]
    teacher: bool,
    /// Tokenizer of a text encoder: a tokenizer.json, or a directory with vocab.json and merges.txt
    /// or with encoder.json, vocab.bpe and dict.txt [default: the tokenizer beside the checkpoint]
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Labels of a head: a vocab.json, fairseq's dict.ltr.txt, or one label a line [default: the
    /// labels in the checkpoint or in files beside it]
    #[arg(long)]
    labels: Option<PathBuf>,
    /// Number of attention heads [default: from the checkpoint, or 64 channels per head]
    #[arg(long)]
    heads: Option<i64>,
    /// Branch, tag or commit on the hub
    #[arg(long, default_value = "main")]
    revision: String,
}

/// Imports a checkpoint.
pub fn run(args: &Args) -> Result<ExitCode> {
    check_empty(&args.out)?;
    let path = match Path::new(&args.checkpoint) {
        path if path.exists() => path.to_owned(),
        _ if hub::is_name(&args.checkpoint) => hub::fetch(&args.checkpoint, &args.revision)?,
        path => bail!("{}: no such file or directory", path.display()),
    };
    let mut source = Source::open(&path)?;
    let options = ImportOptions {
        teacher: args.teacher,
        heads: args.heads,
        labels: args.labels.clone(),
        tokenizer: args.tokenizer.clone(),
    };
    if registry::find(&mut Import { source: &mut source, options: &options, out: &args.out })? {
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<&str> = source.tensors.keys().take(3).map(String::as_str).collect();
    bail!(
        "{}: unknown checkpoint layout, with the tensors {}, …; `data2vec import --help` lists the supported ones",
        source.path.display(),
        names.join(", ")
    )
}

struct Import<'a> {
    source: &'a mut Source,
    options: &'a ImportOptions,
    out: &'a Path,
}

impl ModalityTask for &mut Import<'_> {
    type Output = bool;

    fn run<M: ConvertModality>(self) -> Result<bool> {
        let Some(imported) = M::import(self.source, self.options)? else { return Ok(false) };
        imported.model.write(self.out)?;
        let notes = M::write_imported_files(self.source, self.options, self.out)?;
        let transformer = &imported.model.config.transformer;
        let head = imported.model.head.as_ref();
        let head = head.map(|head| format!(", head of {} outputs", head.labels.len()));
        out!(
            "{}: {} blocks of width {}, {} attention heads{}",
            imported.description,
            transformer.depth,
            transformer.dim,
            transformer.heads,
            head.unwrap_or_default()
        );
        out!("{}", describe(&imported.report));
        imported.report.notes.iter().chain(&notes).for_each(|note| warn!("{note}"));
        out!("written to {}", self.out.display());
        Ok(true)
    }
}

/// Describes in one line how many tensors were imported, renamed and skipped.
fn describe(report: &Report) -> String {
    let Report { taken, renamed, left_out, .. } = report;
    let line = format!("imported {taken} tensors, {renamed} of them renamed; skipped ");
    if left_out.is_empty() {
        return line + "none";
    }
    format!("{line}{} ({})", left_out.len(), families(left_out))
}

/// Counts names by their part before the first dot.
fn families(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut families: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *families.entry(name.split('.').next().unwrap_or(name)).or_default() += 1;
    }
    let named = |(family, count): (&&str, &usize)| match count {
        1 => (*family).to_owned(),
        count => format!("{family}: {count}"),
    };
    let mut shown: Vec<String> = families.iter().take(SHOWN).map(named).collect();
    if families.len() > SHOWN {
        shown.push("…".into());
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes_skipped_tensors() {
        let left_out = ["_ema.a", "_ema.b", "final_proj.bias"].map(String::from).to_vec();
        let report = Report { taken: 3, renamed: 2, left_out, notes: vec![] };
        let line = "imported 3 tensors, 2 of them renamed; skipped 3 (_ema: 2, final_proj)";
        assert_eq!(describe(&report), line);
        assert!(describe(&Report::default()).ends_with("none"));
    }
}
