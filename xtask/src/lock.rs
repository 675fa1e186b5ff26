//! Two commands at once: the second waits for the first.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

/// Holds the lock until dropped. The file may be deleted once the work it guards is done: who waits on the deleted file
/// wakes up, looks again and finds the work done.
pub fn exclusive(path: &Path, what: &str) -> Result<File> {
    let unlockable = || format!("cannot lock {} (may this folder be written?)", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(unlockable)?;
    }
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = open().with_context(unlockable)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            tell!("waiting for another command that prepares {what}")
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(unlockable),
    }
    file.lock().with_context(unlockable)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_second_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/lock");
        let first = exclusive(&path, "a test").unwrap();
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _second = exclusive(&path, "a test").unwrap();
                assert!(released.load(Ordering::SeqCst));
            });
            std::thread::sleep(Duration::from_millis(100));
            released.store(true, Ordering::SeqCst);
            drop(first);
        });
    }
}
