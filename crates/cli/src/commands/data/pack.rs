//! `data2vec data pack`: a folder as tar shards, from which training learns the same.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use data2vec_core::Error;
use data2vec_source::{Packer, key_of};
use indicatif::ProgressBar;

use super::Which;
use crate::modality::{Parcel, Stored};
use crate::report::{note, out};

/// What `pack` is told.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Folder for the shards; it appears when all are whole
    #[arg(long)]
    out: PathBuf,
    /// Most bytes of a shard, as in 500MB or 2GiB
    #[arg(long, default_value = "1GB", value_parser = bytes)]
    shard_size: u64,
    /// What shards are called: NAME-000000.tar and so on
    #[arg(long, default_value = "data")]
    name: String,
}

impl Args {
    /// Packs.
    pub fn run(&self) -> Result<ExitCode> {
        let ok = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let name = &self.name;
        ensure!(
            !name.is_empty() && name.chars().all(ok),
            "--name {name}: letters, digits, - and _ alone"
        );
        self.which.with(|stored| self.pack(&stored))
    }

    fn pack(&self, stored: &Stored) -> Result<ExitCode> {
        let data = self.which.data.display();
        let parcel = match &stored.parcel {
            Ok(parcel) => parcel,
            Err(reason) => bail!("{data}: {reason}"),
        };
        for broken in &stored.broken {
            note(format!("left out {broken}"));
        }
        ensure!(stored.files > 0, "{data}: no {} that can be packed", stored.noun);
        let mut packer = Packer::create(&self.out, &self.name, self.shard_size)?;
        let (bar, mut keys) = (ProgressBar::new(stored.files as u64), HashSet::new());
        for at in 0..stored.files {
            let Parcel { path, field, content, beside } = parcel(at)?;
            let key = key_of(&path, &field).with_context(|| format!("{path} has no name"))?;
            let is_inside = !key.split('/').any(|part| matches!(part, "" | "." | ".."));
            ensure!(is_inside, "{path} is not below {data}: only what is can be packed");
            let mut fields: Vec<(&str, &[u8])> = vec![(&field, &content)];
            fields.extend(beside.iter().map(|(name, text)| (*name, text.as_bytes())));
            ensure!(
                keys.insert(key.clone()),
                "{path}: another file there is called the same but for its end: rename one of them"
            );
            packer.add(&key, &fields)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let packed = packer.finish()?;
        let (out, noun) = (self.out.display(), stored.noun);
        let megabytes = packed.bytes as f64 / 1e6;
        out!("{} {noun} in {} shards, {megabytes:.1} MB: {out}", stored.files, packed.shards);
        out!("Train on them:");
        out!("  data2vec pretrain RECIPE --data {out} --out RUN");
        Ok(ExitCode::SUCCESS)
    }
}

/// `500MB`, `2GiB` or `1000` as a number.
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
        other => bail!("`{other}` is no unit: MB, GB, MiB, GiB"),
    };
    let bytes = number.parse::<f64>().context("is no number of bytes")? * unit;
    ensure!((1.0..=1e15).contains(&bytes), "{bytes} bytes are no size of a shard");
    Ok(bytes as u64)
}

/// A relative path as text, with `/` between its parts.
pub fn portable(path: &std::path::Path) -> data2vec_core::Result<String> {
    match path.to_str() {
        Some(text) => Ok(text.replace('\\', "/").trim_start_matches('/').to_owned()),
        None => Err(Error::file(path, "its name is not UTF-8: rename it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let of = |text| bytes(text).ok();
        assert_eq!(
            [of("1000"), of("1.5kB"), of("500MB"), of("2GiB")],
            [Some(1000), Some(1500), Some(500_000_000), Some(2 << 30)]
        );
        for wrong in ["", "MB", "0", "-1", "5 bananas", "1e99GB"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
