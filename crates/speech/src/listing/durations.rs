//! How long each file of a corpus is, without decoding it, and remembered from one start to the next.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use data2vec_core::{Error, Result, random::hash};

use crate::store::{Stamp, Store};

/// First line of an index; another one means another format.
const HEADER: &str = "data2vec speech index 1";

/// Samples at 16 kHz of each of `files`, as they were listed, or why it has none to offer.
///
/// With a `folder`, what is found is kept there, and files that did not change since are not opened.
///
/// # Errors
/// [`Error::Io`] if the index cannot be written.
pub(crate) fn durations(
    store: &Store,
    files: &[PathBuf],
    folder: Option<&Path>,
) -> Result<Vec<std::result::Result<u64, String>>> {
    let index = folder.map(|folder| folder.join(name(store.root())));
    let known = index.as_deref().map(read).unwrap_or_default();

    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some((at, file)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            files.get(at).map(|file| (at, file))
        } {
            let stamp = store.stamp(at, file);
            let remembered = known.get(file).filter(|&&(then, _)| Some(then) == stamp);
            let samples = match remembered {
                Some(&(_, samples)) => Ok(samples),
                None => store.samples(at, file).map_err(|error| reason(&error)),
            };
            found.push((at, stamp, samples));
        }
        found
    };
    // Opening files waits more than it computes.
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
        let mut news = known.len() != files.len();
        for (at, stamp, samples) in &all {
            let (file, Some((size, changed)), Ok(samples)) = (&files[*at], stamp, samples) else {
                continue;
            };
            news |= known.get(file) != Some(&((*size, *changed), *samples));
            // A path that does not fit a line is probed again next time.
            if let Some(file) = file.to_str().filter(|file| !file.contains(['\t', '\n', '\r'])) {
                text.push_str(&format!("{file}\t{size}\t{changed}\t{samples}\n"));
            }
        }
        if news {
            write(index, &text)?;
        }
    }
    Ok(all.into_iter().map(|(_, _, samples)| samples).collect())
}

/// The error without the path, which stands beside it.
fn reason(error: &Error) -> String {
    match error {
        Error::File { reason, .. } => reason.clone(),
        Error::Io { source, .. } => source.to_string(),
        error => error.to_string(),
    }
}

fn name(root: &Path) -> String {
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    format!("speech-index-{:016x}.tsv", hash(root.as_os_str().as_encoded_bytes()))
}

/// What an earlier start found; an index that is missing or of no use is simply made again.
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

/// Whole or not at all, whoever else starts at the same time.
fn write(index: &Path, text: &str) -> Result<()> {
    let folder = index.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    let draft = index.with_extension(format!("{}.part", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, index)
    };
    write().map_err(|source| Error::io(index, source))
}
