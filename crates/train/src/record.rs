//! `run.json`: how a run came to be. Every process that worked on it leaves what it was started with, on what it
//! ran, and what it took.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use data2vec_core::Dataset;
use data2vec_core::checkpoint::hex;
use data2vec_torch_ext::memory;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Device;

use crate::device;
use crate::energy::Energy;
use crate::report::note;
use crate::run::{RunFolder, write};

/// The file of a run.
pub const FILE: &str = "run.json";

/// What one process tells of itself. What older versions did not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// As it was typed.
    pub command: Vec<String>,
    /// The argument of `--data`.
    pub data: PathBuf,
    /// Of names and sizes of all examples, names without the path of `data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_sha256: Option<String>,
    /// How many examples there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
    /// Of `recipe.toml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe_sha256: Option<String>,
    /// The recipe's seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Where it computed.
    pub device: String,
    /// Names of the processor and of the graphics cards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hardware: Vec<String>,
    /// Version of the program.
    pub data2vec: String,
    /// Its source: a commit, with `-dirty` if files differed from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Version of LibTorch.
    pub libtorch: String,
    /// Operating system and architecture.
    pub system: String,
    /// When it began, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// How it ended; absent as long as it works, and for ever if it was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// When it ended, or gave the last sign of life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// Seconds from one to the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Steps that were complete when training began in it, and at the last sign of life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<[u64; 2]>,
    /// Joules that the machine's processors took meanwhile, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// Most memory that was in use at once: of the process, or of what LibTorch gave out on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All steps are done.
    Finished,
    /// Somebody stopped it; it can go on.
    Stopped,
    /// By an error.
    Failed,
}

/// The whole file: the newest process, and those before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The newest.
    #[serde(flatten)]
    pub last: Start,
    /// Oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Start>,
}

impl History {
    /// What is in the file; nothing if there is none, or none that can be read.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// The record of this process, kept up as it works.
pub struct Record {
    path: PathBuf,
    history: History,
    device: Device,
    began: Instant,
    energy: Energy,
}

impl Record {
    /// Begins it, and says so if the data are not those of the process before.
    pub fn begin(folder: &RunFolder, data: &Path, device: Device, seed: u64) -> Result<Self> {
        let path = folder.join(FILE);
        let mut earlier = Vec::new();
        if let Some(old) = History::read(&path) {
            earlier = old.earlier;
            earlier.push(old.last);
        }
        // One that did not come to train has done nothing to the run.
        earlier.retain(|start| start.steps.is_some() || start.started.is_none());
        if let Some(before) = earlier.last().filter(|before| before.data != data) {
            note(format!(
                "this run was started on {}; going on with {} is another run than either alone",
                before.data.display(),
                data.display()
            ));
        }
        let last = Start {
            command: std::env::args().collect(),
            data: data.to_owned(),
            recipe_sha256: fs::read(folder.join("recipe.toml"))
                .ok()
                .map(|text| hex(Sha256::digest(text))),
            seed: Some(seed),
            device: device::name(device),
            hardware: device::hardware(device),
            data2vec: env!("CARGO_PKG_VERSION").into(),
            commit: Some(env!("DATA2VEC_COMMIT").into()).filter(|commit| commit != "unknown"),
            libtorch: data2vec_torch_ext::libtorch_version(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            started: Some(now()),
            ..Start::default()
        };
        let history = History { last, earlier };
        let record = Self {
            path,
            history,
            device,
            began: Instant::now(),
            energy: Energy::of_this_machine(),
        };
        record.write()?;
        Ok(record)
    }

    /// Takes down what it learns from.
    pub fn examples<D: Dataset>(&mut self, train: &D, held_out: Option<&D>) -> Result<()> {
        let start = &mut self.history.last;
        start.examples = Some(train.len() + held_out.map_or(0, Dataset::len));
        start.data_sha256 = Some(manifest(train, held_out, &start.data));
        self.write()
    }

    /// The process as it is known so far.
    pub fn start(&self) -> &Start {
        &self.history.last
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Training stands at `step`.
    pub fn at(&mut self, step: u64) {
        let first = self.history.last.steps.map_or(step, |[first, _]| first);
        self.history.last.steps = Some([first, step]);
        self.energy.look();
    }

    /// Writes what is known, so that little is lost if the process is killed.
    pub fn keep(&mut self) -> Result<()> {
        let start = &mut self.history.last;
        start.last_seen = Some(now());
        start.seconds = Some((1e3 * self.began.elapsed().as_secs_f64()).round() / 1e3);
        start.energy_joules = self.energy.look().map(|joules| (1e3 * joules).round() / 1e3);
        start.peak_memory_bytes = memory(self.device).ok().map(|memory| memory.peak);
        self.write()
    }

    /// The process ends.
    pub fn end(&mut self, end: End) -> Result<()> {
        self.history.last.end = Some(end);
        self.keep()
    }

    fn write(&self) -> Result<()> {
        write(&self.path, &serde_json::to_string_pretty(&self.history)?)
    }
}

impl Drop for Record {
    /// Nobody came to tell how it ended: it was an error, which is told elsewhere.
    fn drop(&mut self) {
        if self.history.last.end.is_none() {
            let _ = self.end(End::Failed);
        }
    }
}

/// Time since 1970 began, in UTC.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn now() -> String {
    date(since_1970().as_secs())
}

/// As `2026-02-03T04:05:06Z`, of seconds since 1970.
fn date(seconds: u64) -> String {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut month, mut day) = (1970, 1, seconds / 86_400);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

/// A digest of what the examples are called and how large they are. The path of the data does not count:
/// a copy elsewhere is the same data.
fn manifest<D: Dataset>(train: &D, held_out: Option<&D>, data: &Path) -> String {
    let data = data.display().to_string();
    let mut digest = Sha256::new();
    for (side, examples) in [("train", Some(train)), ("held_out", held_out)] {
        for index in 0..examples.map_or(0, Dataset::len) {
            let Some(examples) = examples else { continue };
            let name = examples.name(index);
            let name = name.strip_prefix(&data).unwrap_or(&name);
            digest.update(format!("{side}\0{name}\0{}\n", examples.size(index)));
        }
    }
    hex(digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // As `date --utc --date=@N` tells them.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
