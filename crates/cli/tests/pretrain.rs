//! A complete run of `pretrain`, and `extract` with its encoder.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::sync::OnceLock;

use ndarray::{Array2, Array3};
use ndarray_npy::read_npy;
use support::*;

/// Returns the run that the tests share, with its standard output.
fn run() -> &'static (tempfile::TempDir, String) {
    static RUN: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = temp_dir();
        let data = corpus(dir.path());
        let printed = output(&mut pretrain(&data, &dir.path().join("run"), &[]));
        assert!(printed.status.success(), "{}", stderr(&printed));
        let printed = stdout(&printed);
        (dir, printed)
    })
}

#[test]
fn writes_all_outputs() {
    let (dir, printed) = run();
    let run = dir.path().join("run");
    for (what, name) in [("run", ""), ("curve", "curve.svg"), ("encoder", "encoder")] {
        let path = run.join(name);
        let path = path.to_str().unwrap().trim_end_matches('/');
        assert!(printed.contains(path), "no path of the {what}: {printed}");
    }
    for name in ["recipe.toml", "run.json", "curve.svg", "encoder/encoder.toml"] {
        assert!(fs::metadata(run.join(name)).unwrap().len() > 0, "{name}");
    }
    let recipe: toml::Table = fs::read_to_string(run.join("recipe.toml")).unwrap().parse().unwrap();
    assert_eq!(recipe["transformer"]["dim"].as_integer(), Some(32), "overrides are applied");
    let record = fs::read_to_string(run.join("run.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["command"][1], "pretrain");
    assert!(fs::read_to_string(run.join("curve.svg")).unwrap().trim_end().ends_with("</svg>"));
    assert_eq!(checkpoints(&run), [8, 12], "the last two are kept");
    assert!(!run.join("checkpoints").join(".unfinished-12").exists());
}

#[test]
fn metrics_are_in_order_and_finite() {
    let run = run().0.path().join("run");
    let lines = metrics(&run);
    let steps = |kind: &str| -> Vec<u64> {
        let of_kind = lines.iter().filter(|line| line["kind"] == kind);
        of_kind.map(|line| line["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps("train"), [2, 4, 6, 8, 10, 12]);
    assert_eq!(steps("health"), [2, 4, 6, 8, 10, 12]);
    assert_eq!(steps("held_out"), [0, 6, 12]);
    let order: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert!(order.is_sorted());
    for line in lines.iter().filter(|line| line["kind"] != "action") {
        for (key, value) in numbers(line) {
            assert!(value.is_some_and(f64::is_finite), "{key} in {line}");
        }
        let std = if line["kind"] == "health" {
            &line["metrics"]["local_std"]
        } else {
            &line["target_std"]
        };
        assert!(std.as_f64() > Some(0.0), "{line}");
    }
    let train: Vec<_> = lines.iter().filter(|line| line["kind"] == "train").collect();
    assert!(train.windows(2).all(|pair| pair[0]["epoch"].as_f64() < pair[1]["epoch"].as_f64()));
    assert!(train.iter().all(|line| line["units_per_second"].as_f64() > Some(0.0)));
    for line in train {
        let phases = line["phases"].as_object().unwrap();
        let names: Vec<&str> = phases.keys().map(String::as_str).collect();
        assert_eq!(names, ["backward", "data", "ema", "embed", "optimizer", "student", "teacher"]);
        assert!(phases["backward"].as_f64() > Some(0.0), "{line}");
    }
}

#[test]
fn finished_run_has_nothing_to_do() {
    let (dir, _) = run();
    let data = dir.path().join("data");
    let copy = dir.path().join("again");
    copy_dir(&dir.path().join("run"), &copy);
    let printed = succeed(&mut pretrain(&data, &copy, &[]));
    assert!(printed.contains("this run is finished: 12 steps"), "{printed}");
    assert_same(&dir.path().join("run"), &copy);
}

#[test]
fn extracts_one_file_several_files_and_one_layer() {
    let (dir, _) = run();
    let dir = dir.path();
    let encoder = dir.join("run/encoder");
    let (first, second) = (dir.join("data/speaker/00.wav"), dir.join("data/speaker/19.wav"));
    let last = {
        let out = dir.join("one.npy");
        succeed(&mut extract(&encoder, &[&first], &out));
        let features: Array2<f32> = read_npy(&out).unwrap();
        assert_eq!(features.dim(), (49, 32), "1 s");
        assert!(features.iter().all(|x| x.is_finite()));
        features
    };
    {
        let out = dir.join("all.npy");
        succeed(extract(&encoder, &[&first], &out).args(["--layer", "all"]));
        let features: Array3<f32> = read_npy(&out).unwrap();
        assert_eq!(features.dim(), (1, 49, 32));
        assert_eq!(features.index_axis(ndarray::Axis(0), 0), last);
        succeed(extract(&encoder, &[&first], &out).args(["--layer", "1"]));
        assert_eq!(read_npy::<_, Array2<f32>>(&out).unwrap(), last);
    }
    {
        let out = dir.join("two.safetensors");
        succeed(&mut extract(&encoder, &[&first, &second], &out));
        let tensors = data2vec_core::io::checkpoint::read_tensors(&out).unwrap();
        assert_eq!(tensors.len(), 2);
        assert_eq!(tensors[first.to_str().unwrap()].size(), [49, 32]);
        assert_eq!(tensors[second.to_str().unwrap()].size(), [97, 32], "1.95 s");
    }
    {
        let out = dir.join("features");
        succeed(&mut extract(&encoder, &[&first, &second], &out));
        assert_eq!(read_npy::<_, Array2<f32>>(out.join("00.npy")).unwrap(), last);
        assert_eq!(read_npy::<_, Array2<f32>>(out.join("19.npy")).unwrap().nrows(), 97);
    }
}

#[test]
fn extract_rejects_invalid_arguments() {
    let (dir, _) = run();
    let dir = dir.path();
    let (encoder, out) = (dir.join("run/encoder"), dir.join("refused.npy"));
    let good = dir.join("data/speaker/00.wav");
    for layer in ["0", "2", "-1", "first"] {
        let mut command = extract(&encoder, &[&good], &out);
        fail(command.arg(format!("--layer={layer}")), &["--layer", layer, "1 to 1, last or all"]);
    }
    fail(&mut extract(&dir.join("nowhere"), &[&good], &out), &["nowhere", "has no encoder.toml"]);
    let run_dir = encoder.parent().unwrap();
    fail(&mut extract(run_dir, &[&good], &out), &["has no encoder.toml", "use", "encoder"]);
    fail(&mut extract(&encoder, &[&good], &dir.join("x.bin")), &["unknown ending .bin", ".npy"]);
    let two = extract(&encoder, &[&good, &dir.join("data/speaker/01.wav")], &out);
    fail(&mut { two }, &["refused.npy", "features of one file", "directory"]);
    fail(&mut extract(&encoder, &[&dir.join("gone.wav")], &out), &["gone.wav", "No such file"]);
    let deep = dir.join("no/such/folder.npy");
    fail(&mut extract(&encoder, &[&good], &deep), &["no/such/folder.npy", "there is no directory"]);
    assert!(!out.exists(), "nothing is written");

    // Two inputs of the same name would overwrite each other: detected before any work.
    fs::create_dir_all(dir.join("other")).unwrap();
    fs::copy(&good, dir.join("other/00.wav")).unwrap();
    let same = dir.join("same");
    let files = [good.as_path(), &dir.join("other/00.wav")];
    fail(&mut extract(&encoder, &files, &same), &["two inputs", "00", ".safetensors"]);
    assert!(!same.join("00.npy").exists());
}

#[test]
fn extract_skips_broken_files() {
    let (dir, _) = run();
    let dir = dir.path();
    let (encoder, out) = (dir.join("run/encoder"), dir.join("some"));
    let (good, bad) = (dir.join("data/speaker/00.wav"), dir.join("bad.wav"));
    fs::write(&bad, &fs::read(&good).unwrap()[..9_000]).unwrap();
    let mut command = extract(&encoder, &[&bad, &good], &out);
    let printed = fail(&mut command, &["1 of 2 files"]);
    let path = bad.to_str().unwrap();
    assert_eq!(printed.matches(path).count(), 1, "reported once: {printed}");
    assert!(printed.contains("truncated"), "{printed}");
    assert_eq!(read_npy::<_, Array2<f32>>(out.join("00.npy")).unwrap().nrows(), 49);
    assert!(!out.join("bad.npy").exists());

    // A single file is an error.
    fail(&mut extract(&encoder, &[&bad], &dir.join("none.npy")), &[path, "truncated"]);
    // All files unreadable: no output that looks like a result.
    let none = dir.join("none.safetensors");
    fail(&mut extract(&encoder, &[&bad, &bad], &none), &["2 of 2 files"]);
    assert!(!none.exists());
}

#[test]
fn rejects_broken_encoders() {
    let (dir, _) = run();
    let dir = dir.path();
    let good = dir.join("data/speaker/00.wav");
    let broken = |name: &str, file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, words: &[&str]| {
        let encoder = dir.join(name);
        copy_dir(&dir.join("run/encoder"), &encoder);
        let path = encoder.join(file);
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
        let printed = fail(&mut extract(&encoder, &[&good], &dir.join("broken.npy")), words);
        assert!(printed.contains(encoder.to_str().unwrap()), "{printed}");
    };
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{text}");
            text.replacen(from, to, 1).into_bytes()
        }
    };
    let (weights, config) = ("encoder.safetensors", "encoder.toml");
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    broken("cut", weights, &half, &["not a complete safetensors file"]);
    broken("empty", weights, &|_| Vec::new(), &["not a complete safetensors file"]);
    broken("text", config, &|_| b"once upon a time".to_vec(), &["line 1"]);
    broken("kind", config, &replace("\"wave\"", "\"wove\""), &["wove", "wave"]);
    broken("depth", config, &replace("depth = 1", "depth = 2"), &["blocks.1", "missing"]);
    broken("dim", config, &replace("dim = 32", "dim = 64"), &["shape"]);
    broken("key", config, &replace("depth = ", "dpeth = "), &["dpeth"]);
}

/// A closed pipe, as after `head`, does not end a run.
#[test]
fn survives_closed_pipes() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    let out = dir.path().join("run");
    let mut child = pretrain(&data, &out, &[]).spawn().unwrap();
    drop(child.stderr.take());
    drop(child.stdout.take());
    let status = finish(child).status;
    assert!(status.success(), "{status}");
    assert_eq!(checkpoints(&out), [8, 12]);
    assert!(out.join("encoder/encoder.toml").exists());
}

#[test]
fn plan_reports_memory_and_leaves_no_run() {
    let dir = temp_dir();
    let (data, run) = (corpus(dir.path()), dir.path().join("run"));
    let printed = output(pretrain(&data, &run, &[]).arg("--plan"));
    assert!(printed.status.success(), "{}", stderr(&printed));
    let lines: Vec<String> = stdout(&printed).lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("a trial pass of the largest batch ("), "{lines:?}");
    assert!(lines[1].contains("GiB") && lines[1].contains("on the CPU"), "{lines:?}");
    for name in ["recipe.toml", "run.json", "metrics.jsonl", "encoder"] {
        assert!(!run.join(name).exists(), "{name}");
    }
    // Another recipe may use the directory.
    succeed(&mut pretrain(&data, &run, &["model.activation_checkpointing=true"]));
}
