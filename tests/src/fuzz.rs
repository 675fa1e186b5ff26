//! Mutation fuzzing: parsers must return a value or an error for any mutation of a valid file. They must
//! not panic, hang or allocate more memory than the file can need.
//!
//! `DATA2VEC_CASES` sets the number of mutations (default 2000). The seeds are in `fuzz/corpus`, shared
//! with the targets of `cargo fuzz`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// Maximum size of a mutated file in bytes.
const MAX_BYTES: usize = 1 << 16;
/// Maximum time for one file, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Number of files between two measurements of the process's memory.
const MEMORY_INTERVAL: u64 = 32;
/// Maximum growth of the peak memory between two measurements in KiB: the decompressed content of a
/// file of [`MAX_BYTES`], and reserves of LibTorch and the allocator.
const MAX_MEMORY_GROWTH: u64 = 256 << 10;

/// Decimal numbers that are edge cases for parsers.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1e999",
    "NaN",
    "-inf",
    "1e-320",
    "255",
    "65536",
    "4294967295",
    "9223372036854775807",
    "18446744073709551616",
    "99999999999999999999999999",
];

/// Generates mutations of seed files.
pub struct Mutator {
    rng: StdRng,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    /// Creates a mutator; the same `seeds` and `seed` give the same files in the same order.
    pub fn new(seeds: Vec<Vec<u8>>, seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), seeds }
    }

    /// Returns the next mutation.
    pub fn mutate(&mut self) -> Vec<u8> {
        let mut bytes = self.seeds.choose(&mut self.rng).cloned().unwrap_or_default();
        for _ in 0..1 << self.rng.random_range(0..4) {
            self.change(&mut bytes);
            bytes.truncate(MAX_BYTES);
        }
        bytes
    }

    /// Returns a random range within `len` bytes, usually a short one.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.rng.random_range(0..=len);
        let max = (len - start).min(1 << self.rng.random_range(0..12));
        start..start + self.rng.random_range(0..=max)
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.push(self.rng.random());
            return;
        }
        let position = self.rng.random_range(0..bytes.len());
        match self.rng.random_range(0..12) {
            0 => bytes[position] ^= 1 << self.rng.random_range(0..8),
            1 => bytes[position] = self.rng.random(),
            2 => {
                bytes[position] =
                    *b"\0\xff\x7f\x80\n\t \"{}[](),:=.-".choose(&mut self.rng).unwrap_or(&0)
            }
            3 => bytes.truncate(position),
            4 => drop(bytes.drain(self.range(bytes.len()))),
            5 => {
                let range = self.range(bytes.len());
                let copy = bytes[range].to_vec();
                bytes.splice(position..position, copy);
            }
            6 => {
                let range = self.range(bytes.len());
                let copy = bytes[range].repeat(self.rng.random_range(2..64));
                bytes.splice(position..position, copy);
            }
            7 => {
                let random: Vec<u8> =
                    (0..self.rng.random_range(1..16)).map(|_| self.rng.random()).collect();
                bytes.splice(position..position, random);
            }
            8 => {
                let other = self.seeds.choose(&mut self.rng).cloned().unwrap_or_default();
                let range = self.range(other.len());
                let at = self.range(bytes.len());
                bytes.splice(at, other[range].iter().copied());
            }
            9 => self.binary_number(bytes, position),
            _ => self.text_number(bytes, position),
        }
    }

    /// Overwrites 1, 2, 4 or 8 bytes with an edge-case integer, in either byte order.
    fn binary_number(&mut self, bytes: &mut [u8], position: usize) {
        let len = bytes.len() as u64;
        let numbers = [0, 1, 2, u64::MAX, u64::MAX - 1, 1 << 31, 1 << 40, 1 << 63, len, len + 1];
        let number = *numbers.choose(&mut self.rng).unwrap_or(&0);
        let width = 1 << self.rng.random_range(0..4);
        let mut raw = number.to_le_bytes()[..width].to_vec();
        if self.rng.random() {
            raw.reverse();
        }
        for (to, from) in bytes[position..].iter_mut().zip(raw) {
            *to = from;
        }
    }

    /// Replaces a decimal number by an edge case.
    fn text_number(&mut self, bytes: &mut Vec<u8>, position: usize) {
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let Some(start) = bytes[position..].iter().position(is_digit).map(|at| position + at)
        else {
            return;
        };
        let len = bytes[start..].iter().take_while(|byte| is_digit(byte)).count();
        let number = NUMBERS.choose(&mut self.rng).unwrap_or(&"0");
        bytes.splice(start..start + len, number.bytes());
    }
}

