//! Lengths of recordings, read from headers and cached from one start to the next.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use data2vec_core::io::file::write_file;
use data2vec_core::random::hash;
use data2vec_core::{Error, Result};

use super::store::{Stamp, Store};

/// First line of an index file; names the format version.
const HEADER: &str = "data2vec speech index 1";

/// Returns the length of each of `files` in samples at 16 kHz, or why it cannot be read.
///
/// `cache` is the directory of the index; with it, unchanged files are not opened again.
///
/// # Errors
/// Returns [`Error::Io`] if the index cannot be written.
pub(crate) fn durations(
    store: &Store,
    files: &[PathBuf],
    cache: Option<&Path>,
) -> Result<Vec<std::result::Result<u64, String>>> {
    let index = cache.map(|directory| directory.join(index_name(store.root())));
    let known = index.as_deref().map(read).unwrap_or_default();

    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some((at, file)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            files.get(at).map(|file| (at, file))
        } {
            let stamp = store.stamp(at, file);
            let cached = known.get(file).filter(|&&(old_stamp, _)| Some(old_stamp) == stamp);
            let samples = match cached {
                Some(&(_, samples)) => Ok(samples),
                None => store.samples(at, file).map_err(|error| reason(&error)),
            };
            found.push((at, stamp, samples));
        }
        found
    };
    // More threads than cores: opening files is mostly waiting.
    let threads = 4 * std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(files.len() / 16 + 1);
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for worker in workers {
            all.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    });
    all.sort_by_key(|&(at, ..)| at);

    if let Some(index) = &index {
        let mut text = format!("{HEADER}\n");
        let mut changed = known.len() != files.len();
        for (at, stamp, samples) in &all {
            let (file, Some((size, modified)), Ok(samples)) = (&files[*at], stamp, samples) else {
                continue;
            };
            changed |= known.get(file) != Some(&((*size, *modified), *samples));
            // Paths that the line format cannot hold are probed again next time.
            if let Some(file) = file.to_str().filter(|file| !file.contains(['\t', '\n', '\r'])) {
                text.push_str(&format!("{file}\t{size}\t{modified}\t{samples}\n"));
            }
        }
        if changed {
            write(index, &text)?;
        }
    }
    Ok(all.into_iter().map(|(_, _, samples)| samples).collect())
}

/// Formats an error without its path, which the caller prints.
fn reason(error: &Error) -> String {
    match error {
        Error::File { reason, .. } => reason.clone(),
        Error::Io { source, .. } => source.to_string(),
        error => error.to_string(),
    }
}

fn index_name(root: &Path) -> String {
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    format!("speech-index-{:016x}.tsv", hash(root.as_os_str().as_encoded_bytes()))
}

/// Reads an index; a missing or invalid one is empty and will be rebuilt.
fn read(index: &Path) -> HashMap<PathBuf, (Stamp, u64)> {
    let text = fs::read_to_string(index).unwrap_or_default();
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return HashMap::new();
    }
    let entry = |line: &str| {
        let mut fields = line.split('\t');
        let file = PathBuf::from(fields.next()?);
        let stamp = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let samples = fields.next()?.parse().ok()?;
        fields.next().is_none().then_some((file, (stamp, samples)))
    };
    lines.filter_map(entry).collect()
}

/// Writes an index atomically, so that several processes may do so at the same time.
fn write(index: &Path, text: &str) -> Result<()> {
    let directory = index.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(directory).map_err(|source| Error::io(directory, source))?;
    write_file(index, text)
}
