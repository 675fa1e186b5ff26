//! Mutations of good files, by the million: whatever comes out of them, a parser gives an answer or an
//! error; it does not panic, hang or take memory that the file cannot need.
//!
//! `DATA2VEC_CASES=1000000` asks for more than the few thousand that fit every test run. The seeds are in
//! `fuzz/corpus`, which the targets of `cargo fuzz` share.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// Largest file that mutations make.
const LARGEST: usize = 1 << 16;
/// Longest that one file may take, on a busy machine.
const LONGEST: Duration = Duration::from_secs(20);
/// Files between two looks at the process's memory.
const GROUP: u64 = 32;
/// What the process may ask for beyond its peak until then, in KiB: what a file of [`LARGEST`] bytes
/// unpacks to, and what LibTorch and the allocator set aside.
const MEMORY: u64 = 256 << 10;

/// Numbers that parsers stumble over, as they stand in texts.
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

/// Files made of others.
pub struct Mutator {
    rng: StdRng,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    /// The same files in the same order for the same `seeds` and `number`.
    pub fn new(seeds: Vec<Vec<u8>>, number: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(number), seeds }
    }

    /// The next one.
    pub fn mutate(&mut self) -> Vec<u8> {
        let mut bytes = self.seeds.choose(&mut self.rng).cloned().unwrap_or_default();
        for _ in 0..1 << self.rng.random_range(0..4) {
            self.change(&mut bytes);
            bytes.truncate(LARGEST);
        }
        bytes
    }

    /// A part of `len` bytes, mostly a short one.
    fn part(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.rng.random_range(0..=len);
        let most = (len - start).min(1 << self.rng.random_range(0..12));
        start..start + self.rng.random_range(0..=most)
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.push(self.rng.random());
            return;
        }
        let place = self.rng.random_range(0..bytes.len());
        match self.rng.random_range(0..12) {
            0 => bytes[place] ^= 1 << self.rng.random_range(0..8),
            1 => bytes[place] = self.rng.random(),
            2 => {
                bytes[place] =
                    *b"\0\xff\x7f\x80\n\t \"{}[](),:=.-".choose(&mut self.rng).unwrap_or(&0)
            }
            3 => bytes.truncate(place),
            4 => drop(bytes.drain(self.part(bytes.len()))),
            5 => {
                let part = self.part(bytes.len());
                let copy = bytes[part].to_vec();
                bytes.splice(place..place, copy);
            }
            6 => {
                let part = self.part(bytes.len());
                let copy = bytes[part].repeat(self.rng.random_range(2..64));
                bytes.splice(place..place, copy);
            }
            7 => {
                let random: Vec<u8> =
                    (0..self.rng.random_range(1..16)).map(|_| self.rng.random()).collect();
                bytes.splice(place..place, random);
            }
            8 => {
                let other = self.seeds.choose(&mut self.rng).cloned().unwrap_or_default();
                let part = self.part(other.len());
                let at = self.part(bytes.len());
                bytes.splice(at, other[part].iter().copied());
            }
            9 => self.binary_number(bytes, place),
            _ => self.text_number(bytes, place),
        }
    }

    /// Another number of 1, 2, 4 or 8 bytes, of either order.
    fn binary_number(&mut self, bytes: &mut [u8], place: usize) {
        let len = bytes.len() as u64;
        let numbers = [0, 1, 2, u64::MAX, u64::MAX - 1, 1 << 31, 1 << 40, 1 << 63, len, len + 1];
        let number = *numbers.choose(&mut self.rng).unwrap_or(&0);
        let width = 1 << self.rng.random_range(0..4);
        let mut raw = number.to_le_bytes()[..width].to_vec();
        if self.rng.random() {
            raw.reverse();
        }
        for (to, from) in bytes[place..].iter_mut().zip(raw) {
            *to = from;
        }
    }

    /// Another number in place of one that is written in digits.
    fn text_number(&mut self, bytes: &mut Vec<u8>, place: usize) {
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let Some(start) = bytes[place..].iter().position(is_digit).map(|at| place + at) else {
            return;
        };
        let len = bytes[start..].iter().take_while(|byte| is_digit(byte)).count();
        let number = NUMBERS.choose(&mut self.rng).unwrap_or(&"0");
        bytes.splice(start..start + len, number.bytes());
    }
}

