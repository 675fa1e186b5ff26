//! `probe` for each modality, and `classify`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::*;

/// Writes ten dark and ten bright pictures, a directory per class.
fn pictures(dir: &Path) -> PathBuf {
    let data = dir.join("pictures");
    for (class, picture) in [("bright", "brightness-1.37.png"), ("dark", "brightness-0.63.png")] {
        fs::create_dir_all(data.join(class)).unwrap();
        for i in 0..10 {
            fs::copy(image(picture), data.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
    data
}

/// Writes ten low and ten high voices of different lengths, a directory per class.
fn voices(dir: &Path) -> PathBuf {
    let data = dir.join("voices");
    for (class, pitch) in [("low", 0), ("high", 8)] {
        fs::create_dir_all(data.join(class)).unwrap();
        for i in 0..10 {
            let sound = sound(1.0 + 0.05 * i as f64, 9 * i + pitch);
            fs::write(data.join(class).join(format!("{i}.wav")), wav(&sound)).unwrap();
        }
    }
    data
}

/// Writes a table of twenty labelled texts.
fn opinions(dir: &Path) -> PathBuf {
    let data = dir.join("opinions.tsv");
    let line = |i| match i % 2 {
        0 => format!("the people of a state {i}\tgood\n"),
        _ => format!("{i} law law peace law {i} law\tbad\n"),
    };
    fs::write(&data, format!("text\tlabel\n{}", (0..20).map(line).collect::<String>())).unwrap();
    data
}

fn probe(encoder: &Path, data: &Path, more: &[&str]) -> Command {
    let mut command = program(&["probe", "--device", "cpu", "--k", "3", "--encoder"]);
    command.arg(encoder).arg("--data").arg(data).args(more);
    command
}

/// Runs the command and expects success. Returns its standard output.
fn stdout_of(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn probes_all_modalities() {
    let dir = temp_dir();
    let dir = dir.path();
    let (pictures, voices, opinions) = (pictures(dir), voices(dir), opinions(dir));
    let run = |name: &str| dir.join(name);
    let short = ["train.steps=3", "transformer.depth=2"];
    succeed(&mut pretrain_images(&pictures, &run("vision"), &short));
    succeed(&mut pretrain(&voices, &run("speech"), &short));
    succeed(&mut pretrain_texts(&texts(dir), &run("nlp"), &short));
    let cases = [
        ("vision", &pictures, "standardised pixels"),
        ("speech", &voices, "log-mel means"),
        ("nlp", &opinions, "TF-IDF"),
    ];
    for (name, data, raw) in cases {
        let (encoder, json) = (run(name).join("encoder"), run(name).join("probe.json"));
        let printed =
            stdout_of(probe(&encoder, data, &["--test-share", "0.4", "--json"]).arg(&json));
        assert!(printed.starts_with("2 classes: "), "{name}: {printed}");
        for row in ["most frequent class", "untrained encoder, block 1", "encoder, block 2", raw] {
            assert!(printed.lines().any(|line| line.starts_with(row)), "{name}, {row}: {printed}");
        }
        let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        let [train, test] =
            ["train_examples", "test_examples"].map(|side| report[side].as_u64().unwrap());
        assert!(train + test == 20 && (4..=10).contains(&test), "{name}: {report}");
        let layers = report["layers"].as_array().unwrap();
        assert_eq!((layers.len(), report["untrained"].as_array().unwrap().len()), (2, 2), "{name}");
        // So does the raw input.
        for layer in layers.iter().chain([&report["raw"]]) {
            // Any encoder separates classes that differ this much.
            assert!(layer["linear"].as_f64().unwrap() > 0.7, "{name}: {report}");
            assert!(layer["knn"].as_f64().unwrap() > 0.7, "{name}: {report}");
        }
        let again = stdout_of(&mut probe(&encoder, data, &["--test-share", "0.4"]));
        assert_eq!(again, printed, "{name}: deterministic");
    }
}

#[test]
fn supports_pooling_test_data_limit_and_layers() {
    let dir = temp_dir();
    let data = pictures(dir.path());
    let run = dir.path().join("run");
    succeed(&mut pretrain_images(&data, &run, &["train.steps=3"]));
    let encoder = run.join("encoder");
    let options = ["--no-baselines", "--layers", "last", "--pool", "max:2"];
    let short = stdout_of(&mut probe(&encoder, &data, &options));
    assert!(
        short.starts_with("2 classes: 16 training examples, 4 test examples; max:2 over"),
        "{short}"
    );
    assert_eq!(short.lines().count(), 5, "{short}");
    let test = data.to_str().unwrap();
    let other = stdout_of(&mut probe(&encoder, &data, &["--test", test, "--limit", "9"]));
    assert!(other.contains("9 training examples, 9 test examples"), "{other}");

    fail(&mut probe(&encoder, &data, &["--layers", "7"]), &["--layers 7", "1 to 1"]);
    let result = output(&mut probe(&encoder, &data, &["--limit", "0"]));
    assert_eq!(result.status.code(), Some(2));
    assert!(stderr(&result).contains("'--limit <LIMIT>': must be at least 1"));
    fail(&mut probe(&encoder, &data, &["--test-share", "0"]), &["--test-share"]);
    let one_class = dir.path().join("one");
    fs::create_dir_all(one_class.join("dark")).unwrap();
    fs::copy(image("brightness-0.63.png"), one_class.join("dark/0.png")).unwrap();
    fail(&mut probe(&encoder, &one_class, &["--test-share", "0"]), &["one class"]);
    fail(&mut probe(&encoder, &data.join("dark"), &[]), &["0.png has no label", "labels.tsv"]);
    fail(&mut probe(&data, &data, &[]), &["encoder.toml"]);
}

#[test]
fn classifies_files() {
    let dir = temp_dir();
    let data = pictures(dir.path());
    let (run, tuned) = (dir.path().join("run"), dir.path().join("tuned"));
    succeed(&mut pretrain_images(&data, &run, &["train.steps=3"]));
    let mut finetune = program(&["finetune", "--device", "cpu"]);
    finetune.arg(repository().join("recipes/finetune-vision-tiny.toml"));
    finetune.arg("--encoder").arg(run.join("encoder")).arg("--data").arg(&data);
    finetune.arg("--out").arg(&tuned);
    for set in ["train.steps=30", "train.batch=8", "schedule.lr=1e-2", "schedule.warmup_steps=2"] {
        finetune.args(["--set", set]);
    }
    succeed(&mut finetune);

    let (model, dark) = (tuned.join("model"), image("brightness-0.63.png"));
    let classify = |files: &[&Path], more: &[&str]| {
        let mut command = program(&["classify", "--device", "cpu", "--model"]);
        command.arg(&model).args(more).args(files);
        command
    };
    let printed = stdout_of(&mut classify(&[&dark], &[]));
    let name = dark.display().to_string();
    assert!(
        printed.starts_with(&format!("{name}: dark ")) && printed.contains(", bright "),
        "{printed}"
    );

    // Commands that do not train print on every rank of a job.
    let mut on_rank1 = classify(&[&dark], &[]);
    on_rank1.envs([("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")]);
    on_rank1.envs([("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")]);
    assert_eq!(stdout_of(&mut on_rank1), printed);

    // A broken file is skipped.
    let (broken, bright) = (dir.path().join("broken.png"), image("brightness-1.37.png"));
    fs::write(&broken, "no picture").unwrap();
    let output = output(&mut classify(&[&broken, &bright], &["--format", "json", "--top", "1"]));
    assert_eq!(output.status.code(), Some(1));
    let (printed, noted) = (stdout(&output), stderr(&output));
    let line: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(line["file"], bright.display().to_string());
    assert_eq!(line["classes"].as_array().unwrap().len(), 1);
    assert_eq!(line["classes"][0]["label"], "bright");
    assert!(line["classes"][0]["probability"].as_f64().unwrap() > 0.5);
    assert!(noted.contains("skipped") && noted.contains("broken.png"), "{noted}");
    assert!(noted.contains("error: 1 of 2 files could not be used"), "{noted}");

    let piped = |file: &Path| {
        let mut command = classify(&[Path::new("-")], &[]);
        command.stdin(File::open(file).unwrap());
        command
    };
    assert!(stdout_of(&mut piped(&dark)).starts_with("standard input: dark "));
    fail(&mut piped(&broken), &["error: standard input: is not an image of a supported format"]);

    let result = support::output(&mut classify(&[&dark], &["--top", "0"]));
    assert_eq!(result.status.code(), Some(2));
    assert!(stderr(&result).contains("'--top <TOP>': must be at least 1"));
    let mut headless = program(&["classify", "--device", "cpu", "--model"]);
    headless.arg(run.join("encoder")).arg(&dark);
    fail(&mut headless, &["encoder without a head", "fine-tune it first"]);
}
