//! Logs of a run: TensorBoard, Prometheus, `--quiet`, `--json`, `run.json`, `diff`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stderr, reason = "a skipped test prints the reason")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::{Value, json};
use support::*;

/// Steps, values and wall times by tag.
type Scalars = BTreeMap<String, Vec<(u64, f64, f64)>>;

/// Reads a run with TensorBoard. Returns `None` without a Python that has it.
fn read_by_tensorboard(run: &Path) -> Option<Scalars> {
    let Some(python) = std::env::var_os("DATA2VEC_PYTHON") else {
        eprintln!("skipped: DATA2VEC_PYTHON names no interpreter with TensorBoard");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_events.py");
    let output = Command::new(python).arg(script).arg(run.join("tensorboard")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn event_files(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("tensorboard")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Asserts that TensorBoard has exactly the numbers of `metrics.jsonl`.
fn assert_same_scalars(scalars: &Scalars, lines: &[Value]) {
    let mut count = 0;
    for line in lines {
        let (kind, step) = (line["kind"].as_str().unwrap(), line["step"].as_u64().unwrap());
        for (name, value) in line.as_object().unwrap() {
            let Some(value) = value.as_f64().filter(|_| name != "step") else { continue };
            let series = &scalars[&format!("{kind}/{name}")];
            let here: Vec<f64> = series.iter().filter(|s| s.0 == step).map(|s| s.1).collect();
            assert_eq!(here.len(), 1, "{kind}/{name} at {step}");
            // Two JSON readers may differ in the last digit.
            let off = (here[0] - f64::from(value as f32)).abs();
            assert!(off <= 1e-7 * value.abs(), "{kind}/{name} at {step}: {here:?}, not {value}");
            count += 1;
        }
    }
    assert!(count > 0);
    assert_eq!(count, scalars.values().map(Vec::len).sum::<usize>(), "no other scalars");
}

#[test]
fn tensorboard_matches_metrics_after_resume() {
    let dir = temp_dir();
    let (data, run) = (corpus(dir.path()), dir.path().join("run"));
    succeed(&mut pretrain(&data, &run, &[]));
    assert_eq!(event_files(&run).len(), 1);
    let uninterrupted = read_by_tensorboard(&run);
    if let Some(scalars) = &uninterrupted {
        assert_same_scalars(scalars, &metrics(&run));
        assert!(scalars["train/loss"].iter().all(|s| s.2 > 1.6e9), "{scalars:?}");
    }

    // As if killed after step 10, with the checkpoint of step 8.
    fs::remove_dir_all(checkpoint(&run, 12)).unwrap();
    succeed(&mut pretrain(&data, &run, &[]));
    assert_eq!(event_files(&run).len(), 1, "the file is replaced");
    if let (Some(before), Some(scalars)) = (uninterrupted, read_by_tensorboard(&run)) {
        assert_same_scalars(&scalars, &metrics(&run));
        let (before, after) = (&before["train/loss"], &scalars["train/loss"]);
        for (old, new) in before.iter().zip(after).take(4) {
            assert_eq!((old.0, old.1), (new.0, new.1));
            assert!((old.2 - new.2).abs() < 0.1, "times are kept: {old:?} {new:?}");
        }
        assert!(before[4].2 < after[4].2, "step 10 is new");
    }
}

/// A run that serves metrics until it is killed.
struct ServedRun {
    child: Child,
    address: String,
}

impl ServedRun {
    fn start(data: &Path, run: &Path) -> Self {
        let mut command = pretrain(data, run, &["train.steps=100000", "train.save_every=4"]);
        command.args(["--no-report", "--prometheus", "127.0.0.1:0"]);
        let mut child = command.spawn().unwrap();
        let mut printed = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = printed.find_map(|line| {
            let line = line.unwrap();
            Some(line.split_once("http://")?.1.strip_suffix("/metrics")?.to_owned())
        });
        // A full pipe would block the program.
        std::thread::spawn(move || printed.for_each(drop));
        Self { child, address: address.unwrap() }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(&self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    /// Sends a request. Returns the response, as far as it arrives.
    fn ask(&self, request: &[u8]) -> String {
        let mut client = self.connect();
        let _ = client.write_all(request);
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    /// Scrapes the gauges by name, and checks the format.
    fn scrape(&self) -> BTreeMap<String, f64> {
        let answer = self.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        // Empty before the run starts.
        assert!(body.is_empty() || body.ends_with('\n'));
        let lines: Vec<&str> = body.lines().collect();
        let mut gauges = BTreeMap::new();
        for metric in lines.chunks(3) {
            let name = metric[2].split(['{', ' ']).next().unwrap();
            assert!(metric[0].starts_with(&format!("# HELP {name} ")), "{metric:?}");
            assert_eq!(metric[1], format!("# TYPE {name} gauge"));
            let value = metric[2].rsplit(' ').next().unwrap().parse().unwrap();
            assert_eq!(gauges.insert(name.to_owned(), value), None, "{name} appears twice");
        }
        gauges
    }

    fn scrape_when(&self, done: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
        assert!(wait_until(|| done(&self.scrape())));
        self.scrape()
    }
}

impl Drop for ServedRun {
    fn drop(&mut self) {
        kill("KILL", self.child.id());
        let _ = self.child.wait();
    }
}

#[test]
fn prometheus_serves_metrics_despite_bad_clients() {
    let dir = temp_dir();
    let (data, run) = (corpus(dir.path()), dir.path().join("a \"run\""));
    let mut served = ServedRun::start(&data, &run);
    let saved = "data2vec_last_checkpoint_timestamp_seconds";
    let gauges = served.scrape_when(|gauges| gauges.contains_key(saved));
    assert_eq!(gauges["data2vec_steps"], 100_000.0);
    assert!(gauges["data2vec_step"] >= 4.0 && gauges[saved] > 1.6e9, "{gauges:?}");
    for name in
        ["train_loss", "train_units_per_second", "held_out_explained_variance", "memory_bytes"]
    {
        assert!(gauges[&format!("data2vec_{name}")].is_finite(), "{name}");
    }
    let labels = served.ask(b"GET /metrics?x HTTP/1.0\r\n\r\n");
    assert!(labels.contains(r#"a \"run\"""#) && labels.contains("unit=\"s of audio\""), "{labels}");
    assert!(labels.contains(&format!("version=\"{}\"", env!("CARGO_PKG_VERSION"))), "{labels}");

    let answer = |request: &str| served.ask(request.as_bytes());
    assert!(answer("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    let refused = answer("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 405") && refused.contains("Allow: GET"), "{refused}");
    assert!(answer("hello\r\n\r\n").starts_with("HTTP/1.1 400"));
    served.ask(b"\x16\x03\x01\x00\xff\x00\r\n\r\n");
    served.ask(&[b'a'; 1 << 20]);
    drop(served.connect());
    // More slow clients than are served at a time.
    let slow: Vec<TcpStream> = (0..12).map(|_| served.connect()).collect();
    for mut client in &slow {
        client.write_all(b"GET /met").unwrap();
    }
    let before = metrics(&run).len();
    assert!(wait_until(|| metrics(&run).len() > before), "training continues");
    let step = served.scrape()["data2vec_step"];
    served.scrape_when(|gauges| gauges["data2vec_step"] > step);
    drop(slow);

    kill("TERM", served.child.id());
    assert_eq!(served.child.wait().unwrap().code(), Some(143), "a signal still ends the run");
}

#[test]
fn rejects_port_in_use() {
    let dir = temp_dir();
    let (data, run) = (corpus(dir.path()), dir.path().join("run"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = pretrain(&data, &run, &[]);
    fail(command.args(["--prometheus", &address]), &["--prometheus", &address, "in use", "port 0"]);
    assert!(!run.exists());
    let wrong = output(pretrain(&data, &run, &[]).args(["--prometheus", "nowhere"]));
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("nowhere"), "{}", stderr(&wrong));
}

#[test]
fn quiet_prints_only_errors_and_results() {
    let dir = temp_dir();
    let (data, run) = (corpus(dir.path()), dir.path().join("run"));
    let printed = output(pretrain(&data, &run, &[]).arg("--quiet"));
    assert!(printed.status.success());
    assert_eq!(stderr(&printed), "");
    assert!(stdout(&printed).contains("Trained for") && stdout(&printed).contains("encoder"));
    let printed = fail(pretrain(&data, &run, &["seed=9"]).arg("--quiet"), &["another recipe"]);
    assert_eq!(printed.lines().count(), 1, "{printed}");
}

#[test]
fn json_prints_only_metrics() {
    let dir = temp_dir();
    let (data, run) = (corpus(dir.path()), dir.path().join("run"));
    let printed = output(pretrain(&data, &run, &[]).arg("--json"));
    assert!(printed.status.success());
    assert_eq!(stdout(&printed), fs::read_to_string(run.join("metrics.jsonl")).unwrap());
    assert!(stderr(&printed).contains("Trained for"), "{}", stderr(&printed));
}

#[test]
fn record_lists_all_processes() {
    let dir = temp_dir();
    let (data, run) = (corpus(dir.path()), dir.path().join("run"));
    let record =
        || -> Value { serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap() };
    // A process without data leaves nothing; a killed one leaves what it knew.
    fail(&mut pretrain(&dir.path().join("gone"), &run, &[]), &["gone"]);
    assert!(!run.exists());
    let mut child = pretrain(&data, &run, &["train.steps=1000"]).spawn().unwrap();
    assert!(wait_until(|| checkpoints(&run).last() > Some(&4)));
    kill("KILL", child.id());
    child.wait().unwrap();
    let killed = record();
    assert!(killed.get("end").is_none() && killed.get("earlier").is_none(), "{killed}");
    assert!(killed["steps"][1].as_u64() >= Some(4), "{killed}");
    let mut child = pretrain(&data, &run, &["train.steps=1000"]).spawn().unwrap();
    let from = *checkpoints(&run).last().unwrap();
    assert!(wait_until(|| checkpoints(&run).last() > Some(&(from + 4))));
    kill("TERM", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(143));

    let record = record();
    assert_eq!(record["end"], "stopped");
    assert_eq!(record["earlier"].as_array().unwrap().len(), 1, "{record}");
    assert_eq!(record["earlier"][0]["steps"][0], 0);
    let steps: Vec<u64> =
        record["steps"].as_array().unwrap().iter().map(|step| step.as_u64().unwrap()).collect();
    assert!(steps[0] >= from && steps[1] > steps[0], "{record}");
    assert_eq!(checkpoints(&run).last(), Some(&steps[1]));
    assert_eq!(record["examples"], 20);
    assert_eq!(record["seed"], 1);
    assert!(record["seconds"].as_f64() > Some(0.0));
    assert!(record["peak_memory_bytes"].as_u64() > Some(10 << 20));
    for key in ["data_sha256", "recipe_sha256"] {
        assert_eq!(record[key].as_str().unwrap().len(), 64, "{record}");
        assert_eq!(record[key], record["earlier"][0][key], "{key}");
    }
    for key in ["started", "last_seen"] {
        let time = record[key].as_str().unwrap();
        assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
    }
}

#[test]
fn diff_reports_differences() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    let moved = dir.path().join("moved");
    copy_dir(&data, &moved);
    let runs = ["a", "b", "c"].map(|name| dir.path().join(name));
    succeed(&mut pretrain(&data, &runs[0], &[]));
    succeed(&mut pretrain(&data, &runs[1], &[]));
    let diff = |one: &Path, other: &Path, more: &[&str]| {
        let output = output(program(&["diff"]).arg(one).arg(other).args(more));
        (output.status.code(), stdout(&output), stderr(&output))
    };
    assert_eq!(diff(&runs[0], &runs[1], &[]), (Some(0), String::new(), String::new()));

    fs::remove_file(moved.join("speaker/19.wav")).unwrap();
    let other = ["schedule.lr=0.01", "train.workers=1"];
    succeed(&mut pretrain(&moved, &runs[2], &other));
    // Two runs may take the same time: set another one.
    let path = runs[2].join("run.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["seconds"] = json!(86_400.5);
    fs::write(&path, record.to_string()).unwrap();
    let (code, printed, _) = diff(&runs[0], &runs[2], &[]);
    assert_eq!(code, Some(1));
    let words: Vec<Vec<&str>> =
        printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(words.contains(&vec!["examples", "20", "19"]), "{printed}");
    assert!(words.contains(&vec!["schedule.lr", "0.0005", "0.01"]), "{printed}");
    for name in ["recipe", "data", "sha256", "command", "results", "train/loss", "cost", "seconds"]
    {
        assert!(words.iter().any(|line| line[0] == name), "no {name} in {printed}");
    }
    for name in ["libtorch", "device", "step", "seed"] {
        assert!(!words.iter().any(|line| line[0] == name), "{name} in {printed}");
    }
    let (code, printed, _) = diff(&runs[0], &runs[2], &["--json"]);
    assert_eq!(code, Some(1));
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["same"], false);
    assert_eq!(printed["differences"]["data"][0]["b"], "19", "{printed}");

    let (code, printed, error) = diff(&runs[0], &data, &[]);
    assert_eq!((code, printed.as_str()), (Some(2), ""));
    assert!(error.starts_with("error: ") && error.contains("not a run directory"), "{error}");
}
