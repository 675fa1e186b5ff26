//! Fetches the data sets of the catalog into `data/sets/NAME`.

pub mod catalog;
mod fetch;

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::MultiGzDecoder;

use self::catalog::{Archive, Catalog, DataSet, Source, Take};
use crate::archive::{self, Limits};
use crate::http::Client;
use crate::progress::human;
use crate::{disk, hash, lock};

/// Says that a set is whole: its digest, the number of its files and bytes, and where it came from.
const MARKER: &str = ".complete";

/// Where a set is once it is fetched.
pub fn dir(root: &Path, name: &str) -> PathBuf {
    root.join("data/sets").join(name)
}

/// The folder of a set, fetched if it is not there.
pub fn ensure(root: &Path, catalog: &Catalog, name: &str) -> Result<PathBuf> {
    let set = catalog.find(name)?;
    let dir = dir(root, name);
    if is_complete(&dir, set) {
        return Ok(dir);
    }
    fetch_into(&dir, set, &|source, parts| obtain(source, parts))
        .with_context(|| format!("no data set {name}"))?;
    Ok(dir)
}

/// Whether a set was fetched, and is what the catalog says today.
pub fn is_complete(dir: &Path, set: &DataSet) -> bool {
    let Ok(marker) = fs::read_to_string(dir.join(MARKER)) else { return false };
    let digest = marker.split_whitespace().next();
    digest.is_some() && set.digest.as_deref().is_none_or(|wanted| digest == Some(wanted))
}

/// Reads every file of a set again.
pub fn verify(root: &Path, set: &DataSet) -> Result<()> {
    let dir = dir(root, &set.name);
    let marker = fs::read_to_string(dir.join(MARKER));
    let marker = marker.with_context(|| {
        format!("{} was not fetched: `cargo xtask data {}`", set.name, set.name)
    })?;
    let wanted = set.digest.clone().or_else(|| marker.split_whitespace().next().map(String::from));
    let found = hash::tree(&dir, &[MARKER])?;
    ensure!(
        Some(&found.sha256) == wanted.as_ref(),
        "{} was changed: remove it and run `cargo xtask data {}`",
        dir.display(),
        set.name
    );
    out!("{}: {} files, {}, as they should be", set.name, found.files, human(found.bytes));
    Ok(())
}

/// Brings the archives of a source into a folder and returns their paths in the same order.
type Obtain<'a> = &'a dyn Fn(&Source, &Path) -> Result<Vec<PathBuf>>;

fn obtain(source: &Source, parts: &Path) -> Result<Vec<PathBuf>> {
    let client = Client::new(&[]);
    source.archive.iter().map(|archive| fetch::archive(archive, parts, &client)).collect()
}

/// Everything happens beside `dir`; one rename at the end puts the set there.
fn fetch_into(dir: &Path, set: &DataSet, obtain: Obtain<'_>) -> Result<()> {
    let partial = dir.with_file_name(format!(".{}.partial", set.name));
    let lock = lock::exclusive(&partial.join("lock"), &set.name)?;
    // Another command may have fetched it while this one waited for the lock.
    if is_complete(dir, set) {
        return Ok(());
    }
    if dir.exists() && !dir.join(MARKER).exists() {
        return adopt(dir, set, &partial);
    }
    // Archives and unpacked files are there together for a while.
    disk::ensure_free(&partial, set.bytes * 2)?;
    tell!("fetching {}, about {}, {}", set.name, human(set.bytes), set.licence);
    let mut failures = Vec::new();
    for source in &set.source {
        match from_source(set, source, &partial, obtain) {
            Ok(tree) => {
                put(&tree, dir, &partial)?;
                fs::remove_dir_all(&partial)
                    .with_context(|| format!("cannot remove {}", partial.display()))?;
                drop(lock);
                tell!("{} is ready in {}", set.name, dir.display());
                return Ok(());
            }
            Err(error) => failures.push(format!("{}: {error:#}", source.name)),
        }
        if failures.len() < set.source.len() {
            tell!("{}; trying the next source", failures.last().map_or("", String::as_str));
        }
    }
    Err(anyhow!("no source had it ({})", failures.join("; ")))
}

/// A folder that someone filled by hand is taken if its files are the right ones.
fn adopt(dir: &Path, set: &DataSet, partial: &Path) -> Result<()> {
    let found = hash::tree(dir, &[])?;
    if set.digest.as_ref() != Some(&found.sha256) {
        bail!(
            "{} was not put there by this command and holds other files: move it away first",
            dir.display()
        );
    }
    write_marker(dir, &found, "found there")?;
    fs::remove_dir_all(partial)?;
    Ok(())
}

