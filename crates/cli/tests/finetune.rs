//! `finetune` and `evaluate`.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use support::*;

/// Overrides that make a step of fine-tuning take milliseconds.
const TINY: [&str; 9] = [
    "train.steps=24",
    "train.held_out=0.2",
    "train.eval_every=6",
    "train.log_every=3",
    "train.save_every=4",
    "train.keep=3",
    "train.batch=8",
    "schedule.warmup_steps=2",
    "schedule.lr=1e-2",
];

/// Writes 20 dark and 20 bright images, a directory per class.
fn images(dir: &Path) -> PathBuf {
    let (data, mut rng) = (dir.join("images"), StdRng::seed_from_u64(5));
    for (class, level) in [("bright", 150), ("dark", 20)] {
        fs::create_dir_all(data.join(class)).unwrap();
        for i in 0..20 {
            let around = bmp(|_| level + rng.random_range(0..60_u8));
            fs::write(data.join(class).join(format!("{i:02}.bmp")), around).unwrap();
        }
    }
    data
}

struct Pretrained {
    dir: tempfile::TempDir,
}

impl Pretrained {
    fn data(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn encoder(&self) -> PathBuf {
        self.dir.path().join("run/encoder")
    }
}

fn pretrained() -> &'static Pretrained {
    static RUN: OnceLock<Pretrained> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = Pretrained { dir: temp_dir() };
        let data = images(run.dir.path());
        succeed(&mut pretrain_images(&data, &run.dir.path().join("run"), &["train.steps=4"]));
        run
    })
}

fn finetune(out: &Path, overrides: &[&str]) -> Command {
    let run = pretrained();
    let mut command = program(&["finetune"]);
    command.arg(repository().join("recipes/finetune-vision-tiny.toml"));
    command.arg("--encoder").arg(run.encoder()).arg("--data").arg(run.data());
    command.arg("--out").arg(out).args(["--device", "cpu"]);
    for set in TINY.iter().chain(overrides) {
        command.args(["--set", set]);
    }
    command
}

fn evaluate(model: &Path, more: &[&str]) -> Command {
    let mut command = program(&["evaluate", "--device", "cpu", "--model"]);
    command.arg(model).arg("--data").arg(pretrained().data()).args(more);
    command
}

