//! Fetches one archive over HTTP, or from a package registry with the registry's own client.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::catalog::{Archive, Origin};
use crate::http::Client;
use crate::{hash, progress, python};

/// Fetches an archive into `parts`, unless an earlier run did, and returns its path.
pub fn fetch_archive(archive: &Archive, parts: &Path, client: &Client) -> Result<PathBuf> {
    let origin = archive.origin()?;
    let name = origin.name();
    let dir =
        parts.join(hash::sha256(format!("{origin:?}").as_bytes()).get(..16).unwrap_or_default());
    let file = dir.join("archive");
    let is_valid = |file: &Path| match &archive.sha256 {
        Some(expected) => Ok::<_, anyhow::Error>(hash::sha256_file(file)? == *expected),
        // Checked after extraction with the digest of the data set.
        None => Ok(true),
    };
    if archive.sha256.is_some() && file.exists() && is_valid(&file)? {
        return Ok(file);
    }
    match origin {
        Origin::Url(url) => download_url(url, &dir, &file, client)?,
        Origin::Deb(package) => move_file(apt_download(package, &dir)?, &file)?,
        Origin::PyPi(package) => move_file(
            with_empty_dir(&dir, |to| {
                python::download(package, archive.sha256.as_deref(), &[], to)
            })?,
            &file,
        )?,
        Origin::Npm(package) => {
            move_file(with_empty_dir(&dir, |to| npm_pack(package, to))?, &file)?
        }
    }
    if !is_valid(&file)? {
        // A retry must not reuse it.
        fs::remove_file(&file)?;
        anyhow::bail!(
            "{name}: sha256 does not match the catalog: the download is corrupt, or was changed"
        );
    }
    Ok(file)
}

impl Origin<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Url(name) | Self::Deb(name) | Self::PyPi(name) | Self::Npm(name) => name,
        }
    }
}

fn move_file(from: PathBuf, to: &Path) -> Result<()> {
    fs::rename(&from, to).with_context(|| format!("cannot move {}", from.display()))
}

fn download_url(url: &str, dir: &Path, file: &Path, client: &Client) -> Result<()> {
    fs::create_dir_all(dir)?;
    // Renamed when complete.
    let partial = dir.join("incoming");
    let label = url.rsplit('/').next().unwrap_or(url);
    let bar = progress::bytes(label, 0);
    let result = client.download(url, &partial, None, &mut |have, total| {
        bar.set_length(total.unwrap_or(have));
        bar.set_position(have);
    });
    bar.finish_and_clear();
    result?;
    move_file(partial, file)
}

/// Runs a package client with an empty directory to download into.
fn with_empty_dir(dir: &Path, client: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<PathBuf> {
    let to = dir.join("package");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    fs::create_dir_all(&to)?;
    client(&to)
}

/// Downloads a package with `npm pack`.
fn npm_pack(package: &str, to: &Path) -> Result<PathBuf> {
    run(Command::new("npm").args(["pack", "--silent", "--pack-destination"]).arg(to).arg(package))?;
    python::only_file(to)
}

/// Downloads a package with `apt-get download`, which needs no root. If the machine's package lists
/// do not have it, fetches own lists first.
fn apt_download(package: &str, dir: &Path) -> Result<PathBuf> {
    let lists = dir.join("lists");
    let download = |options: &[String]| {
        with_empty_dir(dir, |to| {
            run(Command::new("apt-get")
                .args(options)
                .args(["download", "--quiet", package])
                .current_dir(to))?;
            python::only_file(to)
        })
    };
    // The sandbox user of apt has no permission to write here.
    let sandbox = [String::from("-o"), String::from("APT::Sandbox::User=root")];
    let error = match download(&sandbox) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    if Command::new("apt-get").arg("--version").output().is_err() {
        return Err(error);
    }
    status!("{package}: {error:#}; retrying with new package lists");
    fs::create_dir_all(lists.join("partial"))?;
    let cache = dir.join("cache");
    fs::create_dir_all(cache.join("archives/partial"))?;
    let own = [
        format!("Dir::State::Lists={}", absolute(&lists)?),
        format!("Dir::Cache={}", absolute(&cache)?),
        String::from("Debug::NoLocking=1"),
    ];
    let own: Vec<String> = sandbox
        .iter()
        .cloned()
        .chain(own.into_iter().flat_map(|option| [String::from("-o"), option]))
        .collect();
    run(Command::new("apt-get").args(&own).args(["update", "--quiet"]))
        .context("cannot update package lists; run `apt-get update` as root and try again")?;
    download(&own)
}

fn absolute(path: &Path) -> io::Result<String> {
    Ok(std::path::absolute(path)?.display().to_string())
}

/// Runs a program without output; its last line of standard error becomes the error.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            anyhow::bail!("{program} is not installed")
        }
        output => output.with_context(|| format!("cannot run {program}"))?,
    };
    ensure!(output.status.success(), "{program} failed: {}", python::last_line(&output.stderr));
    Ok(())
}