/// The files in the folder `name` of the corpus, sorted by name.
///
/// # Panics
/// If there are none.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find_map(|above| {
        let folder = above.join("fuzz/corpus").join(name);
        folder.is_dir().then_some(folder)
    });
    let folder = folder.unwrap_or_else(|| panic!("no fuzz/corpus/{name}"));
    let entries = fs::read_dir(folder).expect("a folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "fuzz/corpus/{name} is empty");
    paths.iter().map(|path| fs::read(path).expect("a file")).collect()
}

/// Has `parse` meet mutations of `fuzz/corpus/NAME`. It says whether it could use one.
///
/// # Panics
/// If `parse` does, takes too long, or has the process ask for too much memory; the file is kept then and
/// named.
pub fn fuzz(name: &str, mut parse: impl FnMut(&[u8]) -> bool) {
    // A stack's names are read from the whole program's debug information, a hundred megabytes that would
    // count as the parser's. RUST_BACKTRACE asks for them at panics that are caught on the way, too.
    static PLAIN: Once = Once::new();
    #[allow(clippy::print_stderr, reason = "where the test harness looks for it")]
    PLAIN.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
    let cases = std::env::var("DATA2VEC_CASES").map_or(2_000, |n| n.parse().expect("a number"));
    let seeds = corpus(name);
    for seed in &seeds {
        assert!(parse(seed), "a seed of {name} is of no use");
    }
    let mut mutator = Mutator::new(seeds, 1);
    let (watch, started) = (Watch::start(name), Instant::now());
    let (mut used, mut peak, mut group) = (0_u64, memory_peak(), Vec::new());
    for case in 0..cases {
        let bytes = mutator.mutate();
        watch.case.store(case + 1, Relaxed);
        match catch_unwind(AssertUnwindSafe(|| parse(&bytes))) {
            Ok(good) => used += u64::from(good),
            Err(_) => panic!("case {case} of {name}: {}", keep(name, &bytes).display()),
        }
        group.push(bytes);
        if case % GROUP == GROUP - 1 {
            let now = memory_peak();
            if now > peak + MEMORY {
                let files: Vec<PathBuf> = group.iter().map(|bytes| keep(name, bytes)).collect();
                panic!("{name}: from {peak} to {now} KiB for one of {files:?}");
            }
            peak = peak.max(now);
            group.clear();
        }
    }
    let took = started.elapsed();
    // What `cargo test -- --nocapture` shows.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{name}: {cases} cases in {took:.1?}, {used} of use");
}

/// Keeps a file for later.
fn keep(name: &str, bytes: &[u8]) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let path = std::env::temp_dir().join(format!("fuzz-{name}-{:016x}", hasher.finish()));
    fs::write(&path, bytes).expect("space");
    path
}

/// Most address space that this process has had, in KiB; 0 where the system does not tell. What is
/// reserved counts, touched or not.
fn memory_peak() -> u64 {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// Ends the process when a case takes too long: a thread cannot be ended from outside.
struct Watch {
    /// Number of the case, from 1; 0 before the first.
    case: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Watch {
    fn start(name: &str) -> Self {
        let watch = Self { case: Arc::default(), done: Arc::default() };
        let (case, done, name) = (watch.case.clone(), watch.done.clone(), name.to_owned());
        std::thread::spawn(move || {
            let (mut last, mut since) = (0, Instant::now());
            while !done.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                let now = case.load(Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if now > 0 && since.elapsed() > LONGEST {
                    use std::io::Write;
                    let _ = writeln!(std::io::stderr(), "case {} of {name} hangs", now - 1);
                    std::process::abort();
                }
            }
        });
        watch
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Relaxed);
    }
}
