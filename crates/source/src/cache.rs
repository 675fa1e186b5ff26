//! Files that can be made again, within a bound, shared by processes.
//!
//! A file appears whole, by a rename. What was used longest ago goes first; whoever has it open reads on.
//! Nothing is removed but what this module named. The bound holds for all processes together: they keep one sum,
//! in a file that also is their lock. Files that are being made come on top.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::turns::Turns;
use crate::{Error, Result};

/// Ends of the names of our files, whole and not yet.
const WHOLE: &str = ".piece";
const DRAFT: &str = ".part";
/// A draft that nobody wrote to for so long is a dead process's.
const ABANDONED: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    bound: u64,
    turns: Turns<String>,
    drafts: AtomicU64,
}

impl Cache {
    /// Nothing is written before something is made.
    pub fn new(folder: PathBuf, bound: u64) -> Self {
        Self { folder, bound, turns: Turns::new(), drafts: AtomicU64::new(0) }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes of all files together.
    pub fn bound(&self) -> u64 {
        self.bound
    }

    /// The file of `key`, open; `make` writes it if it is not there.
    pub fn file(&self, key: &str, make: impl FnOnce(&mut File) -> Result<()>) -> Result<File> {
        let digest = Sha256::digest(key);
        let stem: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let path = self.folder.join(format!("{stem}{WHOLE}"));
        self.turns.one(
            &stem,
            || used(&path),
            || {
                let (id, number) =
                    (std::process::id(), self.drafts.fetch_add(1, Ordering::Relaxed));
                let draft = self.folder.join(format!("{stem}.{id}-{number}{DRAFT}"));
                let made = self.make(&draft, &path, make);
                if made.is_err() {
                    let _ = fs::remove_file(&draft); // what matters is the first error
                }
                made
            },
        )
    }

    fn make(
        &self,
        draft: &Path,
        path: &Path,
        make: impl FnOnce(&mut File) -> Result<()>,
    ) -> Result<File> {
        let io = |error| Error::io(&self.folder, error);
        fs::create_dir_all(&self.folder).map_err(io)?;
        let open = OpenOptions::new().read(true).write(true).create_new(true).open(draft);
        let mut file = open.map_err(io)?;
        make(&mut file)?;
        self.keep(&file, draft, path).map_err(io)?;
        Ok(file)
    }

    /// Makes room for a draft and gives it its name.
    fn keep(&self, file: &File, draft: &Path, path: &Path) -> io::Result<()> {
        let bytes = file.metadata()?.len();
        let lock = self.folder.join("bytes");
        let mut options = OpenOptions::new();
        let mut sum = options.read(true).write(true).create(true).truncate(false).open(lock)?;
        sum.lock()?; // until it is closed
        let mut text = String::new();
        sum.read_to_string(&mut text)?;
        let mut total: Option<u64> = text.trim().parse().ok();
        if total.is_none_or(|total| total.saturating_add(bytes) > self.bound) {
            // Some more, so that this is not done for every file.
            total = Some(self.remove_until(self.bound.saturating_sub(bytes + self.bound / 16))?);
        }
        // Another process may have made it as well.
        let before = fs::metadata(path).map_or(0, |meta| meta.len());
        fs::rename(draft, path)?;
        let total = total.unwrap_or(0).saturating_sub(before) + bytes;
        sum.seek(SeekFrom::Start(0))?;
        sum.set_len(0)?;
        sum.write_all(total.to_string().as_bytes())
    }

    /// Removes what was used longest ago until `most` bytes are left, and says how many are.
    fn remove_until(&self, most: u64) -> io::Result<u64> {
        let (mut files, mut total) = (Vec::new(), 0);
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_ours(name)) else { continue };
            // It may be gone by now.
            let Ok(meta) = entry.metadata() else { continue };
            let last = meta.modified()?;
            if name.ends_with(WHOLE) {
                total += meta.len();
                files.push((last, entry.path(), meta.len()));
            } else if last.elapsed().is_ok_and(|since| since > ABANDONED) {
                fs::remove_file(entry.path())?;
            }
        }
        files.sort();
        for (_, path, bytes) in files {
            if total <= most {
                break;
            }
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(total)
    }
}

/// A file that is there, marked as used now.
fn used(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    // On a disk that cannot, what was made first goes first.
    let _ = file.set_modified(SystemTime::now());
    Some(file)
}

/// Whether a file is one that this module made: 32 digits, and one of our ends.
fn is_ours(name: &str) -> bool {
    let Some((stem, end)) = name.split_at_checked(32) else { return false };
    let hex = stem.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    hex && (end == WHOLE || (end.starts_with('.') && end.ends_with(DRAFT)))
}

#[cfg(test)]
mod tests {
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
        let ours = files.filter(|file| is_ours(&file.file_name().to_string_lossy()));
        ours.map(|file| file.metadata().expect("a file").len()).sum()
    }

    #[test]
    fn the_bound_holds_and_what_was_used_last_stays() {
        let folder = tempfile::tempdir().expect("space");
        let foreign = folder.path().join("thesis.piece");
        fs::write(&foreign, [0; 5000]).expect("space");
        // Two processes, as far as files go.
        let caches = [0, 1].map(|_| Cache::new(folder.path().to_owned(), 1000));
        for number in 0..40 {
            let cache = &caches[number % 2];
            assert!(put(cache, &number.to_string(), 100));
            assert!(size(folder.path()) <= 1000);
            std::thread::sleep(Duration::from_millis(2));
            assert!(number < 3 || !put(cache, "3", 100), "{number}");
        }
        assert!(put(&caches[0], "0", 100), "it was used long ago");
        assert!(foreign.exists());
    }

    #[test]
    fn threads_make_a_file_once_and_failures_leave_nothing() {
        let folder = tempfile::tempdir().expect("space");
        let cache = Cache::new(folder.path().to_owned(), 1000);
        let failed = cache.file("a", |_| Err(Error::shard("a", "is broken")));
        assert_eq!(failed.expect_err("it fails").to_string(), "a: is broken");
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
