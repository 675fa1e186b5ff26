//! Writes TensorBoard event files, `tensorboard/events.out.tfevents.…`. The content depends only on
//! `metrics.jsonl` and on when its lines were written.
//!
//! A file is a sequence of records: length (8 bytes), its checksum, an `Event` of TensorFlow's
//! `event.proto`, its checksum. Only the fields of `event.proto` and `summary.proto` that scalars
//! need are written.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::metrics::Line;
use crate::record::since_1970;

/// Prefix of the file names that TensorBoard reads.
const PREFIX: &str = "events.out.tfevents.";

/// An event file, open for appending.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Replaces the event file in `dir` by one with the scalars of `lines`. Wall times are copied
    /// from the old file.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(dir: &Path, lines: &[Line]) -> Result<Self> {
        let now = now();
        let old = files(dir)?;
        let mut times = HashMap::new();
        for path in &old {
            let bytes = fs::read(path).with_context(|| path.display().to_string())?;
            times.extend(records(&bytes).filter_map(time_of));
        }
        let start = lines.first().and_then(|line| times.get(&line.step())).copied().unwrap_or(now);
        let mut bytes = record(&version(start));
        bytes.extend(record(&session_start(start)));
        for line in lines {
            let time = times.get(&line.step()).copied().unwrap_or(now);
            bytes.extend(record(&event(time, line)));
        }

        // A new name makes a running TensorBoard switch to the new file.
        let newest = old.iter().filter_map(|path| created(path)).max();
        let number = newest.map_or(0, |number| number + 1).max(now as u64);
        let path = dir.join(format!("{PREFIX}{number:010}.data2vec"));
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(dir.join("unfinished"), bytes))
            .and_then(|()| fs::rename(dir.join("unfinished"), &path))
            .with_context(|| path.display().to_string())?;
        for old in old {
            fs::remove_file(&old).with_context(|| old.display().to_string())?;
        }
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok(Self { path, file })
    }

    /// Appends the scalars of `line`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let record = record(&event(now(), line));
        self.file.write_all(&record).with_context(|| self.path.display().to_string())
    }
}

/// Returns the time in seconds since 1970.
fn now() -> f64 {
    since_1970().as_secs_f64()
}

/// Lists the event files in `dir`.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| dir.display().to_string())?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: Vec<PathBuf> =
        paths.collect::<std::io::Result<_>>().with_context(|| dir.display().to_string())?;
    Ok(paths.into_iter().filter(|path| created(path).is_some()).collect())
}

/// Returns the number in an event file's name, or `None` for other files.
fn created(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// Encodes `Event { wall_time, file_version }`.
fn version(time: f64) -> Vec<u8> {
    let mut event = double(1, time);
    event.extend(bytes(3, b"brain.Event:2"));
    event
}

/// Encodes `Event { wall_time, step: 0, session_log: { status: START } }`, which makes a running
/// TensorBoard discard what it has read of an older file.
fn session_start(time: f64) -> Vec<u8> {
    let mut event = double(1, time);
    event.extend(bytes(7, &varint(1, 1)));
    event
}

/// Encodes `Event { wall_time, step, summary: { value: [{ tag, simple_value }] } }`.
fn event(time: f64, line: &Line) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in line.scalars() {
        let mut scalar = bytes(1, tag.as_bytes());
        scalar.extend(float(2, value as f32));
        summary.extend(bytes(1, &scalar));
    }
    let mut event = double(1, time);
    event.extend(varint(2, line.step()));
    event.extend(bytes(5, &summary));
    event
}

/// Encodes a protobuf field of 8 bytes.
fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(value.to_le_bytes());
    out
}

/// Encodes a protobuf field of 4 bytes.
fn float(field: u8, value: f32) -> Vec<u8> {
    let mut out = vec![field << 3 | 5];
    out.extend(value.to_le_bytes());
    out
}

/// Encodes a length-delimited protobuf field.
fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = varint(field, value.len() as u64);
    out[0] |= 2;
    out.extend(value);
    out
}

/// Encodes a protobuf varint field: 7 bits per byte, least significant first.
fn varint(field: u8, mut value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// Frames an event as a record.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(checksum(&length));
    out.extend(event);
    out.extend(checksum(event));
    out
}

