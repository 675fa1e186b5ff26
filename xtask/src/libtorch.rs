//! `cargo xtask libtorch`: finds the LibTorch that tch requires, or installs it.

mod folder;
mod official;
mod pins;
mod wheels;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{lock, progress, python};

/// Version of LibTorch that torch-sys requires. The pins in `libtorch/pins.rs` are for this
/// version.
pub const VERSION: &str = "2.11.0";

/// Disk space that an installation needs temporarily, in bytes.
const DISK_BYTES: u64 = 700_000_000;

/// A usable LibTorch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibTorch {
    /// Absolute path of the directory with `include` and `lib`.
    pub dir: PathBuf,
    /// Where it comes from, for messages.
    pub origin: String,
    /// True if `LIBTORCH` names it, false for the project's `.libtorch`.
    pub user_provided: bool,
}

impl LibTorch {
    /// Returns the directory of the shared libraries.
    pub fn lib(&self) -> PathBuf {
        self.dir.join("lib")
    }

    /// Returns whether it supports CUDA.
    pub fn has_cuda(&self) -> bool {
        folder::has_cuda(&self.dir)
    }
}

/// Returns the directory of the project's LibTorch.
pub fn default_dir(root: &Path) -> PathBuf {
    root.join(".libtorch")
}

/// Returns an installed LibTorch: `target` if given, else the user's `LIBTORCH`, else the
/// project's.
pub fn find(root: &Path, target: Option<&Path>) -> Result<Option<LibTorch>> {
    if let (None, Some(dir)) = (target, user_libtorch(root)) {
        let dir = std::path::absolute(&dir)?;
        if let Err(error) = folder::check(&dir) {
            bail!("LIBTORCH is not usable: {error:#}; set it to LibTorch {VERSION}, or unset it");
        }
        return Ok(Some(LibTorch { dir, origin: String::from("LIBTORCH"), user_provided: true }));
    }
    let dir = std::path::absolute(target.map_or_else(|| default_dir(root), Path::to_path_buf))?;
    Ok(match folder::state(&dir)? {
        folder::State::Usable(origin) => Some(LibTorch { dir, origin, user_provided: false }),
        _ => None,
    })
}

