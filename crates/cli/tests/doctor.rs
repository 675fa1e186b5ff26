//! `data2vec doctor` on healthy, collapsed and incomplete runs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::*;

/// Runs the command. Returns exit code and standard output.
fn doctor(run: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = output(program(&["doctor"]).arg(run).args(more));
    assert_eq!(stderr(&output), "");
    (output.status.code(), stdout(&output))
}

fn diagnosis(run: &Path) -> Value {
    serde_json::from_str(&doctor(run, &["--json"]).1).unwrap()
}

/// Writes a run directory with metrics `lines`, followed by the text `end`.
fn write_run(dir: &Path, lines: &[Value], end: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("recipe.toml"), "modality = \"speech\"\n[train]\nsteps = 100\n").unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(dir.join("metrics.jsonl"), text + end).unwrap();
}

/// Returns training lines without health metrics.
fn train_lines(target_std: impl Fn(u64) -> f64) -> Vec<Value> {
    let line = |i: u64| {
        json!({"kind": "train", "step": 10 * i, "epoch": 0.1, "loss": 2.0, "grad_norm": 1.0, "lr": 0.1,
            "target_std": target_std(i), "pred_std": 0.5 * target_std(i), "masked_share": 0.5,
            "ema_decay": 0.99, "units_per_second": 1.0, "waiting": 0.0, "bad_examples": 0})
    };
    (1..=10).map(line).collect()
}

#[test]
fn diagnoses_running_and_finished_runs() {
    let dir = temp_dir();
    let run = dir.path().join("run");
    write_run(&run, &train_lines(|_| 0.6), "");
    let (code, printed) = doctor(&run, &[]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("healthy, at step 100 of 100"), "{printed}");

    // The last line is incomplete, as while a run writes it.
    write_run(&run, &train_lines(|i| if i < 5 { 0.6 } else { 0.004 }), "{\"kind\":\"tra");
    let (code, printed) = doctor(&run, &[]);
    assert_eq!(code, Some(1), "{printed}");
    for part in ["collapsed, at step 100", "step 60: collapsed targets: ", "advice"] {
        assert!(printed.contains(part), "no {part:?} in {printed}");
    }
    let diagnosis = diagnosis(&run);
    assert_eq!(diagnosis["verdict"], "collapsed");
    assert_eq!(diagnosis["results"][0]["check"], "targets");
    assert_eq!(diagnosis["results"][0]["step"], 60);

    for count in [0, 3] {
        write_run(&run, &train_lines(|_| 0.6)[..count], "");
        let (code, printed) = doctor(&run, &[]);
        assert!(code == Some(0) && printed.contains("too early to tell"), "{printed}");
    }
}

#[test]
fn summarizes_finetuning_metrics() {
    let dir = temp_dir();
    let run = dir.path().join("run");
    let mut all = Vec::new();
    for (i, loss) in (1..=8).zip([4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2]) {
        all.push(json!({"kind": "train", "step": 10 * i, "epoch": 0.1, "loss": loss, "grad_norm": 1.0, "lr": 0.1,
            "units_per_second": 1.0, "waiting": 0.0, "bad_examples": 0}));
        let held_out = 1.0 + (i as f64 - 4.0).powi(2);
        all.push(json!({"kind": "validation", "step": 10 * i, "loss": held_out, "metrics": {"wer": 0.5}}));
    }
    write_run(&run, &all, "");
    let (code, printed) = doctor(&run, &[]);
    assert_eq!(code, Some(0), "{printed}");
    for part in [
        "healthy",
        "held-out loss: 10 at step 10, 17 at step 80, best 1 at step 40",
        "wer: 0.5 at step 10",
    ] {
        assert!(printed.contains(part), "no {part:?} in {printed}");
    }
}

#[test]
fn rejects_directory_without_run() {
    let dir = temp_dir();
    let output = output(program(&["doctor"]).arg(dir.path()));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).starts_with("error: ") && stderr(&output).contains("not a run directory")
    );
    assert_eq!(stderr(&output).lines().count(), 1);
}

/// Trains by a recipe. Asserts exit code 0 and that no severe issue was found at any time.
fn assert_healthy(recipe: &str) {
    let dir = temp_dir();
    let (data, run) = (small::data(recipe, dir.path()), dir.path().join("run"));
    let more = ["train.steps=60", "train.log_every=2"];
    succeed(small::pretrain(recipe, &more, &data, &run).arg("--no-report"));
    let found = diagnosis(&run);
    assert_eq!(doctor(&run, &[]).0, Some(0), "{recipe}: {found:#}");
    let results = found["results"].as_array().unwrap();
    assert!(results.iter().all(|result| result["is_severe"] == false), "{recipe}: {found:#}");
}

#[test]
fn does_not_flag_healthy_speech_runs() {
    small::RECIPES[..2].iter().for_each(|recipe| assert_healthy(recipe));
}

#[test]
fn does_not_flag_healthy_vision_runs() {
    small::RECIPES[2..4].iter().for_each(|recipe| assert_healthy(recipe));
}

#[test]
fn does_not_flag_healthy_text_runs() {
    small::RECIPES[4..].iter().for_each(|recipe| assert_healthy(recipe));
}

/// Without normalized targets and with a far too high learning rate, the student's features
/// collapse at once. With a usual learning rate the same targets are healthy.
#[test]
fn detects_collapse_within_40_steps() {
    let dir = temp_dir();
    let data = texts(dir.path());
    let train = |name: &str, rate: &str| {
        let run = dir.path().join(name);
        let set = [
            "train.steps=40",
            "train.log_every=5",
            "transformer.depth=4",
            "transformer.dim=64",
            "target.top_k=3",
            "target.layer_norm=none",
            rate,
        ];
        succeed(pretrain_texts(&data, &run, &set).arg("--no-report"));
        (doctor(&run, &[]), diagnosis(&run))
    };
    let ((code, printed), found) = train("collapsed", "schedule.lr=3e-2");
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("collapsed, at step 40 of 40"), "{printed}");
    assert!(
        found["results"].as_array().unwrap().iter().any(|f| f["check"] == "features"),
        "{printed}"
    );
    let ((code, printed), found) = train("usual", "schedule.lr=1e-3");
    assert_eq!(code, Some(0), "{printed}");
    assert!(
        found["results"].as_array().unwrap().iter().all(|f| f["is_severe"] == false),
        "{printed}"
    );
}
