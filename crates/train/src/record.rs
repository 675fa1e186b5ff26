//! `run.json`, the record of a run: for each process that worked on it, the command, hardware,
//! versions, time and memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use data2vec_core::Dataset;
use data2vec_core::io::checkpoint::hex;
use data2vec_torch_ext::memory;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Device;
use tracing::{info, warn};

use crate::device;
use crate::energy::Energy;
use crate::run_dir::{RunDir, write};

/// Name of the file in a run directory.
pub const FILE: &str = "run.json";

/// The record of one process. Fields that older versions did not write are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// The command line.
    pub command: Vec<String>,
    /// The argument of `--data`.
    pub data: PathBuf,
    /// SHA-256 of the names and sizes of all examples; names are relative to `data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_sha256: Option<String>,
    /// Number of examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
    /// SHA-256 of `recipe.toml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe_sha256: Option<String>,
    /// Unit of the data, as in "tokens".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The recipe's seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Device of the model, as in `cuda:0`.
    pub device: String,
    /// Names of the processor and of the GPUs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hardware: Vec<String>,
    /// Version of data2vec.
    pub data2vec: String,
    /// Commit that it was built from, with `-dirty` if files differed from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Version of LibTorch.
    pub libtorch: String,
    /// Operating system and architecture.
    pub system: String,
    /// Start time in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// How it ended; absent while it runs, or if it was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// Time of the last update in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// Seconds from the start to the last update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Completed steps when training began in this process, and at the last update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<[u64; 2]>,
    /// Joules used by the machine's processors meanwhile, if measurable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// Peak memory in bytes: of the process, or allocated by LibTorch on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All steps are taken.
    Finished,
    /// A stop was requested; the run can resume.
    Stopped,
    /// An error occurred.
    Failed,
}

/// The content of `run.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The newest process.
    #[serde(flatten)]
    pub last: Start,
    /// Earlier processes, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Start>,
}

impl History {
    /// Reads a file. Returns `None` if it is missing or invalid.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// The record of this process, updated during the run.
pub struct Record {
    path: PathBuf,
    history: History,
    device: Device,
    began: Instant,
    energy: Energy,
    /// Whether the file has this process; a process that is refused leaves none.
    is_written: bool,
}

impl Record {
    /// Prepares the record of this process in the run in `dir`; [`set_examples`](Self::set_examples)
    /// writes it.
    pub fn begin(dir: &RunDir, data: &Path, device: Device, (seed, unit): (u64, &str)) -> Self {
        let path = dir.join(FILE);
        let mut earlier = Vec::new();
        if let Some(old) = History::read(&path) {
            earlier = old.earlier;
            earlier.push(old.last);
        }
        // Processes that never trained have not changed the run.
        earlier.retain(|start| start.steps.is_some() || start.started.is_none());
        let last = Start {
            command: std::env::args().collect(),
            data: data.to_owned(),
            recipe_sha256: fs::read(dir.join("recipe.toml"))
                .ok()
                .map(|text| hex(Sha256::digest(text))),
            unit: Some(unit.to_owned()),
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
        let (began, energy) = (Instant::now(), Energy::start());
        Self { path, history, device, began, energy, is_written: false }
    }

    /// Adds the number and digest of the examples, and writes the file. Data that differ from those
    /// of the previous process are refused unless `other_data`; the same data at another path are
    /// fine.
    ///
    /// # Errors
    /// If the run was started on other data, or the file cannot be written.
    pub fn set_examples<D: Dataset>(
        &mut self,
        train: &D,
        held_out: Option<&D>,
        other_data: bool,
    ) -> Result<()> {
        let History { last, earlier } = &mut self.history;
        let count = train.len() + held_out.map_or(0, Dataset::len);
        let digest = manifest(train, held_out, &last.data);
        let differs = |old: &&Start| old.data_sha256.as_ref().is_some_and(|old| *old != digest);
        if let Some(old) = earlier.last().filter(differs) {
            let change = format!(
                "{} was started on other data ({}, {} examples; now {}, {count})",
                self.path.parent().unwrap_or(&self.path).display(),
                old.data.display(),
                old.examples.unwrap_or_default(),
                last.data.display(),
            );
            ensure!(
                other_data,
                "{change}; resume with the old data, choose another --out, or add --other-data"
            );
            warn!("{change}");
        } else if let Some(old) = earlier.last().filter(|old| old.data != last.data) {
            info!(
                "the data were at {}; those at {} have the same names and sizes",
                old.data.display(),
                last.data.display()
            );
        }
        (last.examples, last.data_sha256) = (Some(count), Some(digest));
        self.is_written = true;
        self.write()
    }

    /// Returns the record of this process so far.
    pub fn start(&self) -> &Start {
        &self.history.last
    }

    /// Returns the device of the model.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Sets the number of completed steps.
    pub fn set_step(&mut self, step: u64) {
        let first = self.history.last.steps.map_or(step, |[first, _]| first);
        self.history.last.steps = Some([first, step]);
        // The counters must be read before they wrap.
        self.energy.joules();
    }

    /// Updates time, energy and memory, and writes the file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn update(&mut self) -> Result<()> {
        let start = &mut self.history.last;
        start.last_seen = Some(now());
        start.seconds = Some((1e3 * self.began.elapsed().as_secs_f64()).round() / 1e3);
        start.energy_joules = self.energy.joules().map(|joules| (1e3 * joules).round() / 1e3);
        start.peak_memory_bytes = memory(self.device).ok().map(|memory| memory.peak);
        self.write()
    }

    /// Records how the process ends, and writes the file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn end(&mut self, end: End) -> Result<()> {
        self.history.last.end = Some(end);
        self.update()
    }

    fn write(&self) -> Result<()> {
        write(&self.path, &serde_json::to_string_pretty(&self.history)?)
    }
}

impl Drop for Record {
    /// Records a failure if no end was recorded; the error is reported elsewhere.
    fn drop(&mut self) {
        if self.is_written && self.history.last.end.is_none() {
            let _ = self.end(End::Failed);
        }
    }
}

/// Returns the time since 1970 in UTC.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns the time in UTC as `2026-02-03T04:05:06Z`.
fn now() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Returns a digest of the names and sizes of the examples. It does not depend on the path of the
/// data.
fn manifest<D: Dataset>(train: &D, held_out: Option<&D>, data: &Path) -> String {
    let data = data.display().to_string();
    let data = data.trim_end_matches('/');
    let mut digest = Sha256::new();
    for (side, examples) in [("train", Some(train)), ("held_out", held_out)] {
        for index in 0..examples.map_or(0, Dataset::len) {
            let Some(examples) = examples else { continue };
            let name = examples.name(index);
            let name = name.strip_prefix(data).unwrap_or(&name);
            digest.update(format!("{side}\0{name}\0{}\n", examples.size(index)));
        }
    }
    hex(digest.finalize())
}
