//! File locks between concurrent commands: the second waits for the first.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

/// Locks the file at `path`, created if missing, until the returned handle is dropped. `what` names
/// the guarded work in messages.
///
/// The holder may delete the file when the work is done. Callers must therefore check, after they
/// get the lock, whether the work is done already.
pub fn exclusive(path: &Path, what: &str) -> Result<File> {
    let cannot_lock =
        || format!("cannot lock {}; check the directory's permissions", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(cannot_lock)?;
    }
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = open().with_context(cannot_lock)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            status!("waiting for another command that is preparing {what}")
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(cannot_lock),
    }
    file.lock().with_context(cannot_lock)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn second_command_waits() {
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
