//! One archive from where the catalog says: over HTTP, or from a package registry with that registry's own client.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::catalog::{Archive, Fetch};
use crate::http::Client;
use crate::{hash, progress, python};

/// Brings an archive into `parts`, unless it is there already, and returns its path.
pub fn archive(archive: &Archive, parts: &Path, client: &Client) -> Result<PathBuf> {
    let fetch = archive.fetch()?;
    let name = fetch.name();
    let dir =
        parts.join(hash::sha256(format!("{fetch:?}").as_bytes()).get(..16).unwrap_or_default());
    let file = dir.join("archive");
    let right = |file: &Path| match &archive.sha256 {
        Some(wanted) => Ok::<_, anyhow::Error>(hash::sha256_file(file)? == *wanted),
        // The digest of the unpacked files will tell.
        None => Ok(true),
    };
    if archive.sha256.is_some() && file.exists() && right(&file)? {
        return Ok(file);
    }
    match fetch {
        Fetch::Url(url) => http(url, &dir, &file, client)?,
        Fetch::Deb(package) => rename(apt(package, &dir)?, &file)?,
        Fetch::PyPi(package) => rename(
            packed(&dir, |to| python::download(package, archive.sha256.as_deref(), &[], to))?,
            &file,
        )?,
        Fetch::Npm(package) => rename(packed(&dir, |to| npm(package, to))?, &file)?,
    }
    if !right(&file)? {
        // Going on from it would fail for ever.
        fs::remove_file(&file)?;
        anyhow::bail!("{name} came damaged or changed: its sha256 is not the one in the catalog");
    }
    Ok(file)
}

impl Fetch<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Url(name) | Self::Deb(name) | Self::PyPi(name) | Self::Npm(name) => name,
        }
    }
}

fn rename(from: PathBuf, to: &Path) -> Result<()> {
    fs::rename(&from, to).with_context(|| format!("cannot move {}", from.display()))
}

fn http(url: &str, dir: &Path, file: &Path, client: &Client) -> Result<()> {
    fs::create_dir_all(dir)?;
    // Under its final name only when it is whole.
    let partial = dir.join("incoming");
    let label = url.rsplit('/').next().unwrap_or(url);
    let bar = progress::bytes(label, 0);
    let result = client.download(url, &partial, None, &mut |have, total| {
        bar.set_length(total.unwrap_or(have));
        bar.set_position(have);
    });
    bar.finish_and_clear();
    result?;
    rename(partial, file)
}

/// Runs a package client with an empty folder to download into.
fn packed(dir: &Path, client: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<PathBuf> {
    let to = dir.join("package");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    fs::create_dir_all(&to)?;
    client(&to)
}

fn npm(package: &str, to: &Path) -> Result<PathBuf> {
    run(Command::new("npm").args(["pack", "--silent", "--pack-destination"]).arg(to).arg(package))?;
    python::only_file(to)
}

/// `apt-get download`, which needs no root; with package lists of its own where the machine's do not know the package.
fn apt(package: &str, dir: &Path) -> Result<PathBuf> {
    let lists = dir.join("lists");
    let download = |options: &[String]| {
        packed(dir, |to| {
            run(Command::new("apt-get")
                .args(options)
                .args(["download", "--quiet", package])
                .current_dir(to))?;
            python::only_file(to)
        })
    };
    // The user that apt drops its rights to may not write here.
    let sandbox = [String::from("-o"), String::from("APT::Sandbox::User=root")];
    let known = match download(&sandbox) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    if Command::new("apt-get").arg("--version").output().is_err() {
        return Err(known);
    }
    tell!("{package}: {known:#}; trying again with new package lists");
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
        .context("run `apt-get update` as root, then this command again")?;
    download(&own)
}

fn absolute(path: &Path) -> io::Result<String> {
    Ok(std::path::absolute(path)?.display().to_string())
}

/// Runs a tool in silence; what it says goes into the error.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            anyhow::bail!("{program} is not installed here")
        }
        output => output.with_context(|| format!("cannot run {program}"))?,
    };
    ensure!(output.status.success(), "{program} failed: {}", python::last_line(&output.stderr));
    Ok(())
}
