//! Random faults: a run that is killed, out of disk space or damaged any number of times ends with
//! the same bits as an undisturbed one. `DATA2VEC_KILLS=200` raises the number of kills.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stderr, reason = "reports faults that cannot be injected here")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use support::disturb::*;
use support::*;

/// A run into which faults are injected.
struct FaultyRun {
    rng: StdRng,
    dir: tempfile::TempDir,
    disk: Option<Disk>,
    /// Number of the run: one that finishes before a fault is followed by another.
    run: usize,
    tally: BTreeMap<String, usize>,
}

impl FaultyRun {
    fn new(seed: u64) -> Self {
        let dir = temp_dir();
        let disk = Disk::mount(dir.path().join("disk"), 32 << 10);
        if disk.is_none() {
            eprintln!("skipped full disks: mount is not permitted");
        }
        copy_dir(&undisturbed().data(), &dir.path().join("data"));
        let rng = StdRng::seed_from_u64(seed);
        Self { rng, dir, disk, run: 0, tally: BTreeMap::new() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn out(&self) -> PathBuf {
        let parent = self.disk.as_ref().map_or(self.dir.path(), |disk| &disk.0);
        parent.join(format!("run-{}", self.run))
    }

    fn command(&self) -> Command {
        let mut command = pretrain(&self.data(), &self.out(), &LONG);
        command.args(["--set", "train.save_every=5", "--set", "train.max_bad_examples=0"]);
        command
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.tally.entry(what.into()).or_default() += 1;
    }

    fn kills(&self) -> usize {
        self.tally.iter().filter(|(what, _)| what.starts_with("SIG")).map(|(_, n)| n).sum()
    }

    /// Waits for a random moment: during startup, during a checkpoint, or between. Returns which.
    fn wait_for_random_moment(&mut self, child: &mut Child) -> &'static str {
        let out = self.out();
        // The first line of metrics is written after startup.
        let metrics_len = || fs::metadata(out.join("metrics.jsonl")).map_or(0, |meta| meta.len());
        let before = metrics_len();
        let mut wait_for = |done: &dyn Fn() -> bool| {
            assert!(wait_until(|| done() || child.try_wait().unwrap().is_some()));
        };
        let (what, most) = match self.rng.random_range(0..4) {
            0 => ("during startup", 300_000),
            1 => {
                wait_for(&|| metrics_len() != before);
                wait_for(&|| unfinished(&out));
                ("during a checkpoint", 1_000)
            }
            _ => {
                wait_for(&|| metrics_len() != before);
                ("between", 150_000)
            }
        };
        std::thread::sleep(Duration::from_micros(self.rng.random_range(0..most)));
        what
    }

    /// Waits for the end of a run with a fault. Returns its output if it failed; if it succeeded,
    /// checks the result and starts over with a new run.
    fn end(&mut self, child: Child) -> Option<Output> {
        let output = finish(child);
        let printed = stderr(&output);
        assert!(!printed.contains("panicked") && !printed.contains("internal error"), "{printed}");
        if !output.status.success() {
            return Some(output);
        }
        assert_same(&undisturbed().run(), &self.out());
        fs::remove_dir_all(self.out()).unwrap();
        self.run += 1;
        None
    }

    fn kill(&mut self) {
        let mut child = self.command().spawn().unwrap();
        let moment = self.wait_for_random_moment(&mut child);
        let signal = *["KILL", "KILL", "TERM", "INT"].choose(&mut self.rng).unwrap();
        kill(signal, child.id());
        let twice = signal != "KILL" && self.rng.random_range(0..4) == 0;
        if twice {
            kill(signal, child.id()); // the second signal ends it at once
        }
        if self.end(child).is_some() {
            let twice = if twice { " twice" } else { "" };
            self.count(format!("SIG{signal}{twice} {moment}"));
        }
    }

    /// Fills the disk up to a few pages at a random moment.
    fn fill_the_disk(&mut self) {
        let Some(disk) = &self.disk else { return };
        let ballast = disk.0.join("ballast");
        let mut child = self.command().spawn().unwrap();
        self.wait_for_random_moment(&mut child);
        let mut file = File::create(&ballast).unwrap();
        let zeros = [0; 4096];
        while file.write_all(&zeros).is_ok() {}
        let size = file.metadata().unwrap().len();
        file.set_len(size.saturating_sub(self.rng.random_range(0..200) << 10)).unwrap();
        let ended = self.end(child);
        fs::remove_file(&ballast).unwrap();
        if let Some(output) = ended {
            let printed = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{printed}");
            assert!(
                printed.lines().last().unwrap().contains("No space left on device"),
                "{printed}"
            );
            self.count("full disk");
        }
    }

    /// Moves the data away at a random moment.
    fn hide_the_data(&mut self) {
        let (data, hidden) = (self.data(), self.dir.path().join("hidden"));
        let mut child = self.command().spawn().unwrap();
        self.wait_for_random_moment(&mut child);
        fs::rename(&data, &hidden).unwrap();
        let ended = self.end(child);
        fs::rename(&hidden, &data).unwrap();
        if let Some(output) = ended {
            let printed = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{printed}");
            let error = printed.lines().last().unwrap();
            assert!(
                error.starts_with("error: ") && error.contains(data.to_str().unwrap()),
                "{printed}"
            );
            self.count("data gone");
        }
    }

    /// Truncates, changes, empties or removes a file of the newest checkpoint.
    fn damage(&mut self) {
        let out = self.out();
        let [.., _, newest] = checkpoints(&out)[..] else { return };
        let entries = fs::read_dir(checkpoint(&out, newest)).unwrap();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let path = files.choose(&mut self.rng).unwrap();
        let mut bytes = fs::read(path).unwrap();
        let place = self.rng.random_range(0..bytes.len());
        match self.rng.random_range(0..4) {
            0 => bytes.truncate(place),
            1 => bytes.clear(),
            2 => bytes.push(0),
            _ if path.ends_with("checkpoint.json") => {
                // A change of white space would be valid: change a digit.
                let digits: Vec<usize> =
                    (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                bytes[*digits.choose(&mut self.rng).unwrap()] ^= 1;
            }
            _ => bytes[place] ^= 1 << self.rng.random_range(0..8),
        }
        match self.rng.random_range(0..8) {
            0 => fs::remove_file(path).unwrap(),
            _ => overwrite(path, &bytes),
        }
        let (mut command, out) = (self.command(), out.display().to_string());
        let mut child = command.spawn().unwrap();
        self.wait_for_random_moment(&mut child);
        kill("TERM", child.id());
        if let Some(output) = self.end(child) {
            let printed = stderr(&output);
            if output.status.code() == Some(143) && printed.contains("resuming from step ") {
                let damaged = format!("{out}/checkpoints/step-{newest:08} is damaged");
                assert!(printed.contains(&damaged), "{}: {printed}", path.display());
            }
            self.count("damaged checkpoint");
        }
    }
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn survives_random_faults() {
    let kills = std::env::var("DATA2VEC_KILLS").map_or(16, |n| n.parse().unwrap());
    let mut run = FaultyRun::new(20);
    while run.kills() < kills {
        match run.rng.random_range(0..10) {
            0 => run.fill_the_disk(),
            1 => run.hide_the_data(),
            2 => run.damage(),
            _ => run.kill(),
        }
    }
    eprintln!("{:#?}, {} completed runs", run.tally, run.run);
    succeed(&mut run.command());
    assert_same(&undisturbed().run(), &run.out());
    assert!(!unfinished(&run.out()), "incomplete checkpoints are removed");
}
