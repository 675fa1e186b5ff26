//! Helpers that the tests share: data to train on, tiny runs, and the program itself.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "no test uses all helpers")]

pub mod disturb;
pub mod ranks;
pub mod small;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

pub const RATE: u32 = 16_000;

/// Overrides that make a step of any tiny recipe take milliseconds.
const TINY: [&str; 13] = [
    "transformer.depth=1",
    "transformer.heads=2",
    "target.top_k=1",
    "decoder.dim=16",
    "decoder.layers=1",
    "model.copies=2",
    "train.steps=12",
    "train.held_out=0.2",
    "train.eval_batches=1",
    "train.eval_every=6",
    "train.log_every=2",
    "train.save_every=4",
    "schedule.warmup_steps=2",
];

/// Further overrides of `recipes/speech-tiny.toml`.
const TINY_SPEECH: [&str; 7] = [
    "features.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    "features.pos_layers=1",
    "features.pos_kernel=5",
    "features.pos_groups=4",
    "transformer.dim=32",
    "decoder.groups=4",
    "train.batch=4",
];

/// Further overrides of `recipes/vision-tiny.toml`.
const TINY_VISION: [&str; 8] = [
    "features.image_size=[8,8]",
    "features.channels=3",
    "features.mean=[0.5,0.5,0.5]",
    "features.std=[0.2,0.2,0.2]",
    "transformer.dim=16",
    "decoder.groups=4",
    "mask.length=1",
    "train.batch=8",
];

/// Further overrides of `recipes/nlp-tiny.toml`.
const TINY_TEXT: [&str; 7] = [
    "data.tokenizer={train=300}",
    "data.block=32",
    "features.vocabulary=300",
    "features.mask=299",
    "features.max_tokens=32",
    "transformer.dim=16",
    "train.batch=128",
];

/// Creates a directory that is removed on drop.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Returns `seconds` of a chirp in noise, different for each seed.
pub fn sound(seconds: f64, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let pitch = 100.0 + 40.0 * (seed % 9) as f64;
    let count = (seconds * f64::from(RATE)) as usize;
    (0..count)
        .map(|i| {
            let t = i as f64 / f64::from(RATE);
            let tone = (std::f64::consts::TAU * pitch * t * (1.0 + 0.5 * t)).sin();
            (0.3 * tone + 0.05 * rng.random_range(-1.0..1.0)) as f32
        })
        .collect()
}

