//! From what a user names to a list of shards: folders, files, braces, stars, lists.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::braces::{expand, matches};
use crate::remote::Stores;
use crate::{Error, Result};

/// How a shard holds examples, told by its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    Tar,
    JsonLines,
    Parquet,
}

impl Format {
    pub const KNOWN: &str = ".tar, .tar.gz, .tgz, .jsonl, .ndjson, .jsonl.gz, .ndjson.gz, .parquet";

    /// The format of a file of that name, and whether all of it is compressed.
    pub fn of(name: &str) -> Option<(Self, bool)> {
        let name = name.to_ascii_lowercase();
        let (name, gzip) = match name.strip_suffix(".gz") {
            Some(name) => (name, true),
            None => (&name[..], false),
        };
        Some(match name.rsplit_once('.')?.1 {
            "tar" => (Self::Tar, gzip),
            "tgz" if !gzip => (Self::Tar, true),
            "jsonl" | "ndjson" => (Self::JsonLines, gzip),
            "parquet" if !gzip => (Self::Parquet, false),
            _ => return None,
        })
    }
}

/// A file with examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shard {
    /// For messages, and for what must not change when all shards move: the path below the folder
    /// that was named, or the file's name.
    pub name: String,
    /// Path or URL.
    pub place: String,
    pub format: Format,
    /// Compressed as a whole.
    pub gzip: bool,
    pub bytes: u64,
    /// When this and the rest are the same, so is the content: the time of the last change.
    pub stamp: String,
    /// What a store calls this content.
    pub tag: Option<String>,
}

/// Whether `place` cannot be but shards: an address, a pattern, or a file with the name of a shard or a list
/// of them.
pub fn is_of_shards(place: &Path) -> bool {
    let name = place.to_string_lossy();
    if name.contains("://") || (name.contains(['{', '*', '?']) && !place.exists()) {
        return true;
    }
    !place.is_dir() && (Format::of(&name).is_some() || name.ends_with(".list"))
}

/// Whether there are shards anywhere below a folder.
pub fn has_shards(folder: &Path) -> bool {
    let mut found = Vec::new();
    walk(folder, folder, &mut found).is_ok() && !found.is_empty()
}

/// Where what is remembered of shards is kept if nobody names a folder.
pub(crate) fn user_cache() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let folder = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")));
    folder.unwrap_or_else(std::env::temp_dir).join("data2vec")
}

/// All shards at `places`, in the order of the places, each place's sorted by name.
pub(crate) fn shards(places: &[String], stores: &Stores) -> Result<Vec<Shard>> {
    let mut found = Vec::new();
    for place in places {
        for place in expand(place)? {
            match is_list(&place) {
                true => add_list(&place, stores, &mut found)?,
                false => add(&place, stores, &mut found)?,
            }
        }
    }
    let mut seen = HashSet::new();
    if let Some(twice) = found.iter().find(|shard| !seen.insert(&shard.place)) {
        return Err(Error::config("shards", format!("{} is named twice", twice.place)));
    }
    Ok(found)
}

/// Adds the shards at a place that is no list, of which there has to be one.
fn add(place: &str, stores: &Stores, found: &mut Vec<Shard>) -> Result<()> {
    let before = found.len();
    match is_remote(place) {
        true => stores.list(place, found)?,
        false => add_here(place, found)?,
    }
    if found.len() == before {
        let reason = format!("no shards here (their names end in {})", Format::KNOWN);
        return Err(Error::shard(place, reason));
    }
    Ok(())
}

fn add_here(place: &str, found: &mut Vec<Shard>) -> Result<()> {
    let path = Path::new(place);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.contains(['*', '?']) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let fits = |path: &PathBuf| {
            matches(&name, &path.file_name().unwrap_or_default().to_string_lossy())
        };
        let mut paths: Vec<PathBuf> = list(folder)?.into_iter().filter(fits).collect();
        paths.retain(|path| path.is_file());
        return paths.iter().try_for_each(|path| file(path, folder, found));
    }
    match fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir() {
        true => walk(path, path, found),
        false => file(path, path.parent().unwrap_or(Path::new("")), found),
    }
}

/// Whether a place is a URL.
pub(crate) fn is_remote(place: &str) -> bool {
    place.contains("://")
}

fn is_list(place: &str) -> bool {
    [".txt", ".list"].iter().any(|end| place.ends_with(end))
}

/// Adds what a list names; paths in it are relative to it.
fn add_list(list: &str, stores: &Stores, found: &mut Vec<Shard>) -> Result<()> {
    let text = match is_remote(list) {
        true => stores.text(list)?,
        false => fs::read_to_string(list).map_err(|e| Error::io(list, e))?,
    };
    let folder = list.rfind('/').map_or("", |slash| &list[..=slash]);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    for line in lines.filter(|line| !line.starts_with('#')) {
        let whole = is_remote(line) || (line.starts_with('/') && !is_remote(list));
        let line = if whole { line.to_owned() } else { format!("{folder}{line}") };
        for place in expand(&line)? {
            if is_list(&place) {
                return Err(Error::shard(place, "a list in a list: name its shards instead"));
            }
            add(&place, stores, found)?;
        }
    }
    Ok(())
}

/// Shards anywhere below `folder`; other files are nobody's business here.
fn walk(folder: &Path, root: &Path, found: &mut Vec<Shard>) -> Result<()> {
    for path in list(folder)? {
        if path.is_dir() {
            // A link may lead back up.
            if !path.is_symlink() {
                walk(&path, root, found)?;
            }
        } else if Format::of(&path.to_string_lossy()).is_some() {
            file(&path, root, found)?;
        }
    }
    Ok(())
}

/// What is in a folder and not hidden, sorted.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> =
        paths.collect::<std::io::Result<_>>().map_err(|e| Error::io(folder, e))?;
    paths.retain(|path| !path.file_name().unwrap_or_default().as_encoded_bytes().starts_with(b"."));
    paths.sort();
    Ok(paths)
}

fn file(path: &Path, root: &Path, found: &mut Vec<Shard>) -> Result<()> {
    let below = path.strip_prefix(root).unwrap_or(path);
    // The same name on every system.
    let name = below.to_string_lossy().replace('\\', "/");
    let Some((format, gzip)) = Format::of(&name) else {
        let reason = format!("is no shard: their names end in {}", Format::KNOWN);
        return Err(Error::shard(path.display().to_string(), reason));
    };
    let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let stamp = changed.unwrap_or_default().as_nanos().to_string();
    let place = path.to_str().ok_or_else(|| {
        Error::shard(path.display().to_string(), "the path is no UTF-8: rename it")
    })?;
    let (place, bytes) = (place.to_owned(), meta.len());
    found.push(Shard { name, place, format, gzip, bytes, stamp, tag: None });
    Ok(())
}
