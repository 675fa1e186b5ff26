//! Runs the system's Python and pip.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{libtorch, repo};

/// Interpreter to run.
pub const PYTHON: &str = "python3";

/// Packages that benchmarks and tests need besides PyTorch of version [`libtorch::VERSION`].
const PACKAGES: [&str; 6] = [
    "torchvision==0.26.0",
    "transformers==5.23.0",
    "numpy",
    "soundfile",
    "pillow",
    "tensorboard==2.21.0",
];

/// Advice in errors if pip does not run.
pub const PIP_HINT: &str =
    "install Python 3 and pip 22.2 or newer; on Debian: apt-get install python3-pip python3-venv";

/// A PyTorch installation that an interpreter can import.
#[derive(Clone, Debug, Deserialize)]
pub struct Torch {
    /// Version without the `+` suffix.
    pub version: String,
    /// Path of `site-packages/torch`.
    pub dir: PathBuf,
    /// True if built for CUDA.
    pub cuda: bool,
}

/// Prints [`Torch`] as JSON if the interpreter has the version in `argv[1]`.
const FIND_TORCH: &str = r#"
import importlib.metadata, json, sys
if importlib.metadata.version("torch").split("+")[0] != sys.argv[1]:
    sys.exit(1)
import torch, os
cuda = torch.version.cuda is not None
print(json.dumps({"version": torch.__version__.split("+")[0], "dir": os.path.dirname(torch.__file__), "cuda": cuda}))
"#;

/// Returns the PyTorch that `python` imports if it has exactly this version.
pub fn torch(python: &Path, version: &str) -> Option<Torch> {
    let output = Command::new(python)
        .args(["-c", FIND_TORCH, version])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let torch: Torch = serde_json::from_slice(&output.stdout).ok()?;
    (torch.version == version).then_some(torch)
}

/// A wheel that pip would download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedWheel {
    /// Normalised package name.
    pub name: String,
    /// Address of the file.
    pub url: String,
    /// SHA-256, if the index has it.
    pub sha256: Option<String>,
}

/// Returns flags that make pip choose the same files on every system and Python version.
fn pinned_flags(tags: &[&str]) -> Vec<String> {
    let mut flags: Vec<String> = [
        "--no-deps",
        "--only-binary=:all:",
        "--ignore-requires-python",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--abi",
        "none",
    ]
    .map(String::from)
    .to_vec();
    for tag in tags {
        flags.extend([String::from("--platform"), (*tag).to_owned()]);
    }
    flags
}

/// Resolves requirements with pip and its configured index, without downloading.
pub fn resolve_wheels(requirements: &[String], tags: &[&str]) -> Result<Vec<ResolvedWheel>> {
    let mut pip = Command::new(PYTHON);
    pip.args([
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
    ])
    // pip requires a target directory for other platforms; a dry run does not create it.
    .args(["--target", "unused"])
    .args(pinned_flags(tags))
    .args(requirements);
    let output = pip.output().with_context(|| format!("cannot run {PYTHON}; {PIP_HINT}"))?;
    if !output.status.success() {
        bail!("pip cannot find {}: {}", requirements.join(" "), last_line(&output.stderr));
    }
    parse_report(&output.stdout)
}

fn parse_report(json: &[u8]) -> Result<Vec<ResolvedWheel>> {
    #[derive(Deserialize)]
    struct Report {
        install: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        metadata: Metadata,
        download_info: DownloadInfo,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    #[derive(Deserialize)]
    struct DownloadInfo {
        url: String,
        archive_info: Option<ArchiveInfo>,
    }
    #[derive(Deserialize)]
    struct ArchiveInfo {
        hash: Option<String>,
    }
    let report: Report = serde_json::from_slice(json)
        .context("cannot parse the report of pip; pip 22.2 or newer is required")?;
    let wheel = |item: Item| ResolvedWheel {
        name: item.metadata.name.to_lowercase().replace('_', "-"),
        url: item.download_info.url,
        sha256: item
            .download_info
            .archive_info
            .and_then(|info| info.hash)
            .and_then(|hash| hash.strip_prefix("sha256=").map(String::from)),
    };
    Ok(report.install.into_iter().map(wheel).collect())
}

/// Downloads one package into `dir` with pip and returns the file.
///
/// With `tags`, downloads the wheel for these platforms and Python 3.11; without, the file for this
/// machine. Pass `sha256` for source packages: pip runs their setup code to find the name, so pip
/// must check the hash first.
pub fn download(
    requirement: &str,
    sha256: Option<&str>,
    tags: &[&str],
    dir: &Path,
) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let mut pip = Command::new(PYTHON);
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--dest"])
        .arg(dir);
    if !tags.is_empty() {
        pip.args(pinned_flags(tags));
    }
    match sha256 {
        Some(sha256) => {
            let list = dir.with_extension("txt");
            std::fs::write(&list, format!("{requirement} --hash=sha256:{sha256}\n"))?;
            pip.arg("--requirement").arg(list)
        }
        None => pip.arg(requirement),
    };
    // Standard output is for results; progress goes to standard error.
    let status = pip.stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("cannot run {PYTHON}; {PIP_HINT}"))?;
    ensure!(status.success(), "`pip download {requirement}` failed; see its output above");
    only_file(dir)
}

/// Returns the only file in a directory that a package client downloaded into.
pub fn only_file(dir: &Path) -> Result<PathBuf> {
    let files: Vec<PathBuf> = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    match files.as_slice() {
        [file] => Ok(file.clone()),
        files => bail!("expected one file in {}, found {}", dir.display(), files.len()),
    }
}

/// Returns the certificate file that pip is configured to trust.
pub fn pip_certificates() -> Option<PathBuf> {
    let output =
        Command::new(PYTHON).args(["-m", "pip", "config", "get", "global.cert"]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !path.trim().is_empty()).then(|| PathBuf::from(path.trim()))
}

/// Returns the interpreter of a virtual environment with PyTorch, transformers and TensorBoard.
/// Creates it (3 GB download) if it does not exist.
pub fn environment(root: &Path) -> Result<PathBuf> {
    let dir = root.join("target/bench/venv");
    let python = dir.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let mut packages = vec![format!("torch=={}", libtorch::VERSION)];
    packages.extend(PACKAGES.map(String::from));
    // Written last, so that an interrupted installation is resumed.
    let marker = dir.join("packages.txt");
    if std::fs::read_to_string(&marker).is_ok_and(|text| text == packages.join("\n")) {
        return Ok(python);
    }
    repo::run(Command::new(PYTHON).args(["-m", "venv"]).arg(&dir)).context(PIP_HINT)?;
    repo::run(Command::new(&python).args(["-m", "pip", "install"]).args(&packages))?;
    std::fs::write(&marker, packages.join("\n"))
        .with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(python)
}

/// Returns the last line of a program's output, for errors.
pub fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no output").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn parses_reports() {
        let json = r#"{"version": "1", "install": [{
            "download_info": {"url": "https://host/torch.whl", "archive_info": {"hash": "sha256=12ab", "hashes": {"sha256": "12ab"}}},
            "metadata": {"name": "Torch_X", "version": "2"}
        }]}"#;
        let wheel = ResolvedWheel {
            name: "torch-x".into(),
            url: "https://host/torch.whl".into(),
            sha256: Some("12ab".into()),
        };
        assert_eq!(parse_report(json.as_bytes()).unwrap(), [wheel]);
        assert!(parse_report(b"").unwrap_err().to_string().contains("22.2 or newer"));
    }

    #[test]
    fn missing_python_has_no_torch() {
        assert!(torch(Path::new("no-such-python"), libtorch::VERSION).is_none());
    }
}