/// Encodes a WAV file, mono, 16 kHz, of 32-bit floats, which may be NaN.
pub fn wav(samples: &[f32]) -> Vec<u8> {
    let data = 4 * samples.len() as u32;
    let mut bytes = Vec::new();
    bytes.extend(b"RIFF");
    bytes.extend((36 + data).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16_u32.to_le_bytes());
    bytes.extend(3_u16.to_le_bytes()); // floats
    bytes.extend(1_u16.to_le_bytes()); // channels
    bytes.extend(RATE.to_le_bytes());
    bytes.extend((4 * RATE).to_le_bytes());
    bytes.extend(4_u16.to_le_bytes());
    bytes.extend(32_u16.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend(data.to_le_bytes());
    bytes.extend(samples.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

/// Writes 20 recordings of 1 to 2 s to a directory `data` in `dir`.
pub fn corpus(dir: &Path) -> PathBuf {
    let data = dir.join("data");
    fs::create_dir_all(data.join("speaker")).unwrap();
    for i in 0..20 {
        let seconds = 1.0 + 0.05 * i as f64;
        fs::write(data.join(format!("speaker/{i:02}.wav")), wav(&sound(seconds, i))).unwrap();
    }
    data
}

/// Writes the recordings of [`corpus`]. Those for which `is_loud` returns true overflow when
/// squared.
pub fn loud(dir: &Path, is_loud: impl Fn(usize) -> bool) -> PathBuf {
    let data = corpus(dir);
    for i in (0..20).filter(|&i| is_loud(i)) {
        let sound: Vec<f32> = sound(1.0 + 0.05 * i as f64, i as u64);
        let sound: Vec<f32> = sound.into_iter().map(|x| x * 1e37).collect();
        fs::write(data.join(format!("speaker/{i:02}.wav")), wav(&sound)).unwrap();
    }
    data
}

/// Overrides that pass loud recordings to the model as they are.
pub const WITHOUT_NORMALIZATION: [&str; 2] = ["features.normalize=false", "train.held_out=0"];

/// Returns a command of the program with one compute thread, so that runs are reproducible to the
/// bit.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_data2vec"));
    command.args(args).env("OMP_NUM_THREADS", "1").env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn recipe() -> PathBuf {
    repository().join("recipes/speech-tiny.toml")
}

pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns a `pretrain` command of the tiny speech model on the CPU, with further overrides.
pub fn pretrain(data: &Path, out: &Path, overrides: &[&str]) -> Command {
    pretrain_by("speech-tiny", &TINY_SPEECH, data, out, overrides)
}

/// As [`pretrain`], on images.
pub fn pretrain_images(data: &Path, out: &Path, overrides: &[&str]) -> Command {
    pretrain_by("vision-tiny", &TINY_VISION, data, out, overrides)
}

/// As [`pretrain`], on texts.
pub fn pretrain_texts(data: &Path, out: &Path, overrides: &[&str]) -> Command {
    pretrain_by("nlp-tiny", &TINY_TEXT, data, out, overrides)
}

fn pretrain_by(
    recipe: &str,
    tiny: &[&str],
    data: &Path,
    out: &Path,
    overrides: &[&str],
) -> Command {
    let mut command = program(&["pretrain"]);
    command.arg(repository().join(format!("recipes/{recipe}.toml")));
    command.arg("--data").arg(data).arg("--out").arg(out).args(["--device", "cpu"]);
    for set in TINY.iter().chain(tiny).chain(overrides) {
        command.args(["--set", set]);
    }
    command
}

/// Returns an `extract` command on the CPU.
pub fn extract(encoder: &Path, files: &[&Path], out: &Path) -> Command {
    let mut command = program(&["extract", "--device", "cpu", "--encoder"]);
    command.arg(encoder).args(files).arg("--out").arg(out);
    command
}

/// Returns the path of an image of the vision crate's tests.
pub fn image(name: &str) -> PathBuf {
    repository().join("crates/vision/tests/fixtures").join(name)
}

/// Encodes a 24-bit BMP of 8 × 8 pixels; `value` maps the index of a byte to its value.
pub fn bmp(value: impl FnMut(u8) -> u8) -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    bytes.extend((54_u32 + 192).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(54_u32.to_le_bytes());
    bytes.extend(40_u32.to_le_bytes());
    bytes.extend(8_i32.to_le_bytes());
    bytes.extend(8_i32.to_le_bytes());
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend(24_u16.to_le_bytes());
    bytes.extend([0; 24]);
    bytes.extend((0..192_u8).map(value));
    bytes
}

/// Writes 12 files of 20 lines each to a directory `texts` in `dir`.
pub fn texts(dir: &Path) -> PathBuf {
    let data = dir.join("texts");
    fs::create_dir_all(&data).unwrap();
    let words = ["the", "people", "of", "a", "state", "union", "and", "peace", "law"];
    let mut rng = StdRng::seed_from_u64(3);
    for i in 0..12 {
        let line = |_| {
            let words: Vec<String> = (0..12)
                .map(|_| format!("{}{}", words[rng.random_range(0..9)], rng.random_range(0..999)))
                .collect();
            words.join(" ") + "\n"
        };
        fs::write(data.join(format!("{i:02}.txt")), (0..20).map(line).collect::<String>()).unwrap();
    }
    data
}

/// Compresses `bytes` with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut out, bytes).unwrap();
    out.finish().unwrap()
}

/// Runs the command; kills it after a minute.
pub fn output(command: &mut Command) -> Output {
    let child = command.spawn().unwrap();
    finish(child)
}

/// Waits for `child`; kills it after a minute.
pub fn finish(child: Child) -> Output {
    let id = child.id();
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if receiver.recv_timeout(Duration::from_secs(60)).is_err() {
            kill("KILL", id);
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = sender.send(());
    guard.join().unwrap();
    output
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs the command and expects success. Returns its standard error.
pub fn succeed(command: &mut Command) -> String {
    let output = output(command);
    let printed = stderr(&output);
    assert!(output.status.success(), "{:?}\n{printed}", output.status);
    assert!(!printed.contains("panicked"), "{printed}");
    printed
}

/// Runs the command and expects exit code 1 and a one-line error that contains each of `words`.
/// Returns its standard error.
pub fn fail(command: &mut Command, words: &[&str]) -> String {
    let output = output(command);
    let printed = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(!printed.contains("panicked"), "{printed}");
    let errors: Vec<&str> = printed.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{printed}");
    assert_eq!(printed.lines().last(), Some(errors[0]), "the error has several lines: {printed}");
    for word in words {
        assert!(errors[0].contains(word), "no {word:?} in {printed}");
    }
    printed
}

/// Sends a signal to a process, which may be gone.
pub fn kill(signal: &str, id: u32) {
    let command = format!("kill -{signal} {id} 2>/dev/null");
    let _ = Command::new("sh").args(["-c", &command]).status().unwrap();
}

/// Waits until `done` returns true. Returns false after a minute.
pub fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_secs(60) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Reads the lines of `metrics.jsonl`.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Reads the action lines of `metrics.jsonl`.
pub fn actions(run: &Path) -> Vec<Value> {
    metrics(run).into_iter().filter(|line| line["kind"] == "action").collect()
}

/// Reads the lines of `metrics.jsonl` without values that depend on the clock.
pub fn timeless_metrics(run: &Path) -> Vec<Value> {
    let mut lines = metrics(run);
    for line in &mut lines {
        for key in ["units_per_second", "waiting", "phases"] {
            line.as_object_mut().unwrap().remove(key);
        }
    }
    lines
}

/// Returns all values of a line of `metrics.jsonl` by name; `None` for those that are not numbers.
pub fn numbers(line: &Value) -> BTreeMap<String, Option<f64>> {
    let fields = line.as_object().unwrap();
    let inner = fields.values().filter_map(Value::as_object).flatten();
    let own = fields.iter().filter(|(_, value)| !value.is_object() && !value.is_string());
    own.chain(inner).map(|(name, value)| (name.clone(), value.as_f64())).collect()
}

/// Returns the steps that have a checkpoint, sorted.
pub fn checkpoints(run: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else { return Vec::new() };
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut steps: Vec<u64> = entries
        .filter_map(|entry| name(entry.unwrap()).strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps
}

/// Returns the directory of a step's checkpoint.
pub fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// Reads the files of the encoder and of the last checkpoint.
pub fn result(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let last = checkpoint(run, *checkpoints(run).last().unwrap());
    let mut files = BTreeMap::new();
    for dir in [run.join("encoder"), last] {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(run).unwrap().display().to_string();
            files.insert(name, fs::read(path).unwrap());
        }
    }
    files
}

/// Asserts that two runs have the same weights, to the bit, and the same metrics.
pub fn assert_same(one: &Path, other: &Path) {
    let (a, b) = (result(one), result(other));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{name} differs");
    }
    let (a, b) = (timeless_metrics(one), timeless_metrics(other));
    let steps = |lines: &[Value]| -> Vec<String> {
        lines.iter().map(|line| format!("{} {}", line["kind"], line["step"])).collect()
    };
    assert_eq!(steps(&a), steps(&b));
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a, b);
    }
}

/// Copies a directory recursively.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
