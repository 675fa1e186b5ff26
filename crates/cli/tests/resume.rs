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
    let cases: [(&[u64], &str, Damage, &str, u64); 5] = [
        (&[60], "model.safetensors", &cut, "were written", 58),
        (&[60], "teacher.safetensors", &flip, "was changed after it was written", 58),
        (&[60], "optimizer.safetensors", &remove, "No such file", 58),
        (&[60], "checkpoint.json", &empty, "checkpoint.json", 58),
        (&[60, 58], "checkpoint.json", &cut, "checkpoint.json", 56),
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
        assert!(printed.contains(&format!("resuming from step {from} ")), "{printed}");
        assert_same(&undisturbed().run(), &out);
    }
}

/// Starting again would discard the log of the run.
#[test]
fn stops_if_no_checkpoint_is_intact() {
    let dir = temp_dir();
    let out = dir.path().join("run");
    copy_dir(&undisturbed().run(), &out);
    for step in [60, 58, 56] {
        fs::write(checkpoint(&out, step).join("model.safetensors"), "damaged").unwrap();
    }
    let lines = metrics(&out);
    fail(&mut train(&out), &["none of 3 checkpoints is intact", "step-00000060", "--out"]);
    assert_eq!(metrics(&out), lines);
}

#[test]
fn refuses_other_data() {
    let dir = temp_dir();
    let (out, moved, other) =
        (dir.path().join("run"), dir.path().join("moved"), dir.path().join("other"));
    copy_dir(&undisturbed().run(), &out);
    let record = fs::read_to_string(out.join("run.json")).unwrap();
    copy_dir(&undisturbed().data(), &moved);
    copy_dir(&undisturbed().data(), &other);
    fs::remove_file(other.join("speaker/00.wav")).unwrap();
    let words = ["was started on other data", "now", "choose another --out", "--other-data"];
    fail(&mut pretrain(&other, &out, &LONG), &words);
    assert_eq!(fs::read_to_string(out.join("run.json")).unwrap(), record, "nothing is changed");
    let printed = succeed(pretrain(&other, &out, &LONG).arg("--other-data"));
    assert!(printed.contains("warning: ") && printed.contains("was started on other data"));
    fs::write(out.join("run.json"), record).unwrap();
    let printed = succeed(&mut pretrain(&moved, &out, &LONG));
    assert!(!printed.contains("other data"), "the same data at another path: {printed}");
}

/// GNU `timeout` sends a signal to a process and to its group.
#[test]
fn a_signal_that_arrives_twice_counts_once() {
    let dir = temp_dir();
    let out = dir.path().join("run");
    let child = train(&out).spawn().unwrap();
    assert!(wait_until(|| !checkpoints(&out).is_empty()));
    kill("TERM", child.id());
    std::thread::sleep(std::time::Duration::from_millis(20));
    kill("TERM", child.id());
    let output = finish(child);
    let printed = stderr(&output);
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(143), "{printed}");
        assert!(
            printed.contains("stopping: ") && printed.contains("stopped and saved"),
            "{printed}"
        );
    }
    succeed(&mut train(&out));
    assert_same(&undisturbed().run(), &out);
}

/// A start that is refused leaves no run directory behind.
#[test]
fn failed_starts_leave_nothing() {
    let dir = temp_dir();
    let out = dir.path().join("run");
    fail(&mut pretrain(Path::new("/no/such/data"), &out, &LONG), &["/no/such/data"]);
    assert!(!out.exists());
    let mut plan = train(&out);
    assert!(output(plan.arg("--plan")).status.success());
    assert!(!out.exists());
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
