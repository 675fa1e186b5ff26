//! `data2vec import`: checkpoints of other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use data2vec_core::convert::{ImportOptions, Imported, Report, Source};
use data2vec_nlp::{TOKENIZER_FILE, Tokenizer};
use serde::{Serialize, de::DeserializeOwned};

use crate::hub;
use crate::report::{note, out};

/// What `import` is told.
///
/// Known are Hugging Face's Data2VecAudio, Data2VecVision and Data2VecText, alone and with heads (ForCTC,
/// ForSequenceClassification, ForImageClassification); fairseq's data2vec 1.0 and 2.0, pretrained and
/// fine-tuned; and BEiT's fork of 1.0 for images. Which of them it is, is told from the names of its tensors.
/// Nothing in a file is executed.
///
/// The folder that is written holds what pretraining leaves behind, and with a head what fine-tuning does:
/// `data2vec extract --encoder DIR` and the crates read it.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// A folder with config.json and model.safetensors or pytorch_model.bin, a .pt, .pth, .bin or
    /// .safetensors file, or a name on the hub, as facebook/data2vec-audio-base-960h
    checkpoint: String,
    /// Folder to write the model to; must be new or empty
    #[arg(long)]
    out: PathBuf,
    /// The averaged weights, the teacher's, where the checkpoint has them, rather than the trained ones
    #[arg(long)]
    teacher: bool,
    /// A text encoder's tokenizer: a tokenizer.json, or a folder with vocab.json and merges.txt, or with
    /// encoder.json, vocab.bpe and dict.txt; without it: the one beside the checkpoint
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// What a head's outputs mean: a vocab.json, fairseq's dict.ltr.txt, or a name on each line; without it:
    /// what the checkpoint or files beside it say
    #[arg(long)]
    labels: Option<PathBuf>,
    /// Attention heads, where the checkpoint does not tell and they are not 64 channels wide
    #[arg(long)]
    heads: Option<i64>,
    /// Branch, tag or commit of a name on the hub
    #[arg(long, default_value = "main")]
    revision: String,
}

/// Reads a checkpoint, and writes what it is here.
pub fn run(args: &Args) -> Result<()> {
    empty(&args.out)?;
    let path = match Path::new(&args.checkpoint) {
        path if path.exists() => path.to_owned(),
        _ if hub::is_name(&args.checkpoint) => hub::fetch(&args.checkpoint, &args.revision)?,
        path => bail!("{}: no such file or folder", path.display()),
    };
    let mut source = Source::open(&path)?;
    let options =
        ImportOptions { teacher: args.teacher, heads: args.heads, labels: args.labels.clone() };
    if let Some(imported) = data2vec_speech::convert::import(&mut source, &options)? {
        return finish(&imported, &args.out);
    }
    if let Some(imported) = data2vec_vision::convert::import(&mut source, &options)? {
        return finish(&imported, &args.out);
    }
    let tokenizer = tokenizer(args.tokenizer.as_deref(), &source.folder)?;
    if let Some(imported) =
        data2vec_nlp::convert::import(&mut source, &options, tokenizer.as_ref())?
    {
        finish(&imported, &args.out)?;
        match tokenizer {
            Some(tokenizer) => tokenizer.save_with_encoder(&args.out)?,
            None => note(format!(
                "it came without a tokenizer: put one into {}, or import with --tokenizer",
                args.out.display()
            )),
        }
        return Ok(());
    }
    let names: Vec<&str> = source.tensors.keys().take(3).map(String::as_str).collect();
    bail!(
        "{}: not a layout that is known here (`data2vec import --help` lists them); its tensors are {}, …",
        source.path.display(),
        names.join(", ")
    )
}

/// Refuses a folder in which something would be left of an earlier model.
pub fn empty(dir: &Path) -> Result<()> {
    match std::fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(false) => bail!("{}: is not empty; name a new folder for --out", dir.display()),
        Ok(true) | Err(_) => Ok(()), // whatever else is wrong will show when it is written to
    }
}

/// The user's tokenizer, or the one in `folder`.
fn tokenizer(path: Option<&Path>, folder: &Path) -> Result<Option<Tokenizer>> {
    let has = |name: &str| folder.join(name).is_file();
    let beside = has(TOKENIZER_FILE) || has("merges.txt") || has("vocab.bpe");
    Ok(path.or(beside.then_some(folder)).map(Tokenizer::load).transpose()?)
}

fn finish<C: Serialize + DeserializeOwned>(imported: &Imported<C>, dir: &Path) -> Result<()> {
    imported.model.write(dir)?;
    let transformer = &imported.model.config.transformer;
    let head = imported.model.head.as_ref();
    let head =
        head.map_or(String::new(), |head| format!(", head of {} outputs", head.labels.len()));
    out!(
        "{}: {} blocks of width {}, {} attention heads{head}",
        imported.what,
        transformer.depth,
        transformer.dim,
        transformer.heads
    );
    out!("{}", check(&imported.report));
    for line in &imported.report.notes {
        note(line);
    }
    out!("written to {}", dir.display());
    Ok(())
}

/// What was taken, renamed, left out, in a line.
fn check(report: &Report) -> String {
    let Report { taken, renamed, left_out, .. } = report;
    let line = format!("tensors taken: {taken}, of which renamed: {renamed}; left out: ");
    if left_out.is_empty() {
        return line + "none";
    }
    format!("{line}{} ({})", left_out.len(), families(left_out))
}

/// Names by what comes before the first dot, with how many there are of each.
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
    fn what_was_left_out_is_told_in_a_line() {
        let left_out = ["_ema.a", "_ema.b", "final_proj.bias"].map(String::from).to_vec();
        let report = Report { taken: 3, renamed: 2, left_out, notes: vec![] };
        let line = "tensors taken: 3, of which renamed: 2; left out: 3 (_ema: 2, final_proj)";
        assert_eq!(check(&report), line);
        assert!(check(&Report::default()).ends_with("none"));
    }
}
