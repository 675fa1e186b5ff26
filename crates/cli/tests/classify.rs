//! Pretraining, fine-tuning and `classify`, for texts and recordings.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::*;

/// Overrides that make fine-tuning take seconds.
const TINY: [&str; 5] = [
    "train.held_out=0.2",
    "train.eval_every=30",
    "train.save_every=60",
    "train.steps=60",
    "schedule.lr=1e-2",
];

fn finetune(recipe: &str, paths: [&Path; 3], overrides: &[&str]) -> Command {
    let [encoder, data, out] = paths;
    let mut command = program(&["finetune"]);
    command.arg(repository().join(format!("recipes/{recipe}.toml")));
    command.arg("--encoder").arg(encoder).arg("--data").arg(data).arg("--out").arg(out);
    command.args(["--device", "cpu"]);
    for set in TINY.iter().chain(overrides) {
        command.args(["--set", set]);
    }
    command
}

/// Returns the most probable class of each file, from `--format json`.
fn classify(model: &Path, files: &[&Path]) -> Vec<String> {
    let mut command = program(&["classify", "--device", "cpu", "--format", "json", "--model"]);
    command.arg(model).args(files);
    let output = output(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (line, file) in lines.iter().zip(files) {
        assert_eq!(line["file"], file.display().to_string());
        let shares = line["classes"].as_array().unwrap();
        let sum: f64 = shares.iter().map(|class| class["probability"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{line}");
    }
    lines.iter().map(|line| line["classes"][0]["label"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn classifies_texts() {
    let dir = temp_dir();
    let dir = dir.path();
    let run = dir.join("run");
    succeed(&mut pretrain_texts(&texts(dir), &run, &["train.steps=4"]));
    // The format of GLUE's SST-2.
    let mut table = "sentence\tlabel\n".to_owned();
    for i in 0..40 {
        let (word, label) = if i % 2 == 0 { ("peace", 1) } else { ("law", 0) };
        table += &format!("{word} of the people{i}\t{label}\n");
    }
    let data = dir.join("labelled");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("train.tsv"), table).unwrap();
    let out = dir.join("tuned");
    let tiny = [
        "data.max_tokens=32",
        "train.batch=256",
        "train.max_examples=8",
        "schedule.warmup_steps=5",
    ];
    succeed(&mut finetune("finetune-nlp-tiny", [&run.join("encoder"), &data, &out], &tiny));

    let file = |name: &str, text: &str| -> PathBuf {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let (law, peace) =
        (file("a.txt", "law of the people77"), file("b.txt", "peace of the people8"));
    assert_eq!(classify(&out.join("model"), &[&law, &peace]), ["0", "1"]);

    let mut command = program(&["classify", "--device", "cpu", "--top", "1", "--model"]);
    command.arg(out.join("model")).arg("-").stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"peace of the people9").unwrap();
    let printed = stdout(&finish(child));
    assert!(printed.starts_with("standard input: 1 ") && printed.ends_with("%\n"), "{printed}");
}

#[test]
fn classifies_recordings() {
    let dir = temp_dir();
    let dir = dir.path();
    let run = dir.join("run");
    succeed(&mut pretrain(&corpus(dir), &run, &["train.steps=4"]));
    // A directory per class: a chirp, and a chirp with pauses.
    let data = dir.join("labelled");
    for (class, is_loud) in [("chirp", true), ("hush", false)] {
        fs::create_dir_all(data.join(class)).unwrap();
        for i in 0..12 {
            let mut samples = sound(1.0, i);
            if !is_loud {
                let every = |at: usize| (at / 800).is_multiple_of(2);
                samples
                    .iter_mut()
                    .enumerate()
                    .filter(|(at, _)| every(*at))
                    .for_each(|s| *s.1 = 0.0);
            }
            fs::write(data.join(class).join(format!("{i}.wav")), wav(&samples)).unwrap();
        }
    }
    let out = dir.join("tuned");
    let tiny = [
        "data.label=class",
        "head.task=classification",
        "head.pool=mean",
        "select=accuracy",
        "train.batch=4",
    ];
    succeed(&mut finetune("finetune-speech-tiny", [&run.join("encoder"), &data, &out], &tiny));
    let files = [data.join("hush/3.wav"), data.join("chirp/5.wav")];
    assert_eq!(classify(&out.join("model"), &[&files[0], &files[1]]), ["hush", "chirp"]);
}
