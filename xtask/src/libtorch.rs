//! Finds the LibTorch that tch expects, or installs it.

mod folder;
mod official;
mod pins;
mod wheels;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{lock, progress, python};

/// The LibTorch that torch-sys is made for. The pins in `libtorch/pins.rs` belong to it.
pub const VERSION: &str = "2.11.0";

/// What an installation takes on the disk while it is under way.
const DISK_BYTES: u64 = 700_000_000;

/// A LibTorch that is ready to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibTorch {
    /// Holds `include` and `lib`. Absolute.
    pub dir: PathBuf,
    /// From where, in words.
    pub origin: String,
    /// The user's own `LIBTORCH` rather than the project's `.libtorch`.
    pub users_own: bool,
}

impl LibTorch {
    /// Where the dynamic linker finds it.
    pub fn lib(&self) -> PathBuf {
        self.dir.join("lib")
    }

    /// Whether it can drive a GPU.
    pub fn has_cuda(&self) -> bool {
        folder::has_cuda(&self.dir)
    }
}

/// Where the project keeps its own.
pub fn default_dir(root: &Path) -> PathBuf {
    root.join(".libtorch")
}

/// What is there already: the user's `LIBTORCH`, else the one in `target`.
pub fn find(root: &Path, target: Option<&Path>) -> Result<Option<LibTorch>> {
    if let (None, Some(dir)) = (target, users_libtorch(root)) {
        let dir = std::path::absolute(&dir)?;
        if let Err(error) = folder::check(&dir) {
            bail!(
                "LIBTORCH cannot be used, {error:#}: let it name LibTorch {VERSION}, or unset it"
            );
        }
        return Ok(Some(LibTorch { dir, origin: String::from("LIBTORCH"), users_own: true }));
    }
    let dir = std::path::absolute(target.map_or_else(|| default_dir(root), Path::to_path_buf))?;
    Ok(match folder::state(&dir)? {
        folder::State::Good(origin) => Some(LibTorch { dir, origin, users_own: false }),
        _ => None,
    })
}

