//! `cargo xtask data`: fetches data sets of the catalog into `data/sets/NAME`.

pub mod catalog;
mod fetch;
mod transcripts;

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::MultiGzDecoder;

use self::catalog::{Archive, Catalog, DataSet, Source, Take};
use crate::archive::{self, Limits};
use crate::http::Client;
use crate::progress::format_bytes;
use crate::{disk, hash, lock};

/// Marks a complete data set. Contains its digest, the number of files and bytes, and the source.
const MARKER: &str = ".complete";

/// Returns the directory of a fetched data set.
pub fn dir(root: &Path, name: &str) -> PathBuf {
    root.join("data/sets").join(name)
}

/// Returns the directory of a data set; fetches the data set first unless it is complete.
pub fn ensure(root: &Path, catalog: &Catalog, name: &str) -> Result<PathBuf> {
    let set = catalog.find(name)?;
    let dir = dir(root, name);
    if is_complete(&dir, set) {
        return Ok(dir);
    }
    fetch_into(&dir, set, &|source, parts| download_archives(source, parts))
        .with_context(|| format!("cannot fetch data set {name}"))?;
    Ok(dir)
}

/// Returns whether a data set was fetched and matches the current catalog. A data set that an older
/// version fetched without its table of transcripts does not.
pub fn is_complete(dir: &Path, set: &DataSet) -> bool {
    let Ok(marker) = fs::read_to_string(dir.join(MARKER)) else { return false };
    if set.transcripts.is_some() && !dir.join(transcripts::TABLE).exists() {
        return false;
    }
    let digest = marker.split_whitespace().next();
    digest.is_some() && set.digest.as_deref().is_none_or(|wanted| digest == Some(wanted))
}

/// Compares every file of a fetched data set with its digest.
///
/// # Errors
/// If the data set was not fetched, was fetched by an older version, or was changed.
pub fn verify(root: &Path, set: &DataSet) -> Result<()> {
    let dir = dir(root, &set.name);
    let marker = fs::read_to_string(dir.join(MARKER));
    let fetch = format!("run `cargo xtask data {}`", set.name);
    let marker = marker.with_context(|| format!("{} is not fetched; {fetch}", set.name))?;
    ensure!(is_complete(&dir, set), "{}: fetched by an older version; {fetch}", dir.display());
    let expected = marker.split_whitespace().next();
    let found = hash::tree(&dir, &[MARKER])?;
    ensure!(
        Some(found.sha256.as_str()) == expected,
        "{}: files changed since they were fetched; remove it and {fetch}",
        dir.display()
    );
    out!("{}: ok, {} files, {}", set.name, found.files, format_bytes(found.bytes));
    Ok(())
}

/// Downloads the archives of a source into a directory; returns their paths in the same order.
type Downloader<'a> = &'a dyn Fn(&Source, &Path) -> Result<Vec<PathBuf>>;

fn download_archives(source: &Source, parts: &Path) -> Result<Vec<PathBuf>> {
    let client = Client::new(&[]);
    source.archive.iter().map(|archive| fetch::fetch_archive(archive, parts, &client)).collect()
}

/// Fetches a data set into `dir` atomically: prepares it in a sibling directory, then renames that.
fn fetch_into(dir: &Path, set: &DataSet, download: Downloader<'_>) -> Result<()> {
    let partial = dir.with_file_name(format!(".{}.partial", set.name));
    let lock = lock::exclusive(&partial.join("lock"), &set.name)?;
    // Another command may have fetched the data set while this one waited for the lock.
    if is_complete(dir, set) {
        return Ok(());
    }
    if dir.exists() && !dir.join(MARKER).exists() {
        return adopt(dir, set, &partial);
    }
    // Archives and extracted files exist at the same time.
    disk::ensure_free(&partial, set.bytes * 2)?;
    status!("fetching {} ({}, licence {})", set.name, format_bytes(set.bytes), set.licence);
    let mut failures = Vec::new();
    for source in &set.source {
        match fetch_source(set, source, &partial, download) {
            Ok(tree) => {
                replace_dir(&tree, dir, &partial)?;
                fs::remove_dir_all(&partial)
                    .with_context(|| format!("cannot remove {}", partial.display()))?;
                drop(lock);
                status!("fetched {} into {}", set.name, dir.display());
                return Ok(());
            }
            Err(error) => failures.push(format!("{}: {error:#}", source.name)),
        }
        if failures.len() < set.source.len() {
            status!("{}; trying the next source", failures.last().map_or("", String::as_str));
        }
    }
    Err(anyhow!("all sources failed: {}", failures.join("; ")))
}

/// Accepts a directory that the user filled if its files match the catalog's digest.
fn adopt(dir: &Path, set: &DataSet, partial: &Path) -> Result<()> {
    let found = hash::tree(dir, &[])?;
    if set.digest.as_ref() != Some(&found.sha256) {
        bail!(
            "{} holds other files, which this command did not put there; move it away",
            dir.display()
        );
    }
    write_marker(dir, &found, "provided by the user")?;
    fs::remove_dir_all(partial)?;
    Ok(())
}

