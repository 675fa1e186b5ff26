//! Resume: after any kind of end, the same command continues the run to the same bits.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use support::disturb::*;
use support::*;

/// Starts a run and sends `signal` once it has written more than `lines` lines of metrics. Retries
/// if the run finishes first.
fn stop_early(signal: &str, lines: usize, overrides: &[&str]) -> (tempfile::TempDir, Output) {
    for _ in 0..10 {
        let dir = temp_dir();
        let out = dir.path().join("run");
        let mut command = train(&out);
        for set in overrides {
            command.args(["--set", set]);
        }
        let mut child = command.spawn().unwrap();
        let metrics_text = || fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        // One line before the first step and one per step, without health lines.
        let steps = || metrics_text().lines().filter(|line| !line.contains("\"health\"")).count();
        let enough = || steps() > lines || child.try_wait().unwrap().is_some();
        assert!(wait_until(enough));
        kill(signal, child.id());
        let output = finish(child);
        if !output.status.success() {
            return (dir, output);
        }
    }
    panic!("the run always finishes before SIG{signal}")
}

#[test]
fn signals_save_and_exit() {
    for (signal, code, steps) in [("INT", 130, 3), ("TERM", 143, 7), ("INT", 130, 0)] {
        // Few regular checkpoints, to tell them from the one that the signal causes.
        let rare = ["train.save_every=50", "train.log_every=1"];
        let (dir, output) = stop_early(signal, steps, &rare);
        let out = dir.path().join("run");
        let printed = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{printed}");
        assert!(printed.contains("stopped and saved at step "), "{printed}");
        let saved = checkpoints(&out);
        assert!(!saved.is_empty() && (saved.len() == 1 || saved[0] == 50), "{printed}");
        assert!(saved[0] >= steps as u64 && saved[0] < 60, "{printed}");
        assert!(!out.join("encoder").exists());
        assert!(out.join("curve.svg").exists());

        let step = format!("resuming from step {} ", saved[saved.len() - 1]);
        let mut command = train(&out);
        command.args(["--set", "train.log_every=1", "--resume"]);
        let printed = succeed(&mut command);
        assert!(printed.contains(&step), "{printed}");
        assert_eq!(result(&undisturbed().run()), result(&out));
    }
}

/// A line of metrics is a mean over steps, including those before a stop.
#[test]
fn metrics_are_unaffected_by_stops() {
    let dir = temp_dir();
    let out = dir.path().join("run");
    for _ in 0..4 {
        let child = train(&out).spawn().unwrap();
        let before = checkpoints(&out).last().copied().unwrap_or(0);
        let _ = wait_until(|| checkpoints(&out).last().is_some_and(|&step| step > before));
        kill("TERM", child.id());
        let output = finish(child);
        if output.status.success() {
            break; // it finished first
        }
        assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    }
    succeed(&mut train(&out));
    assert_same(&undisturbed().run(), &out);
}

/// Killed before the first checkpoint, a run starts over, and logs its start once.
#[test]
fn resumes_if_killed_before_the_first_checkpoint() {
    let (dir, _) = stop_early("KILL", 2, &["train.save_every=60"]);
    let out = dir.path().join("run");
    assert!(checkpoints(&out).is_empty());
    succeed(&mut train(&out));
    assert_same(&undisturbed().run(), &out);
}

/// Which checkpoints are kept does not affect the result.
#[test]
fn keeps_every_nth_checkpoint() {
    let dir = temp_dir();
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
fn locks_the_run_directory() {
    let dir = temp_dir();
    let out = dir.path().join("run");
    let mut child = train(&out).spawn().unwrap();
    assert!(wait_until(|| out.join("metrics.jsonl").exists()));
    kill("STOP", child.id()); // it must not end before the other one starts
    fail(&mut train(&out), &["another process", out.to_str().unwrap(), "--out"]);
    child.kill().unwrap();
    finish(child);
    succeed(&mut train(&out)); // a dead process holds no lock
    assert_same(&undisturbed().run(), &out);
}

#[test]
fn falls_back_from_damaged_checkpoints() {
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
        (&[60, 58, 56], "model.safetensors", &cut, "no checkpoint is", 0),
    ];
    for (steps, file, damage, reason, from) in cases {
        let dir = temp_dir();
        let out = dir.path().join("run");
        copy_dir(&undisturbed().run(), &out);
        fs::remove_dir_all(out.join("encoder")).unwrap();
        for &step in steps {
            damage(&checkpoint(&out, step).join(file));
        }
        let printed = succeed(&mut train(&out));
        let warnings = printed.lines().filter(|line| line.starts_with("warning: ")).count();
        for words in ["step-00000060", "is damaged", reason] {
            assert!(printed.contains(words), "{words}: {printed}");
        }
        assert!(warnings >= steps.len(), "{printed}");
        let is_resumed = printed.contains(&format!("resuming from step {from} "));
        assert_eq!(is_resumed, from > 0, "{printed}");
        assert_same(&undisturbed().run(), &out);
    }
}

#[test]
fn full_disk_keeps_saved_checkpoints() {
    let size: u64 = fs::read_dir(checkpoint(&undisturbed().run(), 60))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let kib = size.div_ceil(1024);
    // Room for one checkpoint and for different parts of the next.
    for part in [20, 60, 95] {
        let dir = temp_dir();
        let Some(disk) = Disk::mount(dir.path().join("disk"), kib * (100 + part) / 100 + 32) else {
            eprintln!("skipped: mount is not permitted");
            return;
        };
        let out = disk.0.join("run");
        let words = ["No space left on device", "the checkpoint of step 4", "older checkpoints"];
        let printed = fail(train(&out).arg("--no-report"), &words);
        assert!(printed.contains(out.to_str().unwrap()), "the error names the file: {printed}");
        assert_eq!(checkpoints(&out), [2], "{printed}");
        assert!(!unfinished(&out), "the incomplete checkpoint is removed: {printed}");
        disk.remount(&format!("size={}k", kib * 20));
        let printed = succeed(&mut train(&out));
        assert!(printed.contains("resuming from step 2 "), "{printed}");
        assert_same(&undisturbed().run(), &out);
    }
}

#[test]
fn reports_a_disk_without_space() {
    let dir = temp_dir();
    // Room for the directory and the lock only.
    let Some(disk) = Disk::mount(dir.path().join("disk"), 4) else {
        eprintln!("skipped: mount is not permitted");
        return;
    };
    let out = disk.0.join("run");
    fail(&mut train(&out), &["No space left on device", out.to_str().unwrap()]);
    disk.remount("size=64m");
    succeed(&mut train(&out));
    assert_same(&undisturbed().run(), &out);
}

#[test]
fn rejects_unwritable_directories() {
    let dir = temp_dir();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    fail(&mut train(&file), &["--out", file.to_str().unwrap()]);
    let below = file.join("run");
    fail(&mut train(&below), &["--out", below.to_str().unwrap(), "Not a directory"]);

    let Some(disk) = Disk::mount(dir.path().join("disk"), 1024) else {
        eprintln!("skipped: mount is not permitted");
        return;
    };
    disk.remount("ro");
    let out = disk.0.join("run");
    fail(&mut train(&out), &[out.to_str().unwrap(), "Read-only file system"]);
}
