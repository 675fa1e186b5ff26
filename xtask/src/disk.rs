//! Free disk space.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::progress::format_bytes;

/// Returns the free bytes of the file system that holds `path`, which may not exist yet; `None` if
/// unknown.
pub fn free(path: &Path) -> Option<u64> {
    let path = path.ancestors().find(|path| path.exists())?;
    let output = Command::new("df").arg("-Pk").arg(path).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // POSIX columns: name, blocks of 1024 bytes, used, available.
    text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok().map(|blocks| blocks * 1024)
}

/// Fails if the file system that holds `path` is known to have fewer than `needed` free bytes.
pub fn ensure_free(path: &Path, needed: u64) -> Result<()> {
    if let Some(free) = free(path) {
        ensure!(
            free >= needed,
            "not enough disk space: {}: {} needed, {} free",
            path.display(),
            format_bytes(needed),
            format_bytes(free)
        );
    }
    Ok(())
}
