//! Models on Hugging Face's hub, by name: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what
//! they mean to Hugging Face's own programs, and the cache is the same.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use data2vec_core::convert::{INDEX, WEIGHTS, parts};
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

const CONFIG: &str = "config.json";
/// What goes with them.
const BESIDE: [&str; 6] = [
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
];

/// Whether `name` is OWNER/MODEL.
pub fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    name.split_once('/').is_some_and(|(owner, model)| part(owner) && part(model))
}

/// The folder of the model `name`, whose files are fetched unless the cache has them.
pub fn fetch(name: &str, revision: &str) -> Result<PathBuf> {
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
    let config = match is_offline() {
        true => cached(name, repo)?,
        false => download(name, repo)?,
    };
    let folder = config.parent().context("a file without a folder")?;
    Ok(folder.to_owned())
}

/// Files that lead to the tensors, the first of which that is there is taken.
fn weights() -> impl Iterator<Item = String> {
    let whole = WEIGHTS.iter().map(|&name| name.to_owned());
    whole.chain(WEIGHTS.iter().map(|name| format!("{name}{INDEX}")))
}

fn is_offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

fn cached(name: &str, repo: Repo) -> Result<PathBuf> {
    let cache = Cache::from_env();
    let place = cache.path().display().to_string();
    let repo = cache.repo(repo);
    match (repo.get(CONFIG), weights().find_map(|file| repo.get(&file))) {
        (Some(config), Some(_)) => Ok(config),
        _ => bail!("{name}: is not in the cache, {place}; unset HF_HUB_OFFLINE to fetch it"),
    }
}

fn download(name: &str, repo: Repo) -> Result<PathBuf> {
    let failed = || {
        format!(
            "{name}: cannot be fetched from the hub; HF_HUB_OFFLINE=1 takes it from the cache alone"
        )
    };
    let api = ApiBuilder::from_env().with_progress(true).build().with_context(failed)?.repo(repo);
    let info = api.info().with_context(failed)?;
    let has = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);
    let Some(weights) = weights().find(|file| has(file)) else {
        bail!("{name}: has neither {} on the hub", WEIGHTS.join(" nor "));
    };
    for file in BESIDE.into_iter().filter(|file| has(file)) {
        api.get(file).with_context(failed)?;
    }
    let weights = api.get(&weights).with_context(failed)?;
    if weights.extension().is_some_and(|kind| kind == "json") {
        for part in parts(&weights)? {
            api.get(&part).with_context(failed)?;
        }
    }
    api.get(CONFIG).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_are_not_paths() {
        assert!(is_name("facebook/data2vec-audio-base-960h"));
        for path in ["model.pt", "/tmp/x", "../x", "a/b/c", "a/", "./x", "a b/c"] {
            assert!(!is_name(path), "{path}");
        }
    }
}
