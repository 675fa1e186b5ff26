//! Resolves locations to shards: directories, files, brace patterns, globs, list files, URLs.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::braces::{expand, matches};
use crate::remote::Stores;
use crate::shard::{Format, Shard, is_remote};
use crate::{Error, Result};

/// Returns true if `path` can only name shards: a URL, a pattern, a file with a shard's suffix or a
/// `.list` file.
pub fn is_shard_path(path: &Path) -> bool {
    let name = path.to_string_lossy();
    if name.contains("://") || (name.contains(['{', '*', '?']) && !path.exists()) {
        return true;
    }
    !path.is_dir() && (Format::of(&name).is_some() || name.ends_with(".list"))
}

/// Returns true if there are shards anywhere below a directory.
pub fn has_shards(folder: &Path) -> bool {
    let mut found = Vec::new();
    walk(folder, folder, &mut found).is_ok() && !found.is_empty()
}

/// Returns the default cache directory: `data2vec` in the user's cache directory.
pub(crate) fn user_cache() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let folder = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    folder.unwrap_or_else(std::env::temp_dir).join("data2vec")
}

/// Lists the shards at `locations`, in order; those of one location are sorted by name.
pub(crate) fn list_shards(locations: &[String], stores: &Stores) -> Result<Vec<Shard>> {
    let mut found = Vec::new();
    for location in locations {
        for location in expand(location)? {
            match is_list(&location) {
                true => add_list(&location, stores, &mut found)?,
                false => add(&location, stores, &mut found)?,
            }
        }
    }
    let mut seen = HashSet::new();
    if let Some(shard) = found.iter().find(|shard| !seen.insert(&shard.location)) {
        return Err(Error::config("shards", format!("{} is listed twice", shard.location)));
    }
    Ok(found)
}

/// Adds the shards at a location that is not a list file; an error if there are none.
fn add(location: &str, stores: &Stores, found: &mut Vec<Shard>) -> Result<()> {
    let before = found.len();
    match is_remote(location) {
        true => stores.list(location, found)?,
        false => add_local(location, found)?,
    }
    if found.len() == before {
        let reason = format!("no shards found; their names end in {}", Format::SUFFIXES);
        return Err(Error::shard(location, reason));
    }
    Ok(())
}

fn add_local(location: &str, found: &mut Vec<Shard>) -> Result<()> {
    let path = Path::new(location);
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

fn is_list(location: &str) -> bool {
    [".txt", ".list"].iter().any(|suffix| location.ends_with(suffix))
}

/// Adds the shards named in a list file; its relative paths are resolved against its directory.
fn add_list(list: &str, stores: &Stores, found: &mut Vec<Shard>) -> Result<()> {
    let text = match is_remote(list) {
        true => stores.text(list)?,
        false => fs::read_to_string(list).map_err(|e| Error::io(list, e))?,
    };
    let folder = list.rfind('/').map_or("", |slash| &list[..=slash]);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    for line in lines.filter(|line| !line.starts_with('#')) {
        let is_absolute = is_remote(line) || (line.starts_with('/') && !is_remote(list));
        let line = if is_absolute { line.to_owned() } else { format!("{folder}{line}") };
        for location in expand(&line)? {
            if is_list(&location) {
                let reason = "list files cannot be nested; name its shards instead";
                return Err(Error::shard(location, reason));
            }
            add(&location, stores, found)?;
        }
    }
    Ok(())
}

/// Adds all shards below `folder`, recursively; other files are ignored.
fn walk(folder: &Path, root: &Path, found: &mut Vec<Shard>) -> Result<()> {
    for path in list(folder)? {
        if path.is_dir() {
            // A symlink may form a cycle.
            if !path.is_symlink() {
                walk(&path, root, found)?;
            }
        } else if Format::of(&path.to_string_lossy()).is_some() {
            file(&path, root, found)?;
        }
    }
    Ok(())
}

/// Returns the sorted, non-hidden entries of a directory.
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
    // The same name on every operating system.
    let name = below.to_string_lossy().replace('\\', "/");
    let Some((format, gzip)) = Format::of(&name) else {
        let reason = format!("not a shard; their names end in {}", Format::SUFFIXES);
        return Err(Error::shard(path.display().to_string(), reason));
    };
    let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let stamp = changed.unwrap_or_default().as_nanos().to_string();
    let location = path.to_str().ok_or_else(|| {
        Error::shard(path.display().to_string(), "the path is not valid UTF-8; rename it")
    })?;
    let (location, bytes) = (location.to_owned(), meta.len());
    found.push(Shard { name, location, format, gzip, bytes, stamp, tag: None });
    Ok(())
}
