//! Recipes as TOML tables: reading, overriding keys, comparing, and clear error messages.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use data2vec_core::io::toml::toml_error;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Keys that may change on resume: they do not affect the weights.
const RESUMABLE: [&str; 11] = [
    "model.activation_checkpointing",
    "train.eval_batches",
    "train.eval_every",
    "train.log_every",
    "train.save_every",
    "train.keep",
    "train.keep_every",
    "train.workers",
    "train.max_bad_examples",
    "train.on_failure",
    "train.shard_optimizer",
];

/// Reads a recipe file, and applies `steps` and `KEY=VALUE` overrides.
///
/// # Errors
/// If the file is unreadable or no TOML, or an override is invalid.
pub fn read(path: &Path, steps: Option<u64>, overrides: &[String]) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            anyhow!("{}: there is no such recipe{}", path.display(), similar(path))
        }
        _ => anyhow!(e).context(path.display().to_string()),
    })?;
    let mut table: Table = text
        .parse()
        .map_err(|e: toml::de::Error| anyhow!("{}, {}", path.display(), toml_error(&text, &e)))?;
    for text in overrides {
        set(&mut table, text).with_context(|| format!("--set {text}"))?;
    }
    if let Some(steps) = steps {
        set(&mut table, &format!("train.steps={steps}"))?;
    }
    Ok(table)
}

/// Returns a hint at the recipe with the most similar name, beside `path` or in `recipes`.
fn similar(path: &Path) -> String {
    let dirs = [path.parent().unwrap_or(Path::new("")), Path::new("recipes")];
    let files = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let is_recipe = |path: &PathBuf| path.extension().is_some_and(|end| end == "toml");
    let files: Vec<PathBuf> = files.map(|entry| entry.path()).filter(is_recipe).collect();
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let stems: Vec<String> = files.iter().map(|file| stem(file)).collect();
    let near = nearest(&stem(path), stems.iter().map(String::as_str));
    let near = near.and_then(|near| files.iter().find(|file| stem(file) == near));
    near.map_or_else(String::new, |near| format!("; did you mean {}?", near.display()))
}

/// Converts a recipe's table to its type and checks it; `path` is for error messages.
///
/// # Errors
/// If a key is unknown, missing or invalid.
pub fn parse<R: DeserializeOwned>(
    path: &Path,
    table: Table,
    validate: impl FnOnce(&R) -> Result<()>,
) -> Result<R> {
    let text = toml::to_string(&table).unwrap_or_default();
    let recipe: R = Value::Table(table).try_into().map_err(|e: toml::de::Error| {
        let key = key_of_error::<R>(&text).map_or_else(String::new, |key| format!(" for `{key}`"));
        anyhow!("{}: {}{key}", path.display(), explain(&e.to_string()))
    })?;
    validate(&recipe).with_context(|| path.display().to_string())?;
    Ok(recipe)
}

/// Returns the key whose value has the wrong type, if the parser says where.
fn key_of_error<R: DeserializeOwned>(text: &str) -> Option<&str> {
    let error = toml::from_str::<R>(text).err()?;
    if !error.message().starts_with("invalid type") {
        return None;
    }
    let line = text.get(..error.span()?.start)?.matches('\n').count();
    Some(text.lines().nth(line)?.split_once('=')?.0.trim())
}

/// Sets a key of a recipe, `SECTION.KEY=VALUE`.
///
/// # Errors
/// If `text` has another form, or the section does not exist.
pub fn set(table: &mut Table, text: &str) -> Result<()> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("is not KEY=VALUE");
    };
    // A bare word is a string, which saves quotes in a shell.
    let value = match format!("v = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("v").context("is not KEY=VALUE")?,
        Err(_) => Value::String(value.to_owned()),
    };
    let mut at = table;
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().filter(|last| !last.is_empty()).context("has no key")?;
    for part in parts {
        let hint = match nearest(part, at.keys().map(String::as_str)) {
            Some(near) if near != part => format!("; did you mean `{near}`?"),
            _ => String::new(),
        };
        let Some(Value::Table(inner)) = at.get_mut(part) else {
            bail!("there is no section `{part}` in the recipe{hint}");
        };
        at = inner;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// Rewrites a message of the TOML parser in one line. Suggests the nearest key for an unknown one.
pub fn explain(message: &str) -> String {
    let (what, section) = match message.trim().split_once("\nin ") {
        Some((what, section)) => (what, format!(" in {}", section.trim().replace('`', ""))),
        None => (message.trim(), String::new()),
    };
    let quoted: Vec<&str> = what.split('`').skip(1).step_by(2).collect();
    if what.starts_with("unknown field") {
        let (wrong, known) = (quoted[0], &quoted[1..]);
        let hint = match nearest(wrong, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known keys: {}", known.join(", ")),
        };
        return format!("unknown key `{wrong}`{section}; {hint}");
    }
    if let Some(key) = what.strip_prefix("missing field ") {
        return format!("the key {key} is missing{section}");
    }
    format!("{what}{section}")
}

/// Returns the most similar of `known`, if any is similar enough.
pub fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|k| (strsim::jaro_winkler(wrong, k), k));
    let best = near.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then_some(best.1)
}

/// Reads the recipe of the run in `dir`.
///
/// # Errors
/// If `dir` has no recipe, or it is damaged.
pub fn read_run(dir: &Path) -> Result<Table> {
    let path = dir.join("recipe.toml");
    ensure!(path.is_file(), "{}: not a run directory: recipe.toml is missing", dir.display());
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.parse().map_err(|e| anyhow!("{}, {}", path.display(), toml_error(&text, &e)))
}

/// Returns `train.steps`; 0 if it is missing.
pub fn steps(recipe: &Table) -> u64 {
    let steps = recipe.get("train").and_then(|train| train.get("steps"));
    steps.and_then(Value::as_integer).map_or(0, |steps| steps.max(0) as u64)
}

/// Returns the keys of a recipe, with their sections, and their values.
pub fn keys(recipe: &Table) -> Vec<(String, String)> {
    fn walk(prefix: &str, table: &Table, keys: &mut Vec<(String, String)>) {
        for (key, value) in table {
            match value {
                Value::Table(inner) => walk(&format!("{prefix}{key}."), inner, keys),
                value => keys.push((format!("{prefix}{key}"), value.to_string())),
            }
        }
    }
    let mut keys = Vec::new();
    walk("", recipe, &mut keys);
    keys
}

/// Returns `KEY: OLD → NEW` for every changed key that must not change on resume.
pub fn changes(old: &Table, new: &Table) -> Vec<String> {
    let mut changes = Vec::new();
    compare(&mut changes, String::new(), old, new);
    changes
}

fn compare(changes: &mut Vec<String>, prefix: String, old: &Table, new: &Table) {
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let path = format!("{prefix}{key}");
        match (old.get(key), new.get(key)) {
            (Some(Value::Table(a)), Some(Value::Table(b))) => {
                compare(changes, format!("{path}."), a, b);
            }
            (a, b) if a == b || RESUMABLE.contains(&path.as_str()) => {}
            (a, b) => {
                let show = |v: Option<&Value>| v.map_or("absent".into(), Value::to_string);
                changes.push(format!("{path}: {} → {}", show(a), show(b)));
            }
        }
    }
}
