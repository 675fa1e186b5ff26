//! A disk cache of reproducible files, shared by processes.
//!
//! A file appears complete, by a rename. The least recently used files are evicted; processes that
//! have one open can still read it. Only files with this module's names are removed. The capacity
//! applies to all processes together: they share a total in a file that is also their lock.
//! Unfinished files are not counted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::single_flight::SingleFlight;
use crate::{Error, Result, temp};

/// Suffix of finished files.
const FILE_SUFFIX: &str = ".piece";
/// Suffix of unfinished files.
const TEMP_SUFFIX: &str = ".part";
/// Age of an unmodified temporary file after which its process is assumed dead.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    capacity: u64,
    in_flight: SingleFlight<String>,
}

impl Cache {
    /// Creates a cache of up to `capacity` bytes; the directory is created with the first file.
    pub fn new(folder: PathBuf, capacity: u64) -> Self {
        Self { folder, capacity, in_flight: SingleFlight::new() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the maximum total size of all files in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Opens the file of `key`; on a miss `make` writes it.
    pub fn file(&self, key: &str, make: impl FnOnce(&mut File) -> Result<()>) -> Result<File> {
        let digest = Sha256::digest(key);
        let stem: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let path = self.folder.join(format!("{stem}{FILE_SUFFIX}"));
        self.in_flight.run(&stem, || open_cached(&path), || self.make(&stem, &path, make))
    }

    fn make(
        &self,
        stem: &str,
        path: &Path,
        make: impl FnOnce(&mut File) -> Result<()>,
    ) -> Result<File> {
        let io = |error| Error::io(&self.folder, error);
        fs::create_dir_all(&self.folder).map_err(io)?;
        let mut temp = temp::create(&self.folder, &format!("{stem}."), TEMP_SUFFIX).map_err(io)?;
        make(temp.as_file_mut())?;
        self.commit(temp, path).map_err(io)
    }

    /// Evicts files to make room for a temporary file, and renames it.
    fn commit(&self, temp: NamedTempFile, path: &Path) -> io::Result<File> {
        let bytes = temp.as_file().metadata()?.len();
        let lock = self.folder.join("bytes");
        let mut options = OpenOptions::new();
        let mut sum = options.read(true).write(true).create(true).truncate(false).open(lock)?;
        sum.lock()?; // released when the file is closed
        let mut text = String::new();
        sum.read_to_string(&mut text)?;
        let mut total: Option<u64> = text.trim().parse().ok();
        if total.is_none_or(|total| total.saturating_add(bytes) > self.capacity) {
            // Evict a little more, so that not every file triggers an eviction.
            total = Some(self.evict_to(self.capacity.saturating_sub(bytes + self.capacity / 16))?);
        }
        // Another process may have made the same file.
        let before = fs::metadata(path).map_or(0, |meta| meta.len());
        let file = temp.persist(path)?;
        let total = total.unwrap_or(0).saturating_sub(before) + bytes;
        sum.seek(SeekFrom::Start(0))?;
        sum.set_len(0)?;
        sum.write_all(total.to_string().as_bytes())?;
        Ok(file)
    }

    /// Removes least recently used files down to `target` bytes; returns the remaining bytes.
    fn evict_to(&self, target: u64) -> io::Result<u64> {
        let (mut files, mut total) = (Vec::new(), 0);
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_cache_file(name)) else { continue };
            // Another process may have removed it.
            let Ok(meta) = entry.metadata() else { continue };
            let last = meta.modified()?;
            if name.ends_with(FILE_SUFFIX) {
                total += meta.len();
                files.push((last, entry.path(), meta.len()));
            } else if last.elapsed().is_ok_and(|since| since > ABANDONED_AFTER) {
                fs::remove_file(entry.path())?;
            }
        }
        files.sort();
        for (_, path, bytes) in files {
            if total <= target {
                break;
            }
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(total)
    }
}

/// Opens an existing file and updates its modification time, which marks its last use.
fn open_cached(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    // If the file system does not allow it, eviction is by age.
    let _ = file.set_modified(SystemTime::now());
    Some(file)
}

/// Returns true for names that this module gives: 32 hex digits and a known suffix.
fn is_cache_file(name: &str) -> bool {
    let Some((stem, end)) = name.split_at_checked(32) else { return false };
    let hex = stem.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    hex && (end == FILE_SUFFIX || (end.starts_with('.') && end.ends_with(TEMP_SUFFIX)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    fn put(cache: &Cache, key: &str, bytes: usize) -> bool {
        let mut made = false;
        let make = |out: &mut File| {
            made = true;
            out.write_all(&vec![7; bytes]).map_err(|e| Error::io("draft", e))
        };
        let file = cache.file(key, make).expect("space");
        assert_eq!(file.metadata().expect("a file").len(), bytes as u64);
        made
    }

    fn size(folder: &Path) -> u64 {
        let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file"));
        let ours = files.filter(|file| is_cache_file(&file.file_name().to_string_lossy()));
        ours.map(|file| file.metadata().expect("a file").len()).sum()
    }

    #[test]
    fn capacity_holds_and_recently_used_files_stay() {
        let folder = tempfile::tempdir().expect("space");
        let foreign = folder.path().join("thesis.piece");
        fs::write(&foreign, [0; 5000]).expect("space");
        // Two caches stand for two processes.
        let caches = [0, 1].map(|_| Cache::new(folder.path().to_owned(), 1000));
        for number in 0..40 {
            let cache = &caches[number % 2];
            assert!(put(cache, &number.to_string(), 100));
            assert!(size(folder.path()) <= 1000);
            std::thread::sleep(Duration::from_millis(2));
            assert!(number < 3 || !put(cache, "3", 100), "{number}");
        }
        assert!(put(&caches[0], "0", 100), "it was evicted");
        assert!(foreign.exists());
    }

    #[test]
    fn file_is_made_once_and_failure_leaves_no_file() {
        let folder = tempfile::tempdir().expect("space");
        let cache = Cache::new(folder.path().to_owned(), 1000);
        let failed = cache.file("a", |_| Err(Error::shard("a", "is invalid")));
        assert_eq!(failed.expect_err("it fails").to_string(), "a: is invalid");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
        let made = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| made.fetch_add(put(&cache, "a", 10).into(), Ordering::Relaxed));
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