/// Finds LibTorch, or installs it into `target`, by default the project's `.libtorch`.
pub fn ensure(root: &Path, cuda: bool, target: Option<&Path>) -> Result<LibTorch> {
    let found = find(root, target)?;
    if let Some(found) = found.filter(|found| !cuda || found.has_cuda()) {
        hint_at_cuda(&found);
        return Ok(found);
    }
    if let (true, None, Some(dir)) = (cuda, target, users_libtorch(root)) {
        bail!("LIBTORCH is {}, which has no CUDA: unset it to have one installed", dir.display());
    }
    ensure!(
        cfg!(unix),
        "LibTorch is installed on Linux and macOS only: unpack LibTorch {VERSION} and set LIBTORCH to its folder"
    );
    let dir = std::path::absolute(target.map_or_else(|| default_dir(root), Path::to_path_buf))?;
    let partial = folder::partial(&dir);
    let lock = lock::exclusive(&partial.join("lock"), "LibTorch")?;
    // Another command may have installed it while this one waited for the lock.
    if let Some(found) = find(root, Some(&dir))?.filter(|found| !cuda || found.has_cuda()) {
        return Ok(found);
    }
    // Keeps the unfinished folder out of version control wherever it is.
    fs::write(partial.join(".gitignore"), "*\n")?;
    if let Err(error) = folder::ensure_replaceable(&dir) {
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    install(root, cuda, &dir, &partial)?;
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    drop(lock);
    let installed = find(root, Some(&dir))?
        .with_context(|| format!("{} is not usable after installing", dir.display()))?;
    tell!("LibTorch {VERSION} is ready in {}", dir.display());
    hint_at_cuda(&installed);
    Ok(installed)
}

fn install(root: &Path, cuda: bool, dir: &Path, partial: &Path) -> Result<()> {
    if let Some(torch) = python_torch(root, cuda) {
        tell!("{} becomes a link to the PyTorch {VERSION} in {}", dir.display(), torch.display());
        return folder::link(&torch, dir, partial);
    }
    if cuda {
        return install_cuda(root, dir, partial);
    }
    crate::disk::ensure_free(partial, DISK_BYTES)?;
    let tree = partial.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    tell!("installing LibTorch {VERSION} for the CPU in {}", dir.display());
    let parts = partial.join("parts");
    fs::create_dir_all(&parts).with_context(|| format!("cannot make {}", parts.display()))?;
    let platform = pins::platform()?;
    let located = wheels::locate(platform).map_err(|error| tell!("{error:#}"));
    // Without the addresses, pip may still be able to download.
    let installed =
        wheels::install(platform, located.as_deref().unwrap_or_default(), &tree, &parts);
    if let (Err(error), Err(())) = (&installed, &located) {
        tell!("{error:#}");
        let neither = "neither pip nor the PyTorch project's site gave LibTorch";
        official::install(&tree, &parts)
            .with_context(|| format!("{neither}: {}", python::PIP_HINT))?;
    } else {
        installed?;
    }
    folder::finish(&tree, dir, partial)
}

/// A PyTorch of the right version in one of the interpreters at hand.
fn python_torch(root: &Path, cuda: bool) -> Option<PathBuf> {
    let venv = root.join(".venv/bin/python3");
    let interpreters =
        venv.is_file().then_some(venv).into_iter().chain([PathBuf::from(python::PYTHON)]);
    interpreters
        .filter_map(|python| python::torch(&python, VERSION))
        .find(|torch| (!cuda || torch.cuda) && folder::check(&torch.dir).is_ok())
        .map(|torch| torch.dir)
}

/// The whole PyTorch for CUDA with the libraries it needs, in a virtual environment of the project.
fn install_cuda(root: &Path, dir: &Path, partial: &Path) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "LibTorch for CUDA is installed on Linux only");
    crate::disk::ensure_free(root, 9_000_000_000)?;
    let venv = root.join(".venv");
    let requirement = format!("torch=={VERSION}");
    tell!("installing {requirement} for CUDA in {}, some 2.5 GB to download", venv.display());
    run(Command::new(python::PYTHON).args(["-m", "venv"]).arg(&venv), python::PIP_HINT)?;
    let python = venv.join("bin/python3");
    run(
        Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            &requirement,
        ]),
        "look at the network and run the command again",
    )?;
    let torch = python::torch(&python, VERSION).with_context(|| {
        format!(
            "{} has no PyTorch {VERSION} that can be imported: remove it and run the command again",
            venv.display()
        )
    })?;
    ensure!(
        torch.cuda,
        "the PyTorch that pip chose has no CUDA: see which index `pip config list` names"
    );
    folder::link(&torch.dir, dir, partial)
}

fn run(command: &mut Command, advice: &str) -> Result<()> {
    let line = format!("{command:?}").replace('"', "");
    let status = command.stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("cannot run `{line}`: {advice}"))?;
    ensure!(status.success(), "`{line}` failed, see above: {advice}");
    Ok(())
}

/// A `LIBTORCH` that does not come from `.cargo/config.toml`.
fn users_libtorch(root: &Path) -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("LIBTORCH").filter(|dir| !dir.is_empty())?);
    (dir != default_dir(root) && dir != Path::new(".libtorch")).then_some(dir)
}

fn hint_at_cuda(libtorch: &LibTorch) {
    if !libtorch.has_cuda() && has_gpu() {
        tell!(
            "This machine has an NVIDIA GPU, but this LibTorch is for the CPU: `cargo xtask libtorch --cuda` gets the other one"
        );
    }
}

/// An NVIDIA GPU with its driver.
pub fn has_gpu() -> bool {
    Path::new("/dev/nvidia0").exists()
        || Command::new("nvidia-smi")
            .arg("-L")
            .output()
            .is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
}

/// What `cargo xtask libtorch` prints.
pub fn describe(libtorch: &LibTorch) -> String {
    let kind = if libtorch.has_cuda() { "CUDA" } else { "CPU" };
    let size = folder::size(&libtorch.dir)
        .map_or(String::new(), |size| format!(", {}", progress::human(size)));
    format!("LibTorch {VERSION} ({kind}{size}) in {} ({})", libtorch.dir.display(), libtorch.origin)
}