/// Returns the masked CRC-32C of `bytes`, as TFRecord files store it.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Returns the events of a file up to the first incomplete or damaged one.
fn records(mut file: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = file.split_first_chunk::<8>()?;
        let rest = rest.strip_prefix(&checksum(length))?;
        let (event, rest) = rest.split_at_checked(u64::from_le_bytes(*length).try_into().ok()?)?;
        file = rest.strip_prefix(&checksum(event))?;
        Some(event)
    })
}

/// Returns step and wall time of an event written by [`event`].
fn time_of(event: &[u8]) -> Option<(u64, f64)> {
    let (time, rest) = event.strip_prefix(&[1 << 3 | 1])?.split_first_chunk()?;
    let rest = rest.strip_prefix(&[2 << 3])?;
    let end = rest.iter().position(|byte| byte & 0x80 == 0)?;
    let step = rest[..=end].iter().rev().try_fold(0_u64, |step, byte| {
        step.checked_mul(0x80).map(|step| step | u64::from(byte & 0x7f))
    })?;
    Some((step, f64::from_le_bytes(*time)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{TrainLine, ValidationLine};

    /// Written by tensorboard 2.21.0: `RecordWriter.write(event.SerializeToString())` of
    /// `Event(wall_time=1700000000.25, file_version="brain.Event:2")`, of
    /// `Event(wall_time=1700000000.25, session_log=SessionLog(status=SessionLog.START))`, and of
    /// `Event(wall_time=1700000000.5, step=300)` with summary values `validation/loss` 0.5 and
    /// `validation/wer` -1.5.
    const GOLDEN: &str = "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe90d000000\
        000000003c37b8340900001040fc54d9413a0208018c8e54cd3d000000000000006049f1ec0900002040fc54\
        d94110ac022a2f0a160a0f76616c69646174696f6e2f6c6f7373150000003f0a150a0e76616c69646174696f\
        6e2f776572150000c0bf278e45c7";

    fn line() -> Line {
        let metrics = [("wer".to_owned(), -1.5)].into();
        Line::Validation(ValidationLine { step: 300, loss: 0.5, metrics })
    }

    #[test]
    fn matches_bytes_of_tensorboard() {
        let time = 1_700_000_000.25;
        let mut file = record(&version(time));
        file.extend(record(&session_start(time)));
        file.extend(record(&event(time + 0.25, &line())));
        let hex: String = file.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    #[test]
    fn resume_keeps_wall_times_and_repeats_no_step() {
        let dir = tempfile::tempdir().expect("a directory");
        let train = |step| Line::Train(TrainLine { step, ..TrainLine::default() });
        let mut events = Events::open(dir.path(), &[]).expect("a new file");
        for step in [1, 200, 70_000, u64::from(u32::MAX)] {
            events.write(&train(step)).expect("space");
        }
        let read = || {
            let files = files(dir.path()).expect("a directory");
            assert_eq!(files.len(), 1);
            let bytes = fs::read(&files[0]).expect("a file");
            let times = records(&bytes).filter_map(time_of).collect::<Vec<_>>();
            (times, files[0].clone())
        };
        let (before, name) = read();
        let steps: Vec<u64> = before.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [1, 200, 70_000, u64::from(u32::MAX)]);

        // The last record is incomplete, as if the process was killed.
        let mut bytes = fs::read(&name).expect("a file");
        bytes.truncate(bytes.len() - 3);
        fs::write(&name, bytes).expect("space");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut events = Events::open(dir.path(), &[train(1), train(200)]).expect("space");
        events.write(&train(201)).expect("space");
        let (after, new_name) = read();
        assert_eq!(after[..2], before[..2]);
        assert!(after[2].0 == 201 && after[2].1 > before[3].1 && after.len() == 3);
        assert_ne!(name, new_name);
    }

    #[test]
    fn detects_damage() {
        let mut file = record(&event(1.0, &line()));
        file.extend(record(&event(2.0, &line())));
        assert_eq!(records(&file).count(), 2);
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(records(&damaged).count(), usize::from(at >= file.len() / 2), "{at}");
        }
        assert_eq!(records(&[0xff; 40]).count(), 0);
    }
}
