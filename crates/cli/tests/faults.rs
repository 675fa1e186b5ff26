//! Whatever happens to a run, and however often, it ends with the same bits as one that nothing happened
//! to. `DATA2VEC_KILLS=200` asks for more than the few kills that fit every test run.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stderr, reason = "what could not be tried here, and what was")]

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

/// A run in a place where everything may happen to it.
struct Victim {
    rng: StdRng,
    dir: tempfile::TempDir,
    disk: Option<Disk>,
    /// Which of several runs: one that was faster than all that happened to it is followed by another.
    run: usize,
    tally: BTreeMap<String, usize>,
}

impl Victim {
    fn new(seed: u64) -> Self {
        let dir = folder();
        let disk = Disk::mount(dir.path().join("disk"), 32 << 10);
        if disk.is_none() {
            eprintln!("no file system may be mounted here: no full disks");
        }
        copy_folder(&undisturbed().data(), &dir.path().join("data"));
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

    /// Waits for a moment in the start, in a checkpoint or between; what it was.
    fn wait_for_a_moment(&mut self, child: &mut Child) -> &'static str {
        let out = self.out();
        // Lines of metrics come when the start is over.
        let told = || fs::metadata(out.join("metrics.jsonl")).map_or(0, |meta| meta.len());
        let before = told();
        let mut wait_for = |done: &dyn Fn() -> bool| {
            assert!(wait_until(|| done() || child.try_wait().unwrap().is_some()));
        };
        let (what, most) = match self.rng.random_range(0..4) {
            0 => ("in the start", 300_000),
            1 => {
                wait_for(&|| told() != before);
                wait_for(&|| unfinished(&out));
                ("in a checkpoint", 1_000)
            }
            _ => {
                wait_for(&|| told() != before);
                ("between", 150_000)
            }
        };
        std::thread::sleep(Duration::from_micros(self.rng.random_range(0..most)));
        what
    }

    /// The end of a run that something happened to. One that was faster must be right, and a new one
    /// begins. Otherwise, its output.
    fn end(&mut self, child: Child) -> Option<Output> {
        let output = finish(child);
        let said = stderr(&output);
        assert!(!said.contains("panicked") && !said.contains("internal error"), "{said}");
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
        let moment = self.wait_for_a_moment(&mut child);
        let signal = *["KILL", "KILL", "TERM", "INT"].choose(&mut self.rng).unwrap();
        kill(signal, child.id());
        let twice = signal != "KILL" && self.rng.random_range(0..4) == 0;
        if twice {
            kill(signal, child.id()); // the second one ends it at once
        }
        if self.end(child).is_some() {
            let twice = if twice { " twice" } else { "" };
            self.count(format!("SIG{signal}{twice} {moment}"));
        }
    }

    /// The disk is full but for some pages from some moment on.
    fn fill_the_disk(&mut self) {
        let Some(disk) = &self.disk else { return };
        let ballast = disk.0.join("ballast");
        let mut child = self.command().spawn().unwrap();
        self.wait_for_a_moment(&mut child);
        let mut file = File::create(&ballast).unwrap();
        let zeros = [0; 4096];
        while file.write_all(&zeros).is_ok() {}
        let size = file.metadata().unwrap().len();
        file.set_len(size.saturating_sub(self.rng.random_range(0..200) << 10)).unwrap();
        let ended = self.end(child);
        fs::remove_file(&ballast).unwrap();
        if let Some(output) = ended {
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.lines().last().unwrap().contains("No space left on device"), "{said}");
            self.count("full disk");
        }
    }

    /// The data are gone from some moment on.
    fn hide_the_data(&mut self) {
        let (data, hidden) = (self.data(), self.dir.path().join("hidden"));
        let mut child = self.command().spawn().unwrap();
        self.wait_for_a_moment(&mut child);
        fs::rename(&data, &hidden).unwrap();
        let ended = self.end(child);
        fs::rename(&hidden, &data).unwrap();
        if let Some(output) = ended {
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            let error = said.lines().last().unwrap();
            assert!(
                error.starts_with("error: ") && error.contains(data.to_str().unwrap()),
                "{said}"
            );
            self.count("data gone");
        }
    }

    /// A file of the newest checkpoint is cut, changed, emptied or gone.
    fn damage(&mut self) {
        let out = self.out();
        let [.., _, newest] = checkpoints(&out)[..] else { return };
        let folder = fs::read_dir(checkpoint(&out, newest)).unwrap();
        let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let path = files.choose(&mut self.rng).unwrap();
        let mut bytes = fs::read(path).unwrap();
        let place = self.rng.random_range(0..bytes.len());
        match self.rng.random_range(0..4) {
            0 => bytes.truncate(place),
            1 => bytes.clear(),
            2 => bytes.push(0),
            _ if path.ends_with("checkpoint.json") => {
                // White space may change: a digit may not.
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
        self.wait_for_a_moment(&mut child);
        kill("TERM", child.id());
        if let Some(output) = self.end(child) {
            let said = stderr(&output);
            if output.status.code() == Some(143) && said.contains("going on from step ") {
                let damaged = format!("{out}/checkpoints/step-{newest:08} is damaged");
                assert!(said.contains(&damaged), "{}: {said}", path.display());
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
fn a_run_survives_whatever_happens_to_it() {
    let kills = std::env::var("DATA2VEC_KILLS").map_or(16, |n| n.parse().unwrap());
    let mut victim = Victim::new(20);
    while victim.kills() < kills {
        match victim.rng.random_range(0..10) {
            0 => victim.fill_the_disk(),
            1 => victim.hide_the_data(),
            2 => victim.damage(),
            _ => victim.kill(),
        }
    }
    eprintln!("{:#?}, {} whole runs among them", victim.tally, victim.run);
    succeed(&mut victim.command());
    assert_same(&undisturbed().run(), &victim.out());
    assert!(!unfinished(&victim.out()), "what was being written is cleared away");
}
