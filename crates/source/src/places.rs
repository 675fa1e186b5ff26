//! From what a user names to a list of shards: folders, files, braces, stars, lists.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::braces::{expand, matches};
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
    pub path: PathBuf,
    pub format: Format,
    /// Compressed as a whole.
    pub gzip: bool,
    pub bytes: u64,
    /// When this is the same and the size too, so is the content: the time of the last change.
    pub stamp: String,
}

/// All shards at `places`, in the order of the places, each place's sorted by name.
pub(crate) fn shards(places: &[String]) -> Result<Vec<Shard>> {
    let mut found = Vec::new();
    for place in places {
        let before = found.len();
        for place in expand(place)? {
            add(&place, &mut found)?;
        }
        if found.len() == before {
            return Err(Error::shard(
                place,
                format!("no shards here (their names end in {})", Format::KNOWN),
            ));
        }
    }
    let mut seen = HashSet::new();
    if let Some(twice) = found.iter().find(|shard| !seen.insert(&shard.path)) {
        return Err(Error::config("shards", format!("{} is named twice", twice.path.display())));
    }
    Ok(found)
}

fn add(place: &str, found: &mut Vec<Shard>) -> Result<()> {
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
    let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.is_dir() {
        return walk(path, path, found);
    }
    if [".txt", ".list"].iter().any(|end| name.ends_with(end)) {
        let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        for line in lines.filter(|line| !line.starts_with('#')) {
            // Paths in a list are relative to it.
            let at = path.parent().unwrap_or(Path::new("")).join(line);
            for place in expand(&at.to_string_lossy())? {
                if place.ends_with(".txt") || place.ends_with(".list") {
                    return Err(Error::shard(place, "a list in a list: name its shards instead"));
                }
                add(&place, found)?;
            }
        }
        return Ok(());
    }
    file(path, path.parent().unwrap_or(Path::new("")), found)
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
    found.push(Shard { name, path: path.to_owned(), format, gzip, bytes: meta.len(), stamp });
    Ok(())
}
