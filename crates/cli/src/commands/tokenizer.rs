//! `data2vec tokenizer`: a byte-level BPE of one's own texts.

use std::path::PathBuf;

use anyhow::{Context, Result};
use data2vec_nlp::{InvalidUtf8, TOKENIZER_FILE, TextDataConfig, train_tokenizer};
use indicatif::ProgressBar;

use crate::report::out;

/// What there is to do with tokenizers.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Train a byte-level BPE on texts
    Train(Train),
}

/// What `tokenizer train` is told.
#[derive(clap::Args)]
pub struct Train {
    /// A folder of texts (.txt, .md, .jsonl, and .gz of them), one file, or shards
    #[arg(long)]
    data: PathBuf,
    /// Entries of the vocabulary, `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>` among them
    #[arg(long, default_value_t = 8192)]
    entries: usize,
    /// Where in a JSON line the text is
    #[arg(long, default_value = "text")]
    json_key: String,
    /// Folder to write tokenizer.json to
    #[arg(long)]
    out: PathBuf,
}

/// Does it.
pub fn run(command: &Command) -> Result<()> {
    let Command::Train(Train { data, entries, json_key, out: folder }) = command;
    let reading = TextDataConfig {
        json_key: json_key.clone(),
        invalid_utf8: InvalidUtf8::Replace,
        ..TextDataConfig::usual()
    };
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let bar = ProgressBar::new_spinner().with_message("reading and counting");
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let trained = train_tokenizer(data, &reading, *entries);
    bar.finish_and_clear();
    let tokenizer = trained.with_context(|| data.display().to_string())?;
    tokenizer.save(folder)?;
    out!("{}: {entries} entries", folder.join(TOKENIZER_FILE).display());
    out!("In a recipe:");
    out!("  data.tokenizer = {{ file = {:?} }}", folder.display().to_string());
    out!("  features.vocabulary = {entries}");
    out!("  features.mask = {}", tokenizer.special().mask);
    Ok(())
}