/// Reads the seed files `fuzz/corpus/NAME`, sorted by file name.
///
/// # Panics
/// Panics if there are none.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find_map(|above| {
        let dir = above.join("fuzz/corpus").join(name);
        dir.is_dir().then_some(dir)
    });
    let dir = dir.unwrap_or_else(|| panic!("no fuzz/corpus/{name}"));
    let entries = fs::read_dir(dir).expect("a directory");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "fuzz/corpus/{name} is empty");
    paths.iter().map(|path| fs::read(path).expect("a file")).collect()
}

/// Calls `parse` with mutations of `fuzz/corpus/NAME`; it returns true for valid input.
///
/// # Panics
/// Panics if `parse` panics, times out or allocates too much memory; the message names the file, which
/// is kept in the temporary directory.
pub fn fuzz(name: &str, mut parse: impl FnMut(&[u8]) -> bool) {
    // Backtraces load the program's debug information, 100 MB that would count as the parser's. With
    // RUST_BACKTRACE set, caught panics print one too.
    static NO_BACKTRACE: Once = Once::new();
    #[allow(clippy::print_stderr, reason = "the test harness captures it")]
    NO_BACKTRACE.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
    let cases = std::env::var("DATA2VEC_CASES").map_or(2_000, |n| n.parse().expect("a number"));
    let seeds = corpus(name);
    for seed in &seeds {
        assert!(parse(seed), "a seed of {name} is invalid");
    }
    let mut mutator = Mutator::new(seeds, 1);
    let (watchdog, started) = (Watchdog::start(name), Instant::now());
    let (mut valid, mut peak, mut group) = (0_u64, memory_peak(), Vec::new());
    for case in 0..cases {
        let bytes = mutator.mutate();
        watchdog.case.store(case + 1, Relaxed);
        match catch_unwind(AssertUnwindSafe(|| parse(&bytes))) {
            Ok(is_valid) => valid += u64::from(is_valid),
            Err(_) => panic!("case {case} of {name}: {}", keep(name, &bytes).display()),
        }
        group.push(bytes);
        if case % MEMORY_INTERVAL == MEMORY_INTERVAL - 1 {
            let now = memory_peak();
            if now > peak + MAX_MEMORY_GROWTH {
                let files: Vec<PathBuf> = group.iter().map(|bytes| keep(name, bytes)).collect();
                panic!("{name}: memory grew from {peak} to {now} KiB for one of {files:?}");
            }
            peak = peak.max(now);
            group.clear();
        }
    }
    let took = started.elapsed();
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{name}: {cases} cases in {took:.1?}, {valid} valid");
}

/// Writes a file to the temporary directory and returns its path.
fn keep(name: &str, bytes: &[u8]) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let path = std::env::temp_dir().join(format!("fuzz-{name}-{:016x}", hasher.finish()));
    fs::write(&path, bytes).expect("written");
    path
}

/// Returns the peak virtual memory of this process in KiB, reserved memory included; 0 if the system
/// does not report it.
fn memory_peak() -> u64 {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// Aborts the process when a case times out; a thread cannot be stopped from outside.
struct Watchdog {
    /// Number of the case, from 1; 0 before the first.
    case: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Watchdog {
    fn start(name: &str) -> Self {
        let watchdog = Self { case: Arc::default(), done: Arc::default() };
        let (case, done, name) = (watchdog.case.clone(), watchdog.done.clone(), name.to_owned());
        std::thread::spawn(move || {
            let (mut last, mut since) = (0, Instant::now());
            while !done.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                let now = case.load(Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if now > 0 && since.elapsed() > TIMEOUT {
                    use std::io::Write;
                    let _ = writeln!(std::io::stderr(), "case {} of {name} timed out", now - 1);
                    std::process::abort();
                }
            }
        });
        watchdog
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.done.store(true, Relaxed);
    }
}