/// Finds LibTorch, or installs it into `target` [default: the project's `.libtorch`].
pub fn ensure(root: &Path, cuda: bool, target: Option<&Path>) -> Result<LibTorch> {
    let found = find(root, target)?;
    if let Some(found) = found.filter(|found| !cuda || found.has_cuda()) {
        hint_cuda(&found);
        return Ok(found);
    }
    if let (true, None, Some(dir)) = (cuda, target, user_libtorch(root)) {
        bail!("LIBTORCH has no CUDA: {}; unset it to install one that has", dir.display());
    }
    ensure!(
        cfg!(unix),
        "cannot install LibTorch on this system; extract LibTorch {VERSION} and set LIBTORCH to its directory"
    );
    let dir = std::path::absolute(target.map_or_else(|| default_dir(root), Path::to_path_buf))?;
    let partial = folder::partial(&dir);
    let lock = lock::exclusive(&partial.join("lock"), "LibTorch")?;
    // Another command may have installed it while this one waited for the lock.
    if let Some(found) = find(root, Some(&dir))?.filter(|found| !cuda || found.has_cuda()) {
        return Ok(found);
    }
    // Keeps the temporary directory out of version control, wherever it is.
    fs::write(partial.join(".gitignore"), "*\n")?;
    if let Err(error) = folder::ensure_replaceable(&dir) {
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    install(root, cuda, &dir, &partial)?;
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    drop(lock);
    let installed = find(root, Some(&dir))?
        .with_context(|| format!("LibTorch is not usable after installation: {}", dir.display()))?;
    status!("installed LibTorch {VERSION} in {}", dir.display());
    hint_cuda(&installed);
    Ok(installed)
}

fn install(root: &Path, cuda: bool, dir: &Path, partial: &Path) -> Result<()> {
    if let Some(torch) = python_torch(root, cuda) {
        status!("linking {} to the PyTorch {VERSION} in {}", dir.display(), torch.display());
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
    status!("installing LibTorch {VERSION} (CPU) in {}", dir.display());
    let parts = partial.join("parts");
    fs::create_dir_all(&parts).with_context(|| format!("cannot create {}", parts.display()))?;
    let platform = pins::platform()?;
    let resolved = wheels::resolve(platform).map_err(|error| status!("{error:#}"));
    // Without the URLs, `pip download` may still work.
    let installed =
        wheels::install(platform, resolved.as_deref().unwrap_or_default(), &tree, &parts);
    if let (Err(error), Err(())) = (&installed, &resolved) {
        status!("{error:#}");
        let failed = "cannot get LibTorch, neither with pip nor from the PyTorch project's site";
        official::install(&tree, &parts)
            .with_context(|| format!("{failed}; {}", python::PIP_HINT))?;
    } else {
        installed?;
    }
    folder::install_tree(&tree, dir, partial)
}

/// Returns the directory of a PyTorch of version [`VERSION`] in the virtual environment or the
/// default interpreter.
fn python_torch(root: &Path, cuda: bool) -> Option<PathBuf> {
    let venv = root.join(".venv/bin/python3");
    let interpreters =
        venv.is_file().then_some(venv).into_iter().chain([PathBuf::from(python::PYTHON)]);
    interpreters
        .filter_map(|python| python::torch(&python, VERSION))
        .find(|torch| (!cuda || torch.cuda) && folder::check(&torch.dir).is_ok())
        .map(|torch| torch.dir)
}

/// Installs PyTorch for CUDA with its libraries in the project's virtual environment, and links to
/// it.
fn install_cuda(root: &Path, dir: &Path, partial: &Path) -> Result<()> {
    ensure!(
        cfg!(target_os = "linux"),
        "cannot install LibTorch for CUDA on this system: only Linux is supported"
    );
    crate::disk::ensure_free(root, 9_000_000_000)?;
    let venv = root.join(".venv");
    let requirement = format!("torch=={VERSION}");
    status!("installing {requirement} (CUDA) in {}, 2.5 GB download", venv.display());
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
        "check the network and run the command again",
    )?;
    let torch = python::torch(&python, VERSION).with_context(|| {
        format!(
            "cannot import PyTorch {VERSION} from {}; remove it and run the command again",
            venv.display()
        )
    })?;
    ensure!(
        torch.cuda,
        "pip installed a PyTorch without CUDA; check the package index in `pip config list`"
    );
    folder::link(&torch.dir, dir, partial)
}

/// Runs a command whose output goes to standard error; errors end with `advice`.
fn run(command: &mut Command, advice: &str) -> Result<()> {
    let line = format!("{command:?}").replace('"', "");
    let status = command.stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("cannot run `{line}`; {advice}"))?;
    ensure!(status.success(), "`{line}` failed, see its output above; {advice}");
    Ok(())
}

/// Returns `LIBTORCH` if the user set it, not `.cargo/config.toml`.
fn user_libtorch(root: &Path) -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("LIBTORCH").filter(|dir| !dir.is_empty())?);
    (dir != default_dir(root) && dir != Path::new(".libtorch")).then_some(dir)
}

fn hint_cuda(libtorch: &LibTorch) {
    if !libtorch.has_cuda() && has_gpu() {
        status!(
            "this LibTorch does not use the NVIDIA GPU; run `cargo xtask libtorch --cuda` for one that does"
        );
    }
}

/// Returns whether this machine has an NVIDIA GPU with a driver.
pub fn has_gpu() -> bool {
    Path::new("/dev/nvidia0").exists()
        || Command::new("nvidia-smi")
            .arg("-L")
            .output()
            .is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
}

/// Returns one line on version, kind, size and directory.
pub fn describe(libtorch: &LibTorch) -> String {
    let kind = if libtorch.has_cuda() { "CUDA" } else { "CPU" };
    let size = folder::size(&libtorch.dir)
        .map_or(String::new(), |size| format!(", {}", progress::format_bytes(size)));
    format!("LibTorch {VERSION} ({kind}{size}) in {} ({})", libtorch.dir.display(), libtorch.origin)
}
