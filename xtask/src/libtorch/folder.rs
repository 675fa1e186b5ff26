//! Tells a good LibTorch folder from any other, and puts one in place so that no half-done one is ever seen.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::VERSION;

/// Lists what we installed. A folder has it from the moment it is there, as both come by one rename.
const MARKER: &str = ".installed-files";

/// What is at a place where LibTorch should be.
#[derive(Debug)]
pub enum State {
    /// Usable; where it came from, in words.
    Good(String),
    /// Nothing, or a link to nothing.
    Absent,
    /// Something we made and may replace; what is wrong with it.
    Ours(String),
    /// Something of the user's; what is wrong with it.
    Foreign(String),
}

/// What is at `dir`.
pub fn state(dir: &Path) -> Result<State> {
    let Ok(metadata) = fs::symlink_metadata(dir) else { return Ok(State::Absent) };
    if metadata.is_symlink() {
        let to = fs::read_link(dir)?;
        return Ok(match check(dir) {
            Ok(()) => State::Good(format!("a link to {}", to.display())),
            Err(_) if !dir.exists() => State::Absent,
            Err(error) => State::Ours(format!("{error:#}")),
        });
    }
    let marked = dir.join(MARKER).exists();
    let checked = check(dir).and_then(|()| if marked { check_files(dir) } else { Ok(()) });
    Ok(match (checked, marked) {
        (Ok(()), true) => State::Good(String::from("installed by cargo xtask")),
        (Ok(()), false) => State::Good(String::from("found there")),
        (Err(error), true) => State::Ours(format!("{error:#}")),
        (Err(_), false) if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none()) => {
            State::Absent
        }
        (Err(error), false) => State::Foreign(format!("{error:#}")),
    })
}

/// Fails with one line when what is at `dir` is the user's to move away.
pub fn ensure_replaceable(dir: &Path) -> Result<()> {
    match state(dir)? {
        State::Absent => {}
        State::Ours(why) => tell!("{} is replaced: {why}", dir.display()),
        State::Good(_) if dir.is_symlink() || dir.join(MARKER).exists() => {}
        State::Good(_) => {
            bail!("{} was not installed by this command: move it away first", dir.display())
        }
        State::Foreign(why) => bail!("{} is in the way ({why}): move it away first", dir.display()),
    }
    Ok(())
}

/// That `dir` is LibTorch of the right version.
pub fn check(dir: &Path) -> Result<()> {
    let version = version(dir)
        .with_context(|| format!("{} is no LibTorch: it has no version", dir.display()))?;
    ensure!(version == VERSION, "{} is LibTorch {version}, not {VERSION}", dir.display());
    let suffix = std::env::consts::DLL_SUFFIX;
    for part in [
        format!("lib/libtorch_cpu{suffix}"),
        format!("lib/libc10{suffix}"),
        String::from("include/torch"),
    ] {
        let part = if cfg!(windows) { part.replace("lib/lib", "lib/") } else { part };
        ensure!(dir.join(&part).exists(), "{} is incomplete: it has no {part}", dir.display());
    }
    Ok(())
}

/// Of an unpacked LibTorch as well as of a Python package; without what follows a `+`.
pub fn version(dir: &Path) -> Option<String> {
    let build = fs::read_to_string(dir.join("build-version")).ok();
    let header = || {
        let text = fs::read_to_string(dir.join("include/torch/headeronly/version.h")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("#define TORCH_VERSION "))?;
        Some(line.trim().trim_matches('"').to_owned())
    };
    let python = || {
        let text = fs::read_to_string(dir.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned())
    };
    let version = build.or_else(python).or_else(header)?;
    Some(version.trim().split('+').next()?.to_owned())
}

/// Whether it can drive a GPU.
pub fn has_cuda(dir: &Path) -> bool {
    dir.join("lib/libtorch_cuda.so").exists()
}

/// Where an installation for `dir` is prepared: beside it, so that a rename is all that is left to do.
pub fn partial(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    dir.with_file_name(name)
}

/// Marks `tree` as complete and renames it to `dir`.
pub fn finish(tree: &Path, dir: &Path, partial: &Path) -> Result<()> {
    let mut lines = vec![format!("libtorch {VERSION}")];
    list(tree, tree, &mut lines)?;
    fs::write(tree.join(MARKER), lines.join("\n") + "\n")
        .context("cannot write into the new LibTorch folder")?;
    check(tree)
        .and_then(|()| check_files(tree))
        .context("the LibTorch just unpacked is not complete")?;
    put(tree, dir, partial)
}

/// Makes `dir` a link to `torch`.
pub fn link(torch: &Path, dir: &Path, partial: &Path) -> Result<()> {
    let new = partial.join("link");
    let _ = fs::remove_file(&new);
    #[cfg(unix)]
    std::os::unix::fs::symlink(torch, &new)
        .with_context(|| format!("cannot make the link {}", new.display()))?;
    #[cfg(not(unix))]
    bail!("set LIBTORCH to {}: links are made on Linux and macOS only", torch.display());
    put(&new, dir, partial)
}

/// Moves what is at `dir` out of the way and `new` there.
fn put(new: &Path, dir: &Path, partial: &Path) -> Result<()> {
    let old = partial.join("old");
    remove(&old)?;
    if fs::symlink_metadata(dir).is_ok() {
        fs::rename(dir, &old).with_context(|| format!("cannot move {} away", dir.display()))?;
    }
    fs::rename(new, dir).with_context(|| format!("cannot make {}", dir.display()))?;
    remove(&old)
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// `SIZE PATH` of every file.
fn list(root: &Path, dir: &Path, lines: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            list(root, &path, lines)?;
        } else {
            lines.push(format!(
                "{} {}",
                entry.metadata()?.len(),
                path.strip_prefix(root)?.display()
            ));
        }
    }
    Ok(())
}

/// That everything the marker lists is there in its full size.
fn check_files(dir: &Path) -> Result<()> {
    let marker = fs::read_to_string(dir.join(MARKER))?;
    for line in marker.lines().skip(1) {
        let (size, path) = line.split_once(' ').context("its list of files is damaged")?;
        let there = fs::metadata(dir.join(path)).map(|metadata| metadata.len()).ok();
        ensure!(
            there.map(|len| len.to_string()).as_deref() == Some(size),
            "{} is damaged: {path} is missing or cut off",
            dir.display()
        );
    }
    Ok(())
}

/// Of an installation of ours.
pub fn size(dir: &Path) -> Option<u64> {
    let marker = fs::read_to_string(dir.join(MARKER)).ok()?;
    Some(
        marker.lines().skip(1).filter_map(|line| line.split_once(' ')?.0.parse::<u64>().ok()).sum(),
    )
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
