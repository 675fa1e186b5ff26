//! Whatever ends a run, the same command goes on, to the same bits as if nothing had happened.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::*;

/// Long enough to be disturbed; a checkpoint each other step, lines that a stop falls between.
const LONG: [&str; 6] = [
    "train.steps=60",
    "train.save_every=2",
    "train.log_every=5",
    "train.eval_every=15",
    "train.keep=3",
    "train.workers=2",
];

struct Undisturbed {
    dir: tempfile::TempDir,
}

impl Undisturbed {
    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }
}

/// The run that all others must equal.
fn undisturbed() -> &'static Undisturbed {
    static RUN: OnceLock<Undisturbed> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = Undisturbed { dir: folder() };
        corpus(run.dir.path());
        succeed(&mut pretrain(&run.data(), &run.run(), &LONG));
        run
    })
}

fn train(out: &Path) -> Command {
    pretrain(&undisturbed().data(), out, &LONG)
}

/// A run in a new folder, ended by `signal` as soon as it has told more than `lines` lines. On a machine
/// that is busy enough it can be faster than its observer: then again.
fn ended_early(signal: &str, lines: usize, overrides: &[&str]) -> (tempfile::TempDir, Output) {
    for _ in 0..10 {
        let dir = folder();
        let out = dir.path().join("run");
        let mut command = train(&out);
        for set in overrides {
            command.args(["--set", set]);
        }
        let mut child = command.spawn().unwrap();
        let told = || fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        let enough = || told().lines().count() > lines || child.try_wait().unwrap().is_some();
        assert!(wait_until(enough));
        kill(signal, child.id());
        let output = finish(child);
        if !output.status.success() {
            return (dir, output);
        }
    }
    panic!("always faster than SIG{signal}")
}

/// Whether something is being written to the checkpoints right now, or was when the run was killed.
fn unfinished(out: &Path) -> bool {
    let Ok(entries) = fs::read_dir(out.join("checkpoints")) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".unfinished"))
}

#[test]
fn ctrl_c_and_sigterm_save_and_go() {
    for (signal, code, steps) in [("INT", 130, 3), ("TERM", 143, 7), ("INT", 130, 0)] {
        // Few checkpoints of its own accord: the one that the signal asks for is told apart.
        let rare = ["train.save_every=50", "train.log_every=1"];
        let (dir, output) = ended_early(signal, steps, &rare);
        let out = dir.path().join("run");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("stopped and saved at step "), "{said}");
        let saved = checkpoints(&out);
        assert!(!saved.is_empty() && (saved.len() == 1 || saved[0] == 50), "{said}");
        assert!(saved[0] >= steps as u64 && saved[0] < 60, "{said}");
        assert!(!out.join("encoder").exists());
        assert!(out.join("curve.svg").exists());

        let step = format!("going on from step {} ", saved[saved.len() - 1]);
        let mut command = train(&out);
        command.args(["--set", "train.log_every=1", "--resume"]);
        let said = succeed(&mut command);
        assert!(said.contains(&step), "{said}");
        assert_eq!(result(&undisturbed().run()), result(&out));
    }
}

/// A line of metrics is a mean over steps: those before a stop count as well.
#[test]
fn metrics_do_not_tell_of_a_stop() {
    let dir = folder();
    let out = dir.path().join("run");
    for _ in 0..4 {
        let child = train(&out).spawn().unwrap();
        let before = checkpoints(&out).last().copied().unwrap_or(0);
        let _ = wait_until(|| checkpoints(&out).last().is_some_and(|&step| step > before));
        kill("TERM", child.id());
        let output = finish(child);
        if output.status.success() {
            break; // it was faster
        }
        assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    }
    succeed(&mut train(&out));
    assert_same(&undisturbed().run(), &out);
}

/// Killed before the first checkpoint: the start is made again, and told once.
#[test]
fn killed_before_the_first_checkpoint() {
    let (dir, _) = ended_early("KILL", 2, &["train.save_every=60"]);
    let out = dir.path().join("run");
    assert!(checkpoints(&out).is_empty());
    succeed(&mut train(&out));
    assert_same(&undisturbed().run(), &out);
}

#[test]
fn twenty_kills_at_random_moments() {
    let seed = 20;
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = folder();
    let mut run = 0;
    let (mut starting, mut stepping, mut writing) = (0, 0, 0);
    while starting + stepping + writing < 20 {
        let out = dir.path().join(format!("run-{run}"));
        let mut child = train(&out).args(["--set", "train.save_every=5"]).spawn().unwrap();
        let random = |rng: &mut StdRng, most| {
            std::thread::sleep(Duration::from_micros(rng.random_range(0..most)));
        };
        // Lines of metrics come when the start is over.
        let told = || fs::metadata(out.join("metrics.jsonl")).map_or(0, |meta| meta.len());
        let before = told();
        let mut wait_for = |done: &dyn Fn() -> bool| {
            assert!(wait_until(|| done() || child.try_wait().unwrap().is_some()));
        };
        let in_start = rng.random_range(0..4) == 0;
        if in_start {
            random(&mut rng, 300_000);
        } else {
            wait_for(&|| told() != before);
            match rng.random_range(0..3) {
                0 => wait_for(&|| unfinished(&out)),
                _ => random(&mut rng, 150_000),
            }
        }
        child.kill().unwrap();
        let killed = finish(child);
        match killed.status.signal() {
            Some(9) if in_start => starting += 1,
            Some(9) if unfinished(&out) => writing += 1,
            Some(9) => stepping += 1,
            // It was faster.
            _ => {
                assert!(killed.status.success(), "seed {seed}: {}", stderr(&killed));
                assert_same(&undisturbed().run(), &out);
                run += 1;
            }
        }
    }
    eprintln!("{starting} kills in the start, {stepping} in steps, {writing} in a checkpoint");
    let out = dir.path().join(format!("run-{run}"));
    succeed(&mut train(&out));
    assert_same(&undisturbed().run(), &out);
    assert!(!unfinished(&out), "what was being written is cleared away");
}

