//! The data of a pretraining run: one place, or several that a TOML file names, each with its weight.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use data2vec_core::Mixed;
use data2vec_source::{Progress, watch_indexing};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use toml::Table;

use crate::modality::{Examples, Modality};
use crate::recipe::{Recipe, explain, toml_error};

/// What the file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sources {
    source: Vec<Source>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    /// As `--data`; a relative path is relative to the file.
    data: PathBuf,
    /// How many of an epoch's examples are its, in relation to the others. Absent of all: each example once.
    weight: Option<f64>,
}

/// Shows on a terminal how far the indexes of shards have come, which takes long where these are far away.
pub fn show_indexing() -> Result<()> {
    let style =
        ProgressStyle::with_template("index of shards {bar:24} {pos}/{len}, {msg} left {eta}")?;
    let shown: Mutex<Option<ProgressBar>> = Mutex::default();
    watch_indexing(move |Progress { shards, total, examples }| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = shown.get_or_insert_with(|| ProgressBar::new(0).with_style(style.clone()));
        bar.set_length(total as u64);
        bar.set_position(shards as u64);
        bar.set_message(format!("{examples} examples"));
        if shards == total {
            bar.finish_and_clear();
            *shown = None;
        }
    });
    Ok(())
}

/// Lists the examples of all sources. What is remembered of them goes to `cache`.
pub fn open<M: Modality>(
    data: &Path,
    recipe: &Recipe<M>,
    cache: &Path,
) -> Result<Examples<Mixed<M::Dataset>>> {
    let open = |path: &Path, cache: &Path| {
        let Recipe { data, features, train, seed, .. } = recipe;
        M::open(path, data, features, train.held_out, *seed, cache)
    };
    if data.extension() != Some("toml".as_ref()) {
        let Examples { train, held_out, summary, skipped } = open(data, cache)?;
        let held_out = held_out.map(|held_out| Mixed::whole(vec![held_out])).transpose()?;
        let train = Mixed::whole(vec![train])?;
        return Ok(Examples { train, held_out, summary, skipped });
    }
    let sources = read(data).with_context(|| data.display().to_string())?;
    let beside = data.parent().unwrap_or(Path::new(""));
    let (mut train, mut held_out, mut summary) = (Vec::new(), Vec::new(), Vec::new());
    let mut skipped = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let place = match is_url(&source.data) {
            true => source.data.clone(),
            false => beside.join(&source.data),
        };
        let cache = cache.join(format!("source-{number}"));
        std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let examples = open(&place, &cache).with_context(|| data.display().to_string())?;
        train.push(examples.train);
        held_out.extend(examples.held_out);
        summary.push(format!("{}: {}", source.data.display(), examples.summary));
        skipped.extend(examples.skipped);
    }
    let meaning = M::meaning(&train[0]);
    if train.iter().any(|dataset| M::meaning(dataset) != meaning) {
        bail!(
            "{}: the sources' inputs mean different things; give data.tokenizer the folder of one tokenizer for all",
            data.display()
        );
    }
    let weights: Option<Vec<f64>> = sources.iter().map(|source| source.weight).collect();
    let train = match weights {
        Some(weights) => Mixed::weighted(train.into_iter().zip(weights).collect()),
        None => Mixed::whole(train),
    };
    let train = train.with_context(|| data.display().to_string())?;
    let held_out = match held_out.is_empty() {
        true => None,
        false => Some(Mixed::whole(held_out)?),
    };
    Ok(Examples { train, held_out, summary: summary.join("; "), skipped })
}

fn read(path: &Path) -> Result<Vec<Source>> {
    let text = std::fs::read_to_string(path)?;
    let table: Table = text.parse().map_err(|e| anyhow!(toml_error(&text, &e)))?;
    let Sources { source } =
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

fn is_url(place: &Path) -> bool {
    place.to_string_lossy().contains("://")
}
