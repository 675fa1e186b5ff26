//! A run that is long enough to be disturbed, and what disturbs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::*;

/// Long enough to be disturbed; a checkpoint each other step, lines that a stop falls between.
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

/// The run that all others must equal.
pub fn undisturbed() -> &'static Undisturbed {
    static RUN: OnceLock<Undisturbed> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = Undisturbed { dir: folder() };
        corpus(run.dir.path());
        succeed(&mut pretrain(&run.data(), &run.run(), &LONG));
        run
    })
}

pub fn train(out: &Path) -> Command {
    pretrain(&undisturbed().data(), out, &LONG)
}

/// Whether something is being written to the checkpoints right now, or was when the run was killed.
pub fn unfinished(out: &Path) -> bool {
    let Ok(entries) = fs::read_dir(out.join("checkpoints")) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".unfinished"))
}

/// A small file system of its own, where one may be mounted.
pub struct Disk(pub PathBuf);

impl Disk {
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
