//! `data2vec tokenizer`: trains a tokenizer.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use data2vec_nlp::{InvalidUtf8, TOKENIZER_FILE, TextDataConfig, train_tokenizer};
use indicatif::ProgressBar;

use crate::terminal::out;

/// Subcommands of `tokenizer`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Train a byte-level BPE tokenizer on texts
    Train(Train),
}

/// Arguments of `tokenizer train`.
#[derive(clap::Args)]
pub struct Train {
    /// Texts: a directory (.txt, .md, .jsonl, also gzipped), a file, or shards
    #[arg(long)]
    data: PathBuf,
    /// Size of the vocabulary, including `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>`
    #[arg(long, default_value_t = 8192)]
    entries: usize,
    /// Key of the text in a JSON line
    #[arg(long, default_value = "text")]
    json_key: String,
    /// Directory to write tokenizer.json to; created if missing
    #[arg(long)]
    out: PathBuf,
}

/// Runs a subcommand.
pub fn run(command: &Command) -> Result<ExitCode> {
    let Command::Train(Train { data, entries, json_key, out }) = command;
    let reading = TextDataConfig {
        json_key: json_key.clone(),
        invalid_utf8: InvalidUtf8::Replace,
        ..TextDataConfig::strict()
    };
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let bar = ProgressBar::new_spinner().with_message("training the tokenizer");
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let trained = train_tokenizer(data, &reading, *entries);
    bar.finish_and_clear();
    let tokenizer = trained.with_context(|| data.display().to_string())?;
    tokenizer.save(out)?;
    out!("{}: {entries} entries", out.join(TOKENIZER_FILE).display());
    out!("Use it in a recipe:");
    out!("  data.tokenizer = {{ file = {:?} }}", out.display().to_string());
    out!("  features.vocabulary = {entries}");
    out!("  features.mask = {}", tokenizer.special().mask);
    Ok(ExitCode::SUCCESS)
}
