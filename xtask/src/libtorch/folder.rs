//! Checks a LibTorch directory, and installs one atomically.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::VERSION;
use crate::files;

/// Lists the installed files and their sizes. Appears together with the directory, by one rename.
const MARKER: &str = ".installed-files";

/// State of the directory where LibTorch should be.
#[derive(Debug)]
pub enum State {
    /// Usable; contains the origin, for messages.
    Usable(String),
    /// Missing, empty, or a dangling link.
    Absent,
    /// Unusable, but installed by this command, which may replace it; contains the reason.
    Managed(String),
    /// Unusable and not installed by this command; contains the reason.
    Foreign(String),
}

/// Returns the state of `dir`.
pub fn state(dir: &Path) -> Result<State> {
    let Ok(metadata) = fs::symlink_metadata(dir) else { return Ok(State::Absent) };
    if metadata.is_symlink() {
        let to = fs::read_link(dir)?;
        return Ok(match check(dir) {
            Ok(()) => State::Usable(format!("link to {}", to.display())),
            Err(_) if !dir.exists() => State::Absent,
            Err(error) => State::Managed(format!("{error:#}")),
        });
    }
    let marked = dir.join(MARKER).exists();
    let checked = check(dir).and_then(|()| if marked { check_files(dir) } else { Ok(()) });
    Ok(match (checked, marked) {
        (Ok(()), true) => State::Usable(String::from("installed by cargo xtask")),
        (Ok(()), false) => State::Usable(String::from("installed by the user")),
        (Err(error), true) => State::Managed(format!("{error:#}")),
        (Err(_), false) if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none()) => {
            State::Absent
        }
        (Err(error), false) => State::Foreign(format!("{error:#}")),
    })
}

/// Fails if `dir` exists and was not installed by this command.
pub fn ensure_replaceable(dir: &Path) -> Result<()> {
    match state(dir)? {
        State::Absent => {}
        State::Managed(reason) => status!("replacing {}: {reason}", dir.display()),
        State::Usable(_) if dir.is_symlink() || dir.join(MARKER).exists() => {}
        State::Usable(_) => {
            bail!("{} was not installed by this command; move it away", dir.display())
        }
        State::Foreign(reason) => bail!("cannot replace {}: {reason}; move it away", dir.display()),
    }
    Ok(())
}

/// Fails unless `dir` contains LibTorch of version [`VERSION`].
pub fn check(dir: &Path) -> Result<()> {
    let version = version(dir)
        .with_context(|| format!("{} is not a LibTorch: it has no version", dir.display()))?;
    ensure!(version == VERSION, "{} is LibTorch {version}, not {VERSION}", dir.display());
    let suffix = std::env::consts::DLL_SUFFIX;
    for part in [
        format!("lib/libtorch_cpu{suffix}"),
        format!("lib/libc10{suffix}"),
        String::from("include/torch"),
    ] {
        let part = if cfg!(windows) { part.replace("lib/lib", "lib/") } else { part };
        ensure!(dir.join(&part).exists(), "{} is incomplete: {part} is missing", dir.display());
    }
    Ok(())
}

/// Returns the version of a LibTorch directory or a Python `torch` package, without the `+` suffix.
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

/// Returns whether the LibTorch in `dir` supports CUDA.
pub fn has_cuda(dir: &Path) -> bool {
    dir.join("lib/libtorch_cuda.so").exists()
}

/// Returns the sibling directory in which an installation of `dir` is prepared before a rename.
pub fn partial(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    dir.with_file_name(name)
}

/// Checks `tree`, marks it as complete and renames it to `dir`.
pub fn install_tree(tree: &Path, dir: &Path, partial: &Path) -> Result<()> {
    let mut lines = vec![format!("libtorch {VERSION}")];
    for path in files::list(tree)? {
        lines.push(format!("{} {path}", fs::symlink_metadata(tree.join(&path))?.len()));
    }
    fs::write(tree.join(MARKER), lines.join("\n") + "\n")
        .context("cannot write to the new LibTorch directory")?;
    check(tree).and_then(|()| check_files(tree)).context("the extracted LibTorch is not usable")?;
    replace(tree, dir, partial)
}

/// Replaces `dir` by a symbolic link to `torch`.
pub fn link(torch: &Path, dir: &Path, partial: &Path) -> Result<()> {
    let new = partial.join("link");
    let _ = fs::remove_file(&new);
    #[cfg(unix)]
    std::os::unix::fs::symlink(torch, &new)
        .with_context(|| format!("cannot create the link {}", new.display()))?;
    #[cfg(not(unix))]
    bail!("cannot create links on this system; set LIBTORCH to {}", torch.display());
    replace(&new, dir, partial)
}

/// Renames `new` to `dir`, after moving an existing `dir` to `partial`.
fn replace(new: &Path, dir: &Path, partial: &Path) -> Result<()> {
    let old = partial.join("old");
    remove(&old)?;
    if fs::symlink_metadata(dir).is_ok() {
        fs::rename(dir, &old).with_context(|| format!("cannot move {} away", dir.display()))?;
    }
    fs::rename(new, dir).with_context(|| format!("cannot create {}", dir.display()))?;
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

/// Fails unless every file that the marker lists exists with its size.
fn check_files(dir: &Path) -> Result<()> {
    let marker = fs::read_to_string(dir.join(MARKER))?;
    for line in marker.lines().skip(1) {
        let (size, path) =
            line.split_once(' ').context("the list of installed files is invalid")?;
        let found = fs::metadata(dir.join(path)).map(|metadata| metadata.len()).ok();
        ensure!(
            found.map(|len| len.to_string()).as_deref() == Some(size),
            "{} is damaged: {path} is missing or has another size",
            dir.display()
        );
    }
    Ok(())
}

/// Returns the size in bytes of a LibTorch that this command installed.
pub fn size(dir: &Path) -> Option<u64> {
    let marker = fs::read_to_string(dir.join(MARKER)).ok()?;
    Some(
        marker.lines().skip(1).filter_map(|line| line.split_once(' ')?.0.parse::<u64>().ok()).sum(),
    )
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
