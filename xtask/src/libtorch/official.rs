//! Installs the archive that the PyTorch project publishes: the fallback if pip is missing or
//! fails.
//!
//! Not tested against the real site. Only HTTPS and the archive's checksums protect the content.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::VERSION;
use crate::archive::{self, Limits};
use crate::http::Client;
use crate::progress;

fn address() -> Result<String> {
    let file = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => format!("libtorch-shared-with-deps-{VERSION}%2Bcpu.zip"),
        ("macos", "aarch64") => format!("libtorch-macos-arm64-{VERSION}.zip"),
        (os, arch) => bail!("the PyTorch project publishes no LibTorch for {os} {arch}"),
    };
    Ok(format!("https://download.pytorch.org/libtorch/cpu/{file}"))
}

/// Downloads LibTorch into `parts` and extracts it into `tree`.
pub fn install(tree: &Path, parts: &Path) -> Result<()> {
    let url = address()?;
    let file = parts.join(format!("official-{VERSION}.zip"));
    status!("downloading {url}");
    let bar = progress::bytes("downloading", 0);
    Client::new(&[]).download(&url, &file, None, &mut |have, total| {
        bar.set_length(total.unwrap_or(have));
        bar.set_position(have);
    })?;
    bar.finish_and_clear();
    let extracted = extract(&file, tree);
    if extracted.is_err() {
        // The file may be corrupt, so a retry must not resume it.
        let _ = fs::remove_file(&file);
    }
    extracted
}

fn extract(file: &Path, tree: &Path) -> Result<()> {
    let limits = Limits::for_archive(fs::metadata(file)?.len());
    archive::walk(file, limits, &mut |entry| {
        let Some(path) = entry.path.strip_prefix("libtorch/") else { return Ok(()) };
        ensure!(entry.is_file, "{path} is not a regular file");
        let path = archive::safe_path(tree, path)?;
        fs::create_dir_all(path.parent().context("path without a parent")?)?;
        io::copy(entry.content, &mut File::create(path)?)?;
        Ok(())
    })
}
