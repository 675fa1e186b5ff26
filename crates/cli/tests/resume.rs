//! Whatever ends a run, the same command goes on, to the same bits as if nothing had happened.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use support::disturb::*;
use support::*;

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
        // One of them before the first step, and one for each step; figures of health come with them.
        let steps = || told().lines().filter(|line| !line.contains("\"health\"")).count();
        let enough = || steps() > lines || child.try_wait().unwrap().is_some();
        assert!(wait_until(enough));
        kill(signal, child.id());
        let output = finish(child);
        if !output.status.success() {
            return (dir, output);
        }
    }
    panic!("always faster than SIG{signal}")
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

/// The newest and some of the old ones; and nothing of it touches what is learned.
#[test]
fn every_so_many_steps_a_checkpoint_is_kept_for_ever() {
    let dir = folder();
    let out = dir.path().join("run");
    let sets = ["train.keep=2", "train.keep_every=14"];
    let mut command = train(&out);
    for set in sets {
        command.args(["--set", set]);
    }
    succeed(&mut command);
    assert_eq!(checkpoints(&out), [14, 28, 42, 56, 58, 60]);
    assert_same(&undisturbed().run(), &out);
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
        let Some(disk) = Disk::mount(dir.path().join("disk"), kib * (100 + part) / 100 + 32) else {
            eprintln!("skipped: no file system may be mounted here");
            return;
        };
        let out = disk.0.join("run");
        let words = ["No space left on device", "the checkpoint of step 4", "older ones"];
        let said = fail(train(&out).arg("--no-report"), &words);
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