/// Downloads and extracts a data set from one source, below `partial`; returns the directory.
fn fetch_source(
    set: &DataSet,
    source: &Source,
    partial: &Path,
    download: Downloader<'_>,
) -> Result<PathBuf> {
    let tree = partial.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fs::create_dir_all(&tree)?;
    let paths = download(source, &partial.join("archives"))?;
    for (archive, path) in source.archive.iter().zip(&paths) {
        unpack(archive, path, &tree)?;
    }
    if let Some(layout) = set.transcripts {
        transcripts::write_table(layout, &tree)?;
    }
    let found = hash::tree(&tree, &[])?;
    ensure!(found.files > 0, "the archives contain no file of the data set");
    if let Some(expected) = &set.digest {
        ensure!(
            found.sha256 == *expected,
            "its files do not match the catalog: digest {}, expected {expected}",
            found.sha256
        );
    }
    write_marker(&tree, &found, &source.name)?;
    Ok(tree)
}

fn write_marker(dir: &Path, found: &hash::TreeDigest, source: &str) -> Result<()> {
    let text = format!("{} {} files, {} bytes, {source}\n", found.sha256, found.files, found.bytes);
    fs::write(dir.join(MARKER), text).with_context(|| format!("cannot write to {}", dir.display()))
}

/// Extracts the selected files of a downloaded archive into `tree`.
fn unpack(archive: &Archive, path: &Path, tree: &Path) -> Result<()> {
    if let Some(name) = &archive.inside {
        let dir = path.with_extension("inside");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        let inner = Take { from: name.clone(), to: "archive".into(), ..Take::default() };
        extract(&[inner], path, &dir)?;
        return extract(&archive.take, &dir.join("archive"), tree);
    }
    if let [take] = archive.take.as_slice()
        && take.from == "."
    {
        return write_file(&mut File::open(path)?, take.gunzip, tree, &take.to, u64::MAX);
    }
    extract(&archive.take, path, tree)
}

fn extract(takes: &[Take], path: &Path, tree: &Path) -> Result<()> {
    let limits = Limits::for_archive(fs::metadata(path)?.len());
    let mut counts = vec![0_u64; takes.len()];
    archive::walk(path, limits, &mut |entry| {
        // Checked for every entry: an archive with an unsafe path is malicious as a whole.
        archive::safe_path(tree, entry.path)?;
        for (take, count) in takes.iter().zip(&mut counts) {
            if let Some(to) = take.destination(entry.path) {
                ensure!(entry.is_file, "{} is a link or device, not a regular file", entry.path);
                *count += 1;
                return write_file(entry.content, take.gunzip, tree, &to, limits.bytes);
            }
        }
        Ok(())
    })?;
    for (take, count) in takes.iter().zip(counts) {
        ensure!(count > 0, "the archive contains no {}*{}", take.from, take.suffix);
    }
    Ok(())
}

fn write_file(
    content: &mut dyn io::Read,
    gunzip: bool,
    tree: &Path,
    to: &str,
    limit: u64,
) -> Result<()> {
    let path = archive::safe_path(tree, to)?;
    let cannot_write = || format!("cannot write {}", path.display());
    fs::create_dir_all(path.parent().context("path without a parent")?)
        .with_context(cannot_write)?;
    // Never overwrites: two entries of the same name are an attack or a mistake.
    let mut file = BufWriter::new(File::create_new(&path).with_context(cannot_write)?);
    let mut content: Box<dyn io::Read> =
        if gunzip { Box::new(MultiGzDecoder::new(content)) } else { Box::new(content) };
    let written =
        io::copy(&mut io::Read::take(&mut content, limit), &mut file).with_context(cannot_write)?;
    ensure!(written < limit, "{to} decompresses to far more than its size suggests");
    io::Write::flush(&mut file).with_context(cannot_write)
}

/// Replaces `dir` by `tree`; moves the old `dir` into `partial`.
fn replace_dir(tree: &Path, dir: &Path, partial: &Path) -> Result<()> {
    let old = partial.join("old");
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    if dir.exists() {
        fs::rename(dir, &old).with_context(|| format!("cannot move {} away", dir.display()))?;
    }
    fs::rename(tree, dir).with_context(|| format!("cannot create {}", dir.display()))
}

/// Prints the catalog: `cargo xtask data --list`.
pub fn list(root: &Path, catalog: &Catalog) {
    for set in &catalog.set {
        let state = if is_complete(&dir(root, &set.name), set) { "fetched" } else { "" };
        let default = match (&set.default_for, &set.default_for_finetune) {
            (Some(modality), Some(_)) => format!(" (default for {modality}: train, finetune)"),
            (Some(modality), None) => format!(" (default for {modality}: train)"),
            (None, Some(modality)) => format!(" (default for {modality}: finetune)"),
            (None, None) => String::new(),
        };
        out!(
            "{:<28} {:<7} {:>8}  {:<8} {}",
            set.name,
            set.modality,
            format_bytes(set.bytes),
            state,
            set.licence
        );
        out!("    {}{default}", set.description);
    }
    out!("\nRun `cargo xtask data NAME` to fetch one into data/sets/NAME.");
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
