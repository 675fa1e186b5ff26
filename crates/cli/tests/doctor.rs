//! `data2vec doctor`: what it says of runs that learn, of runs that do not, and of what is left of a run.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::*;

/// Exit code, and what is said on standard output.
fn doctor(run: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = output(program(&["doctor"]).arg(run).args(more));
    assert_eq!(stderr(&output), "");
    (output.status.code(), stdout(&output))
}

fn diagnosis(run: &Path) -> Value {
    serde_json::from_str(&doctor(run, &["--json"]).1).unwrap()
}

/// A run's folder of `lines` alone.
fn told(dir: &Path, lines: &[Value], end: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("recipe.toml"), "modality = \"speech\"\n[train]\nsteps = 100\n").unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(dir.join("metrics.jsonl"), text + end).unwrap();
}

/// Lines of training, as they were before there were figures of health.
fn lines(target_var: impl Fn(u64) -> f64) -> Vec<Value> {
    let line = |i: u64| {
        json!({"kind": "train", "step": 10 * i, "epoch": 0.1, "loss": 2.0, "grad_norm": 1.0, "lr": 0.1,
            "target_var": target_var(i), "pred_var": 0.5 * target_var(i), "masked_share": 0.5,
            "ema_decay": 0.99, "units_per_second": 1.0, "waiting": 0.0, "bad_examples": 0})
    };
    (1..=10).map(line).collect()
}

#[test]
fn a_run_of_old_lines_has_a_verdict_while_it_goes_on_and_after_its_end() {
    let dir = folder();
    let run = dir.path().join("run");
    told(&run, &lines(|_| 0.6), "");
    let (code, said) = doctor(&run, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("healthy, at step 100 of 100"), "{said}");

    // In the middle of a line, as a run writes it.
    told(&run, &lines(|i| if i < 5 { 0.6 } else { 0.004 }), "{\"kind\":\"tra");
    let (code, said) = doctor(&run, &[]);
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "collapsed, at step 100",
        "step 60: collapsed targets: targets vary by 0.004",
        "what helps",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let found = diagnosis(&run);
    assert_eq!(found["verdict"], "collapsed");
    assert_eq!(found["findings"][0]["sign"], "targets");
    assert_eq!(found["findings"][0]["step"], 60);

    for few in [0, 3] {
        told(&run, &lines(|_| 0.6)[..few], "");
        let (code, said) = doctor(&run, &[]);
        assert!(code == Some(0) && said.contains("too early to tell"), "{said}");
    }
}

#[test]
fn of_fine_tuning_losses_and_figures_are_told() {
    let dir = folder();
    let run = dir.path().join("run");
    let mut all = Vec::new();
    for (i, loss) in (1..=8).zip([4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2]) {
        all.push(json!({"kind": "train", "step": 10 * i, "epoch": 0.1, "loss": loss, "grad_norm": 1.0, "lr": 0.1,
            "units_per_second": 1.0, "waiting": 0.0, "bad_examples": 0}));
        let held_out = 1.0 + (i as f64 - 4.0).powi(2);
        all.push(json!({"kind": "validation", "step": 10 * i, "loss": held_out, "figures": {"wer": 0.5}}));
    }
    told(&run, &all, "");
    let (code, said) = doctor(&run, &[]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "healthy",
        "held-out loss: 10 at step 10, 17 at step 80, best 1 at step 40",
        "wer: 0.5 at step 10",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn what_is_no_run_is_one_error() {
    let dir = folder();
    let output = output(program(&["doctor"]).arg(dir.path()));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("error: ") && stderr(&output).contains("is no run"));
    assert_eq!(stderr(&output).lines().count(), 1);
}

/// What a healthy run of a recipe tells; exit code 0, and nothing grave at any time.
fn stays_healthy(recipe: &str) {
    let dir = folder();
    let (data, run) = (small::data(recipe, dir.path()), dir.path().join("run"));
    let more = ["train.steps=60", "train.log_every=2"];
    succeed(small::pretrain(recipe, &more, &data, &run).arg("--no-report"));
    let found = diagnosis(&run);
    assert_eq!(doctor(&run, &[]).0, Some(0), "{recipe}: {found:#}");
    let findings = found["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["is_grave"] == false), "{recipe}: {found:#}");
}

#[test]
fn healthy_runs_of_speech_are_not_flagged() {
    small::RECIPES[..2].iter().for_each(|recipe| stays_healthy(recipe));
}

#[test]
fn healthy_runs_of_images_are_not_flagged() {
    small::RECIPES[2..4].iter().for_each(|recipe| stays_healthy(recipe));
}

#[test]
fn healthy_runs_of_texts_are_not_flagged() {
    small::RECIPES[4..].iter().for_each(|recipe| stays_healthy(recipe));
}

/// Targets that nothing normalises, and a rate that is far too high: the student's features collapse at once, and
/// the doctor knows by step 40. The same targets at a usual rate are no trouble.
#[test]
fn a_run_that_collapses_is_caught_within_forty_steps() {
    let dir = folder();
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
    let ((code, said), found) = train("collapsed", "schedule.lr=3e-2");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("collapsed, at step 40 of 40"), "{said}");
    assert!(
        found["findings"].as_array().unwrap().iter().any(|f| f["sign"] == "features"),
        "{said}"
    );
    let ((code, said), found) = train("usual", "schedule.lr=1e-3");
    assert_eq!(code, Some(0), "{said}");
    assert!(found["findings"].as_array().unwrap().iter().all(|f| f["is_grave"] == false), "{said}");
}
