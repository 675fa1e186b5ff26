//! What the machine's own Python and pip can tell and fetch.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{libtorch, repo};

/// The interpreter all commands here run.
pub const PYTHON: &str = "python3";

/// What the peer and tests need besides PyTorch of our LibTorch's version.
const PACKAGES: [&str; 6] = [
    "torchvision==0.26.0",
    "transformers==5.23.0",
    "numpy",
    "soundfile",
    "pillow",
    "tensorboard==2.21.0",
];

/// Said whenever pip cannot be run.
pub const PIP_HINT: &str =
    "install Python 3 and pip 22.2 or newer, on Debian: apt-get install python3-pip python3-venv";

/// A PyTorch that an interpreter can import.
#[derive(Clone, Debug, Deserialize)]
pub struct Torch {
    /// Without what follows a `+`.
    pub version: String,
    /// Its `site-packages/torch`.
    pub dir: PathBuf,
    /// Built for CUDA.
    pub cuda: bool,
}

const FIND_TORCH: &str = r#"
import importlib.metadata, json, sys
if importlib.metadata.version("torch").split("+")[0] != sys.argv[1]:
    sys.exit(1)
import torch, os
cuda = torch.version.cuda is not None
print(json.dumps({"version": torch.__version__.split("+")[0], "dir": os.path.dirname(torch.__file__), "cuda": cuda}))
"#;

/// The PyTorch of exactly this version that `python` imports, if it does.
pub fn torch(python: &Path, version: &str) -> Option<Torch> {
    let output = Command::new(python)
        .args(["-c", FIND_TORCH, version])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let torch: Torch = serde_json::from_slice(&output.stdout).ok()?;
    (torch.version == version).then_some(torch)
}

/// A file that pip would download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wheel {
    /// The package's name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// As the index gives it.
    pub sha256: Option<String>,
}

/// Flags that make pip choose the same files whatever Python and system it runs on.
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

/// Asks pip, and so the index that the user configured, where packages are. Downloads nothing.
pub fn locate(requirements: &[String], tags: &[&str]) -> Result<Vec<Wheel>> {
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
    // Foreign platforms are only for a folder of their own; a dry run does not make it.
    .args(["--target", "unused"])
    .args(pinned_flags(tags))
    .args(requirements);
    let output = pip.output().with_context(|| format!("cannot run {PYTHON}: {PIP_HINT}"))?;
    if !output.status.success() {
        bail!("pip does not find {}: {}", requirements.join(" "), last_line(&output.stderr));
    }
    parse_report(&output.stdout)
}

fn parse_report(json: &[u8]) -> Result<Vec<Wheel>> {
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
        .context("pip's report cannot be read (is pip older than 22.2?)")?;
    let wheel = |item: Item| Wheel {
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

/// Downloads one package into `dir` with pip, whose own progress is seen, and returns the file.
///
/// With `tags`, the wheel for those platforms and Python 3.11; without, whatever fits this machine.
/// With `sha256`, nothing else than that: pip runs a part of a package that is no wheel to learn its name.
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
    // pip's progress belongs with ours.
    let status = pip.stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("cannot run {PYTHON}: {PIP_HINT}"))?;
    ensure!(status.success(), "`pip download {requirement}` failed, see above");
    only_file(dir)
}

/// The one file in a folder that a package client was told to download into.
pub fn only_file(dir: &Path) -> Result<PathBuf> {
    let files: Vec<PathBuf> = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    match files.as_slice() {
        [file] => Ok(file.clone()),
        files => bail!("{} files in {} where one was to come", files.len(), dir.display()),
    }
}

/// The certificate file that pip is configured to trust.
pub fn pip_certificates() -> Option<PathBuf> {
    let output =
        Command::new(PYTHON).args(["-m", "pip", "config", "get", "global.cert"]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !path.trim().is_empty()).then(|| PathBuf::from(path.trim()))
}

/// An interpreter with PyTorch, transformers, TensorBoard and what goes with them, about 3 GB, made if need be.
pub fn environment(root: &Path) -> Result<PathBuf> {
    let dir = root.join("target/bench/venv");
    let python = dir.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let mut packages = vec![format!("torch=={}", libtorch::VERSION)];
    packages.extend(PACKAGES.map(String::from));
    // Written last: an unfinished one is finished next time.
    let done = dir.join("packages.txt");
    if std::fs::read_to_string(&done).is_ok_and(|text| text == packages.join("\n")) {
        return Ok(python);
    }
    repo::run(Command::new(PYTHON).args(["-m", "venv"]).arg(&dir)).context(PIP_HINT)?;
    repo::run(Command::new(&python).args(["-m", "pip", "install"]).args(&packages))?;
    std::fs::write(&done, packages.join("\n"))
        .with_context(|| format!("cannot write {}", done.display()))?;
    Ok(python)
}

/// What a tool that failed had to say.
pub fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or("it said nothing")
        .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn reports_are_read() {
        let json = r#"{"version": "1", "install": [{
            "download_info": {"url": "https://host/torch.whl", "archive_info": {"hash": "sha256=12ab", "hashes": {"sha256": "12ab"}}},
            "metadata": {"name": "Torch_X", "version": "2"}
        }]}"#;
        let wheel = Wheel {
            name: "torch-x".into(),
            url: "https://host/torch.whl".into(),
            sha256: Some("12ab".into()),
        };
        assert_eq!(parse_report(json.as_bytes()).unwrap(), [wheel]);
        assert!(parse_report(b"").unwrap_err().to_string().contains("older than"));
    }

    #[test]
    fn a_missing_python_has_no_torch() {
        assert!(torch(Path::new("no-such-python"), libtorch::VERSION).is_none());
    }
}
