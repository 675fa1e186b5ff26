//! Lists the files below a directory.

use std::path::Path;

use anyhow::{Context, Result};
use walkdir::WalkDir;

/// Returns the sorted paths of all files below `dir`, relative to it and with `/` on every system.
/// Links are listed, not followed.
pub fn list(dir: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in WalkDir::new(dir) {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        if !entry.file_type().is_dir() {
            let path = entry.path().strip_prefix(dir)?;
            let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
            paths.push(parts.join("/"));
        }
    }
    paths.sort();
    Ok(paths)
}
