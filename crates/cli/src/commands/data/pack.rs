//! `data2vec data pack`: packs a directory into tar shards. Training on the shards gives the same
//! result.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use data2vec_core::modality::raw::{RawDataset, ShardEntry};
use data2vec_source::{Packer, key_of};
use indicatif::ProgressBar;
use tracing::warn;

use super::DataArgs;
use crate::terminal::out;

/// Arguments of `pack`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Directory to write the shards to; created when all shards are complete
    #[arg(long)]
    out: PathBuf,
    /// Maximum size of a shard, as in 500MB or 2GiB
    #[arg(long, default_value = "1GB", value_parser = bytes)]
    shard_size: u64,
    /// Prefix of the file names, as in NAME-000000.tar
    #[arg(long, default_value = "data")]
    name: String,
}

impl Args {
    /// Packs all examples.
    pub fn run(&self) -> Result<ExitCode> {
        let is_allowed = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let name = &self.name;
        ensure!(
            !name.is_empty() && name.chars().all(is_allowed),
            "--name {name}: use only letters, digits, - and _"
        );
        self.pack(&self.data.open()?)
    }

    fn pack(&self, raw: &RawDataset) -> Result<ExitCode> {
        let data = self.data.data.display();
        let shard_entry = match &raw.shard_entry {
            Ok(shard_entry) => shard_entry,
            Err(reason) => bail!("{data}: {reason}"),
        };
        for broken in &raw.broken {
            warn!("skipped {broken}");
        }
        ensure!(raw.files > 0, "{data}: no {} to pack", raw.noun);
        let mut packer = Packer::create(&self.out, &self.name, self.shard_size)?;
        let (bar, mut keys) = (ProgressBar::new(raw.files as u64), HashSet::new());
        for at in 0..raw.files {
            let ShardEntry { path, field, content, sidecars } = shard_entry(at)?;
            let key =
                key_of(&path, &field).with_context(|| format!("{path}: the file has no name"))?;
            let is_inside = !key.split('/').any(|part| matches!(part, "" | "." | ".."));
            ensure!(is_inside, "{path}: outside of {data}; only files inside it can be packed");
            let mut fields: Vec<(&str, &[u8])> = vec![(&field, &content)];
            fields.extend(sidecars.iter().map(|(name, text)| (*name, text.as_bytes())));
            ensure!(
                keys.insert(key.clone()),
                "{path}: another file differs only in its extension; rename one of them"
            );
            packer.add(&key, &fields)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let packed = packer.finish()?;
        let (out, noun) = (self.out.display(), raw.noun);
        let megabytes = packed.bytes as f64 / 1e6;
        out!(
            "packed {} {noun} into {} shard{}, {megabytes:.1} MB: {out}",
            raw.files,
            packed.shards,
            if packed.shards == 1 { "" } else { "s" }
        );
        out!("Train on them:");
        out!("  data2vec pretrain RECIPE --data {out} --out RUN");
        Ok(ExitCode::SUCCESS)
    }
}

/// Parses `500MB`, `2GiB` or `1000`.
fn bytes(text: &str) -> Result<u64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        other => bail!("unknown unit `{other}`; use kB, MB, GB, KiB, MiB or GiB"),
    };
    let bytes =
        number.parse::<f64>().context("not a number of bytes; use a size like 500MB")? * unit;
    ensure!((1.0..=1e15).contains(&bytes), "{bytes} bytes: a shard needs 1 byte to 1e15 bytes");
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_sizes_with_units() {
        let parse = |text| bytes(text).ok();
        assert_eq!(
            [parse("1000"), parse("1.5kB"), parse("500MB"), parse("2GiB")],
            [Some(1000), Some(1500), Some(500_000_000), Some(2 << 30)]
        );
        for wrong in ["", "MB", "0", "-1", "5 bananas", "1e99GB"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