#[test]
fn one_process_a_folder() {
    let dir = folder();
    let out = dir.path().join("run");
    let mut child = train(&out).spawn().unwrap();
    assert!(wait_until(|| out.join("metrics.jsonl").exists()));
    kill("STOP", child.id()); // so that it does not end before the other one has started
    fail(&mut train(&out), &["another process", out.to_str().unwrap(), "--out"]);
    child.kill().unwrap();
    finish(child);
    succeed(&mut train(&out)); // the dead hold no locks
    assert_same(&undisturbed().run(), &out);
}

#[test]
fn damaged_checkpoints_give_way_to_the_one_before() {
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let empty = |path: &Path| fs::write(path, "").unwrap();
    type Damage<'a> = &'a dyn Fn(&Path);
    let cases: [(&[u64], &str, Damage, &str, u64); 6] = [
        (&[60], "model.safetensors", &cut, "were written", 58),
        (&[60], "teacher.safetensors", &flip, "was changed after it was written", 58),
        (&[60], "optimizer.safetensors", &remove, "No such file", 58),
        (&[60], "checkpoint.json", &empty, "checkpoint.json", 58),
        (&[60, 58], "checkpoint.json", &cut, "checkpoint.json", 56),
        (&[60, 58, 56], "model.safetensors", &cut, "no checkpoint is whole", 0),
    ];
    for (steps, file, damage, reason, from) in cases {
        let dir = folder();
        let out = dir.path().join("run");
        copy_folder(&undisturbed().run(), &out);
        fs::remove_dir_all(out.join("encoder")).unwrap();
        for &step in steps {
            damage(&checkpoint(&out, step).join(file));
        }
        let said = succeed(&mut train(&out));
        let notes = said.lines().filter(|line| line.starts_with("note: ")).count();
        for words in ["step-00000060", "is damaged", reason] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert!(notes >= steps.len(), "{said}");
        let going_on = said.contains(&format!("going on from step {from} "));
        assert_eq!(going_on, from > 0, "{said}");
        assert_same(&undisturbed().run(), &out);
    }
}

/// A small file system of its own, where one may be mounted.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf, kib: u64) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let size = format!("size={kib}k");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        mount.is_ok_and(|mount| mount.status.success()).then_some(Self(path))
    }

    fn remount(&self, options: &str) {
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

#[test]
fn a_full_disk_costs_nothing_that_was_saved() {
    let size: u64 = fs::read_dir(checkpoint(&undisturbed().run(), 60))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let kib = size.div_ceil(1024);
    // Room for one checkpoint and a part of the next, at several places of the part.
    for part in [20, 60, 95] {
        let dir = folder();
        let Some(disk) = Disk::mount(dir.path().join("disk"), kib * (100 + part) / 100 + 24) else {
            eprintln!("skipped: no file system may be mounted here");
            return;
        };
        let out = disk.0.join("run");
        let words = ["No space left on device", "the checkpoint of step 4", "older ones"];
        let said = fail(&mut train(&out), &words);
        assert!(said.contains(out.to_str().unwrap()), "the file is named: {said}");
        assert_eq!(checkpoints(&out), [2], "{said}");
        assert!(!unfinished(&out), "the part is gone: {said}");
        disk.remount(&format!("size={}k", kib * 20));
        let said = succeed(&mut train(&out));
        assert!(said.contains("going on from step 2 "), "{said}");
        assert_same(&undisturbed().run(), &out);
    }
}

#[test]
fn a_disk_without_any_room() {
    let dir = folder();
    // A page for the folder and the lock, none for more.
    let Some(disk) = Disk::mount(dir.path().join("disk"), 4) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    let out = disk.0.join("run");
    fail(&mut train(&out), &["No space left on device", out.to_str().unwrap()]);
    disk.remount("size=64m");
    succeed(&mut train(&out));
    assert_same(&undisturbed().run(), &out);
}

#[test]
fn folders_that_cannot_be_written() {
    let dir = folder();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    fail(&mut train(&file), &["--out", file.to_str().unwrap()]);
    let below = file.join("run");
    fail(&mut train(&below), &["--out", below.to_str().unwrap(), "Not a directory"]);

    let Some(disk) = Disk::mount(dir.path().join("disk"), 1024) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    disk.remount("ro");
    let out = disk.0.join("run");
    fail(&mut train(&out), &[out.to_str().unwrap(), "Read-only file system"]);
}
