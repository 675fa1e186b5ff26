//! How much room is left.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::progress::human;

/// Free bytes where `path` is, or will be. `None` where the system does not tell.
pub fn free(path: &Path) -> Option<u64> {
    let path = path.ancestors().find(|path| path.exists())?;
    let output = Command::new("df").arg("-Pk").arg(path).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // Portable format: name, blocks of 1024 bytes, used, available.
    text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok().map(|blocks| blocks * 1024)
}

/// Fails when fewer than `needed` bytes are known to be free.
pub fn ensure_free(path: &Path, needed: u64) -> Result<()> {
    if let Some(free) = free(path) {
        ensure!(
            free >= needed,
            "{} is needed in {}, but only {} is free: make room",
            human(needed),
            path.display(),
            human(free)
        );
    }
    Ok(())
}
