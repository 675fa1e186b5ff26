//! Downloads models from the Hugging Face hub.
//!
//! Shares the cache of Hugging Face's own programs, and respects `HF_HOME`, `HF_ENDPOINT`,
//! `HF_TOKEN` and `HF_HUB_OFFLINE`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use data2vec_core::io::convert::{INDEX, WEIGHTS, shard_names};
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

/// The config of a model.
const CONFIG: &str = "config.json";

/// Optional files of a model.
const SIDECARS: [&str; 6] = [
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
];

/// Returns whether `name` has the form `OWNER/MODEL`.
pub fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    name.split_once('/').is_some_and(|(owner, model)| part(owner) && part(model))
}

/// Downloads the files of a model that the cache lacks. Returns the model's directory.
pub fn fetch(name: &str, revision: &str) -> Result<PathBuf> {
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
    let config = match is_offline() {
        true => cached(name, repo)?,
        false => download(name, repo)?,
    };
    let dir = config.parent().context("config.json has no parent directory")?;
    Ok(dir.to_owned())
}

/// Returns the names of weight files, preferred ones first: complete files, then indexes of shards.
fn weights() -> impl Iterator<Item = String> {
    let complete = WEIGHTS.iter().map(|&name| name.to_owned());
    complete.chain(WEIGHTS.iter().map(|name| format!("{name}{INDEX}")))
}

fn is_offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

fn cached(name: &str, repo: Repo) -> Result<PathBuf> {
    let cache = Cache::from_env();
    let dir = cache.path().display().to_string();
    let repo = cache.repo(repo);
    match (repo.get(CONFIG), weights().find_map(|file| repo.get(&file))) {
        (Some(config), Some(_)) => Ok(config),
        _ => bail!("{name}: not in the cache {dir}; unset HF_HUB_OFFLINE to download it"),
    }
}

fn download(name: &str, repo: Repo) -> Result<PathBuf> {
    let failed = || {
        format!(
            "{name}: no such file or directory here, and as a model of the Hugging Face hub it cannot be downloaded; check the name, or set HF_HUB_OFFLINE=1 to use the cache only"
        )
    };
    let api = ApiBuilder::from_env().with_progress(true).build().with_context(failed)?.repo(repo);
    let info = api.info().with_context(failed)?;
    let has = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);
    let Some(weights) = weights().find(|file| has(file)) else {
        bail!("{name}: no weights on the hub; a model needs {}", WEIGHTS.join(" or "));
    };
    for file in SIDECARS.into_iter().filter(|file| has(file)) {
        api.get(file).with_context(failed)?;
    }
    let weights = api.get(&weights).with_context(failed)?;
    if weights.extension().is_some_and(|kind| kind == "json") {
        for shard in shard_names(&weights)? {
            api.get(&shard).with_context(failed)?;
        }
    }
    api.get(CONFIG).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn distinguishes_names_from_paths() {
        assert!(is_name("facebook/data2vec-audio-base-960h"));
        for path in ["model.pt", "/tmp/x", "../x", "a/b/c", "a/", "./x", "a b/c"] {
            assert!(!is_name(path), "{path}");
        }
    }
}
