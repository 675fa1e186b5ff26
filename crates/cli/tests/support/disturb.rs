//! A run that is long enough to interrupt, and helpers that interrupt it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::*;

/// Overrides of a run that is long enough to interrupt, with a checkpoint every other step and
/// metrics at other steps than checkpoints.
pub const LONG: [&str; 6] = [
    "train.steps=60",
    "train.save_every=2",
    "train.log_every=5",
    "train.eval_every=15",
    "train.keep=3",
    "train.workers=2",
];

pub struct Undisturbed {
    dir: tempfile::TempDir,
}

impl Undisturbed {
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }
}

/// Returns the uninterrupted run that all others must equal.
pub fn undisturbed() -> &'static Undisturbed {
    static RUN: OnceLock<Undisturbed> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = Undisturbed { dir: temp_dir() };
        corpus(run.dir.path());
        succeed(&mut pretrain(&run.data(), &run.run(), &LONG));
        run
    })
}

pub fn train(out: &Path) -> Command {
    pretrain(&undisturbed().data(), out, &LONG)
}

/// Returns whether a checkpoint is being written, or was when the run was killed.
pub fn unfinished(out: &Path) -> bool {
    let Ok(entries) = fs::read_dir(out.join("checkpoints")) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".unfinished"))
}

/// A small file system, unmounted on drop.
pub struct Disk(pub PathBuf);

impl Disk {
    /// Mounts it; `None` without the permission.
    pub fn mount(path: PathBuf, kib: u64) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let size = format!("size={kib}k");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        mount.is_ok_and(|mount| mount.status.success()).then_some(Self(path))
    }

    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(
            Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success()
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
