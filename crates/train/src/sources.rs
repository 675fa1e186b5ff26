//! The data of a pretraining run: one path, or several with weights, listed in a TOML file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use data2vec_core::io::toml::toml_error;
use data2vec_core::{MixtureDataset, Modality, OnProgress, Source, Splits};
use serde::Deserialize;
use toml::Table;

use crate::recipe::{Recipe, explain};

/// Content of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceList {
    source: Vec<SourceEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceEntry {
    /// As `--data`; a relative path is relative to the file.
    data: PathBuf,
    /// Relative number of its examples in an epoch. Absent for all sources: each example once.
    weight: Option<f64>,
}

/// Lists the examples of all sources. Indexes go to the directory `cache`.
///
/// # Errors
/// If a source is unusable.
pub fn open<M: Modality>(
    data: &Path,
    recipe: &Recipe<M>,
    cache: &Path,
    progress: OnProgress,
) -> Result<Splits<MixtureDataset<M::Dataset>>> {
    let mut open = |path: &Path, cache: &Path| {
        let Recipe { data, features, train, seed, .. } = recipe;
        let (held_out, seed) = (train.held_out, *seed);
        M::open(&Source { path, data, features, held_out, seed, cache }, progress)
    };
    if data.extension() != Some("toml".as_ref()) {
        let Splits { train, held_out, summary, skipped } = open(data, cache)?;
        let held_out =
            held_out.map(|held_out| MixtureDataset::concat(vec![held_out])).transpose()?;
        let train = MixtureDataset::concat(vec![train])?;
        return Ok(Splits { train, held_out, summary, skipped });
    }
    let sources = read(data).with_context(|| data.display().to_string())?;
    let parent = data.parent().unwrap_or(Path::new(""));
    let (mut train, mut held_out, mut summary) = (Vec::new(), Vec::new(), Vec::new());
    let mut skipped = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let path = match is_url(&source.data) {
            true => source.data.clone(),
            false => parent.join(&source.data),
        };
        let cache = cache.join(format!("source-{number}"));
        std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let splits = open(&path, &cache).with_context(|| data.display().to_string())?;
        train.push(splits.train);
        held_out.extend(splits.held_out);
        summary.push(format!("{}: {}", source.data.display(), splits.summary));
        skipped.extend(splits.skipped);
    }
    let fingerprint = M::fingerprint(&train[0]);
    if train.iter().any(|dataset| M::fingerprint(dataset) != fingerprint) {
        bail!(
            "{}: the sources encode their inputs differently; set data.tokenizer to the directory of one tokenizer for all",
            data.display()
        );
    }
    let weights: Option<Vec<f64>> = sources.iter().map(|source| source.weight).collect();
    let train = match weights {
        Some(weights) => MixtureDataset::weighted(train.into_iter().zip(weights).collect()),
        None => MixtureDataset::concat(train),
    };
    let train = train.with_context(|| data.display().to_string())?;
    let held_out = match held_out.is_empty() {
        true => None,
        false => Some(MixtureDataset::concat(held_out)?),
    };
    Ok(Splits { train, held_out, summary: summary.join("; "), skipped })
}

fn read(path: &Path) -> Result<Vec<SourceEntry>> {
    let text = std::fs::read_to_string(path)?;
    let table: Table = text.parse().map_err(|e| anyhow!(toml_error(&text, &e)))?;
    let SourceList { source } =
        table.try_into().map_err(|e: toml::de::Error| anyhow!(explain(&e.to_string())))?;
    ensure!(!source.is_empty(), "names no [[source]]");
    let weighted = source.iter().filter(|source| source.weight.is_some()).count();
    ensure!(
        weighted == 0 || weighted == source.len(),
        "give all sources a weight, or none: {weighted} of {} have one",
        source.len()
    );
    Ok(source)
}

fn is_url(path: &Path) -> bool {
    path.to_string_lossy().contains("://")
}