fn from_source(
    set: &DataSet,
    source: &Source,
    partial: &Path,
    obtain: Obtain<'_>,
) -> Result<PathBuf> {
    let tree = partial.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fs::create_dir_all(&tree)?;
    let paths = obtain(source, &partial.join("archives"))?;
    for (archive, path) in source.archive.iter().zip(&paths) {
        unpack(archive, path, &tree)?;
    }
    let found = hash::tree(&tree, &[])?;
    ensure!(found.files > 0, "none of the files wanted is in it");
    if let Some(wanted) = &set.digest {
        ensure!(
            found.sha256 == *wanted,
            "its files are not those that the catalog pins (digest {})",
            found.sha256
        );
    }
    write_marker(&tree, &found, &source.name)?;
    Ok(tree)
}

fn write_marker(dir: &Path, found: &hash::TreeDigest, source: &str) -> Result<()> {
    let text = format!("{} {} files, {} bytes, {source}\n", found.sha256, found.files, found.bytes);
    fs::write(dir.join(MARKER), text)
        .with_context(|| format!("cannot write into {}", dir.display()))
}

/// Writes what is to be taken from an archive below `tree`.
fn unpack(archive: &Archive, path: &Path, tree: &Path) -> Result<()> {
    if let Some(name) = &archive.inside {
        let folder = path.with_extension("inside");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let inner = Take { from: name.clone(), to: "archive".into(), ..Take::default() };
        take_out(&[inner], path, &folder)?;
        return take_out(&archive.take, &folder.join("archive"), tree);
    }
    if let [take] = archive.take.as_slice()
        && take.from == "."
    {
        return write_file(&mut File::open(path)?, take.gunzip, tree, &take.to, u64::MAX);
    }
    take_out(&archive.take, path, tree)
}

fn take_out(takes: &[Take], path: &Path, tree: &Path) -> Result<()> {
    let limits = Limits::for_archive(fs::metadata(path)?.len());
    let mut taken = vec![0_u64; takes.len()];
    archive::walk(path, limits, &mut |entry| {
        // Such a path is no accident: nothing of such an archive is wanted.
        archive::safe_path(tree, entry.path)?;
        for (take, taken) in takes.iter().zip(&mut taken) {
            if let Some(to) = take.destination(entry.path) {
                ensure!(entry.is_file, "{} is a link or a device, not a file", entry.path);
                *taken += 1;
                return write_file(entry.content, take.gunzip, tree, &to, limits.bytes);
            }
        }
        Ok(())
    })?;
    for (take, taken) in takes.iter().zip(taken) {
        ensure!(taken > 0, "it has no {}*{}", take.from, take.suffix);
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
    let write = || format!("cannot write {}", path.display());
    fs::create_dir_all(path.parent().context("no folder")?).with_context(write)?;
    // Not over a file of the same archive: two entries of one name are a trick or a mistake.
    let mut file = BufWriter::new(File::create_new(&path).with_context(write)?);
    let mut content: Box<dyn io::Read> =
        if gunzip { Box::new(MultiGzDecoder::new(content)) } else { Box::new(content) };
    let written =
        io::copy(&mut io::Read::take(&mut content, limit), &mut file).with_context(write)?;
    ensure!(written < limit, "{to} unpacks to far more than its size promises");
    io::Write::flush(&mut file).with_context(write)
}

/// Replaces `dir` by `tree`.
fn put(tree: &Path, dir: &Path, partial: &Path) -> Result<()> {
    let old = partial.join("old");
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    if dir.exists() {
        fs::rename(dir, &old).with_context(|| format!("cannot move {} away", dir.display()))?;
    }
    fs::rename(tree, dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// `cargo xtask data --list`.
pub fn list(root: &Path, catalog: &Catalog) {
    for set in &catalog.set {
        let there = if is_complete(&dir(root, &set.name), set) { "fetched" } else { "" };
        let default = match (&set.default_for, &set.default_for_finetune) {
            (Some(modality), Some(_)) => format!(" (default for {modality}, also to fine-tune)"),
            (Some(modality), None) => format!(" (default for {modality})"),
            (None, Some(modality)) => format!(" (default to fine-tune {modality})"),
            (None, None) => String::new(),
        };
        out!(
            "{:<28} {:<7} {:>8}  {:<8} {}",
            set.name,
            set.modality,
            human(set.bytes),
            there,
            set.licence
        );
        out!("    {}{default}", set.description);
    }
    out!("\nFetch one with `cargo xtask data NAME`; it lands in data/sets/NAME.");
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