/// Runs the command and expects success. Returns its standard output.
fn stdout_of(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn learns_and_evaluates_classes() {
    let dir = temp_dir();
    let out = dir.path().join("tuned");
    let printed = stdout_of(&mut finetune(&out, &["test_share=0.2"]));
    assert!(printed.contains("data2vec classify --model"), "{printed}");
    let held_out: Vec<f64> = metrics(&out)
        .iter()
        .filter(|line| line["kind"] == "validation")
        .map(|line| line["metrics"]["accuracy"].as_f64().unwrap())
        .collect();
    assert_eq!(held_out.len(), 5); // before the first step, and after 6, 12, 18 and 24
    assert_eq!(held_out.iter().copied().fold(0.0, f64::max), 1.0, "{held_out:?}");

    // The test split has 4 images of each class.
    let json = dir.path().join("report.json");
    let model = out.join("model");
    let printed = stdout_of(evaluate(&model, &["--split", "test", "--json"]).arg(&json));
    assert!(printed.contains("accuracy   1.0000") && printed.contains("bright"), "{printed}");
    let report: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(report["confusion"], serde_json::json!([[4, 0], [0, 4]]));
    assert_eq!(report["examples"], 8);
    let all = stdout_of(&mut evaluate(&model, &["--split", "all"]));
    assert!(all.starts_with("40 examples (all)"), "{all}");
    assert!(all.contains("baseline: accuracy 0.5000"), "{all}");
    let default = stdout_of(&mut evaluate(&model, &[]));
    assert!(default.starts_with("8 examples (test)"), "{default}");

    // A fine-tuned model is also an encoder.
    let features = dir.path().join("features.npy");
    succeed(&mut extract(&model, &[&pretrained().data().join("dark/00.bmp")], &features));
}

#[test]
fn killed_run_resumes_exactly() {
    let dir = temp_dir();
    let (uninterrupted, killed) = (dir.path().join("uninterrupted"), dir.path().join("killed"));
    succeed(&mut finetune(&uninterrupted, &["tune.freeze_steps=3", "train.accumulate=2"]));
    let mut kills = 0;
    for wanted in [2, 6, 9] {
        let mut child =
            finetune(&killed, &["tune.freeze_steps=3", "train.accumulate=2"]).spawn().unwrap();
        let metrics_text = || fs::read_to_string(killed.join("metrics.jsonl")).unwrap_or_default();
        wait_until(|| {
            metrics_text().lines().count() > wanted || child.try_wait().unwrap().is_some()
        });
        if child.try_wait().unwrap().is_none() {
            kill("KILL", child.id());
            kills += 1;
        }
        finish(child);
    }
    succeed(&mut finetune(&killed, &["tune.freeze_steps=3", "train.accumulate=2"]));
    assert!(kills > 0, "each process finished before SIGKILL");
    assert_eq!(timeless_metrics(&uninterrupted), timeless_metrics(&killed));
    for name in ["model/encoder.safetensors", "model/head.safetensors"] {
        let [a, b] = [&uninterrupted, &killed].map(|run| fs::read(run.join(name)).unwrap());
        assert!(a == b, "{name}");
    }
}

#[test]
fn freezes_parts_and_trains_from_scratch() {
    let dir = temp_dir();
    let tensors = |path: PathBuf| data2vec_core::io::checkpoint::read_tensors(&path).unwrap();
    let before = tensors(pretrained().encoder().join("encoder.safetensors"));
    let after = |name: &str, overrides: &[&str], more: &[&str]| {
        let out = dir.path().join(name);
        succeed(finetune(&out, overrides).args(more));
        tensors(out.join("model/encoder.safetensors"))
    };
    // Without evaluation, the last model is exported.
    let last = ["train.held_out=0"];
    let frozen = after("frozen", &[last[0], "tune.freeze_steps=24"], &[]);
    assert!(before.iter().all(|(name, tensor)| frozen[name] == *tensor));
    let local = after("local", &[last[0], "tune.freeze_local=true"], &[]);
    for (name, tensor) in &before {
        let is_local = name.starts_with("encoder.features.embed.");
        assert_eq!(local[name] == *tensor, is_local, "{name}");
    }
    let scratch = after("scratch", &[last[0], "tune.freeze_steps=24"], &["--from-scratch"]);
    let again = after("again", &[last[0]], &["--from-scratch"]);
    let name = "encoder.transformer.blocks.0.mlp.fc1.weight";
    assert_ne!(scratch[name], before[name]);
    assert_eq!(scratch[name], again[name], "random weights are not frozen");
}

#[test]
fn reports_mistakes_in_one_line() {
    let dir = temp_dir();
    let out = dir.path().join("tuned");
    let run = pretrained();
    let rejects = |set: &[&str], words: &[&str]| fail(&mut finetune(&out, set), words);
    rejects(&["select=wer"], &["select", "wer"]);
    rejects(&["head.pool=none"], &["head.pool", "ctc"]);
    rejects(&["tune.layer_decay=0"], &["tune.layer_decay"]);
    rejects(&["label_share=0"], &["label_share"]);
    rejects(&["tune.dropuot=0.1"], &["unknown key `dropuot`", "did you mean `dropout`?"]);

    // An encoder of another modality, a recipe of another command, a model without a head.
    let by = |recipe: &str| {
        let mut command = program(&["finetune"]);
        command.arg(repository().join(format!("recipes/{recipe}.toml")));
        command.arg("--encoder").arg(run.encoder()).arg("--data").arg(run.data());
        command.arg("--out").arg(&out).args(["--device", "cpu"]);
        command
    };
    fail(&mut by("finetune-nlp-tiny"), &["encoder.toml", "`patch`", "`token`"]);
    fail(&mut by("vision-tiny"), &["a pretraining recipe", "finetune"]);
    fail(&mut evaluate(&run.encoder(), &[]), &["without a head", "fine-tune"]);

    // Other options in the directory of a run.
    succeed(&mut finetune(&out, &[]));
    fail(finetune(&out, &[]).arg("--from-scratch"), &["from_scratch", "--out"]);
    fail(&mut finetune(&out, &["schedule.lr=1e-3"]), &["schedule.lr", "--out"]);
    let broken = out.join("model/head.safetensors");
    fs::write(&broken, &fs::read(&broken).unwrap()[..40]).unwrap();
    fail(&mut evaluate(&out.join("model"), &[]), &["head.safetensors", "safetensors file"]);
}
