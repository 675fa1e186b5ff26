//! `data stats` and `data verify` for each modality.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::*;

fn data(verb: &str, path: &Path, modality: &str) -> Command {
    let mut command = program(&["data", verb]);
    command.arg(path).args(["--modality", modality]);
    command
}

/// Runs `data stats`. Returns its JSON, its SVG and its standard output.
fn stats(path: &Path, modality: &str, more: &[&str]) -> (Value, String, String) {
    let dir = temp_dir();
    let [json, svg] = ["stats.json", "stats.svg"].map(|name| dir.path().join(name));
    let mut command = data("stats", path, modality);
    command.args(more).arg("--json").arg(&json).arg("--svg").arg(&svg);
    let output = output(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    let json = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    (json, fs::read_to_string(svg).unwrap(), stdout(&output))
}

#[test]
fn reports_recordings() {
    let dir = temp_dir();
    let corpus = corpus(dir.path());
    fs::write(corpus.join("speaker/03.txt"), "THREE").unwrap();
    assert!(
        succeed(&mut data("verify", &corpus, "speech")).contains("20 recordings, all readable")
    );

    let (json, svg, printed) = stats(&corpus, "speech", &[]);
    assert_eq!(json["examples"], 20);
    let seconds = &json["measures"]["seconds"];
    assert!((seconds["total"].as_f64().unwrap() - 29.5).abs() < 1e-6, "{seconds}");
    assert_eq!((seconds["min"].as_f64(), seconds["max"].as_f64()), (Some(1.0), Some(1.95)));
    let bars: Vec<u64> =
        seconds["bars"]["counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(bars.iter().sum::<u64>(), 20);
    assert_eq!(json["kinds"]["16000 Hz, 1 channel"], 20);
    assert!(
        printed.contains("with texts: 1") && printed.contains("20 recordings, 0 unreadable"),
        "{printed}"
    );
    assert!(svg.contains("seconds of 20 recordings"), "{svg}");

    // With the settings of a recipe, and through a manifest.
    let manifest = dir.path().join("some.tsv");
    fs::write(&manifest, "data\nspeaker/00.wav\t16000\nspeaker/19.wav\t31200\n").unwrap();
    let mut command = program(&["data", "stats"]);
    command.arg(&manifest).arg("--recipe").arg(recipe());
    let result = output(command.args(["--set", "data.min_seconds=1.5"]));
    let printed = stdout(&result) + &stderr(&result);
    assert!(printed.contains("2 recordings") && printed.contains("min_seconds = 1.5"), "{printed}");

    // Truncated, empty and silent recordings.
    let complete = fs::read(corpus.join("speaker/00.wav")).unwrap();
    fs::write(corpus.join("speaker/cut.wav"), &complete[..9_000]).unwrap();
    fs::write(corpus.join("speaker/empty.wav"), "").unwrap();
    fs::write(corpus.join("speaker/still.wav"), wav(&[0.0; 16_000])).unwrap();
    let result = output(&mut data("verify", &corpus, "speech"));
    assert_eq!(result.status.code(), Some(1));
    let listed = stdout(&result);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    for (name, reason) in [("cut", "truncated"), ("empty", "0 bytes"), ("still", "silent")] {
        let line = listed.lines().find(|line| line.contains(name)).unwrap();
        assert!(line.contains(reason), "{line}");
    }
    assert!(
        stderr(&result).contains("3 unreadable, 20 recordings readable"),
        "{}",
        stderr(&result)
    );
    assert_eq!(stats(&corpus, "speech", &[]).0["broken"].as_array().unwrap().len(), 3);
}

#[test]
fn reports_images() {
    let dir = temp_dir();
    let data_dir = dir.path().join("images");
    for (class, count) in [("cat", 3), ("dog", 5)] {
        fs::create_dir_all(data_dir.join(class)).unwrap();
        for i in 0..count {
            fs::write(data_dir.join(format!("{class}/{i}.bmp")), bmp(|at| at ^ i)).unwrap();
        }
    }
    let (json, svg, _) = stats(&data_dir, "vision", &[]);
    assert_eq!((&json["examples"], &json["labels"]["dog"]), (&8.into(), &5.into()));
    assert_eq!(json["measures"]["width"]["median"].as_f64(), Some(8.0));
    assert!(json["measures"]["width"].get("total").is_none());
    assert!(svg.contains("width of 8 images") && svg.contains("height of 8 images"));
    succeed(&mut data("verify", &data_dir, "vision"));
    fs::write(data_dir.join("dog/half.bmp"), &bmp(|at| at)[..100]).unwrap();
    let result = output(&mut data("verify", &data_dir, "vision"));
    assert_eq!(result.status.code(), Some(1));
    assert!(stdout(&result).contains("half.bmp: broken image"), "{}", stdout(&result));
}

#[test]
fn reports_texts() {
    let dir = temp_dir();
    let texts: PathBuf = texts(dir.path());
    let (json, _, _) = stats(&texts, "nlp", &[]);
    assert_eq!((&json["examples"], &json["kinds"]["txt"]), (&12.into(), &12.into()));
    fs::write(texts.join("x.jsonl"), "{\"text\": \"one\"}\n{\"text\": 1}\n{\"text\": \"four\"}\n")
        .unwrap();
    fs::write(texts.join("y.txt"), b"not \xff text").unwrap();
    let result = output(&mut data("verify", &texts, "nlp"));
    assert_eq!(result.status.code(), Some(1));
    let listed = stdout(&result);
    assert!(listed.contains("x.jsonl: line 2: no object with a string \"text\""), "{listed}");
    assert!(listed.contains("y.txt: line 1, byte 5: not UTF-8"), "{listed}");
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let (json, _, _) = stats(&texts, "nlp", &[]);
    assert_eq!((&json["examples"], &json["measures"]["letters"]["min"]), (&14.into(), &3.0.into()));

    // Tables of labelled texts.
    let table = dir.path().join("train.tsv");
    fs::write(&table, "sentence\tlabel\ngood\t1\nbad\t0\nno label\nfine\t1\n").unwrap();
    let (json, _, _) = stats(&table, "nlp", &[]);
    assert_eq!((&json["examples"], &json["labels"]["1"]), (&3.into(), &2.into()));
    let result = output(&mut data("verify", &table, "nlp"));
    assert!(stdout(&result).contains("train.tsv: line 4: 1 columns, not 2"), "{}", stdout(&result));
}

#[test]
fn rejects_missing_data() {
    let dir = temp_dir();
    let nowhere = dir.path().join("nowhere");
    fail(&mut data("stats", &nowhere, "speech"), &["nowhere", "No such file"]);
    fail(&mut data("verify", dir.path(), "vision"), &["no image"]);
    fail(&mut data("verify", dir.path(), "nlp"), &["no text"]);
    fail(&mut data("verify", dir.path(), "speech"), &["no audio"]);
    fail(
        &mut data("stats", dir.path(), "visoin"),
        &["unknown modality `visoin`", "did you mean `vision`?"],
    );
}
