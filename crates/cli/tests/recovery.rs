//! Recovery of failing runs: non-finite steps, collapse, and `train.on_failure`.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use data2vec_core::io::checkpoint::read_tensors;
use serde_json::Value;
use support::*;

#[test]
fn skips_non_finite_steps_and_keeps_their_batches() {
    let dir = temp_dir();
    let data = loud(dir.path(), |i| i == 7);
    let out = dir.path().join("run");
    let printed = succeed(&mut pretrain(&data, &out, &WITHOUT_NORMALIZATION));
    let actions = actions(&out);
    assert!(!actions.is_empty() && actions.len() < 12, "{actions:?}");
    for action in &actions {
        assert_eq!(action["action"], "skip");
        let reason = action["reason"].as_str().unwrap();
        let file = reason.split("saved to ").nth(1).unwrap();
        assert!(printed.contains(reason), "{printed}");
        let names = fs::read_to_string(out.join(file).with_extension("txt")).unwrap();
        assert!(names.contains("07.wav"), "{names}");
        let kept = read_tensors(&out.join(file)).unwrap();
        let largest = kept["0.inputs"].abs().max().double_value(&[]);
        assert!(largest > 1e35, "{largest}");
        assert_eq!(kept["0.inputs"].size()[0] as usize, names.lines().count());
    }
    for tensor in read_tensors(&out.join("encoder/encoder.safetensors")).unwrap().values() {
        assert_eq!(tensor.isfinite().all().int64_value(&[]), 1);
    }
}

#[test]
fn fails_if_no_step_is_finite() {
    let dir = temp_dir();
    let data = loud(dir.path(), |_| true);
    let out = dir.path().join("run");
    let mut command = pretrain(&data, &out, &WITHOUT_NORMALIZATION);
    fail(&mut command, &["not finite in 10 consecutive steps", "no checkpoint", "schedule.lr"]);
    assert_eq!(actions(&out).len(), 10);
    let kept = fs::read_dir(out.join("bad_steps")).unwrap().count();
    assert_eq!(kept, 20, "tensors and names of each step");
}

/// Returns a tiny run on texts that collapses within about 30 steps: the learning rate is much too
/// high.
fn collapsing(dir: &Path, out: &Path, more: &[&str]) -> Command {
    let mut overrides = vec![
        "train.steps=32",
        "schedule.lr=0.775",
        "schedule.warmup_steps=31",
        "ema.decay=0.5",
        "ema.end_decay=0.5",
        "train.log_every=2",
        "train.save_every=4",
        "train.keep=20",
    ];
    overrides.extend(more);
    pretrain_texts(&texts(dir), out, &overrides)
}

#[test]
fn handles_collapse_as_configured() {
    let dir = temp_dir();
    let run = |name: &str| dir.path().join(name);

    let out = run("warn");
    succeed(&mut collapsing(dir.path(), &out, &[]));
    let first_warning = actions(&out)[0].clone();
    assert!(actions(&out).iter().all(|action| action["action"] == "warn"), "{:?}", actions(&out));

    let out = run("stop");
    let mut command = collapsing(dir.path(), &out, &["train.on_failure=stop"]);
    fail(&mut command, &["on_failure = \"stop\"", "schedule.lr", "data2vec doctor"]);
    let last = actions(&out).pop().unwrap();
    assert_eq!(last["action"], "stop");
    assert!(first_warning["step"].as_u64() <= last["step"].as_u64());

    let out = run("lower");
    let _ = output(&mut collapsing(dir.path(), &out, &["train.on_failure=lower_lr"]));
    let lowered: Vec<Value> =
        actions(&out).into_iter().filter(|line| line["action"] == "lower_lr").collect();
    assert_eq!(lowered[0]["lr_scale"], 0.5);
    let step = lowered[0]["step"].as_u64().unwrap();
    let rate = |run: &Path, step: u64| {
        let line = metrics(run).into_iter().find(|x| x["kind"] == "train" && x["step"] == step);
        line.unwrap()["lr"].as_f64().unwrap()
    };
    assert!((rate(&out, step + 2) / rate(&run("warn"), step + 2) - 0.5).abs() < 1e-9);
}

#[test]
fn rolls_back_after_collapse() {
    let dir = temp_dir();
    let roll_backs = |run: &Path| -> Vec<Value> {
        actions(run).into_iter().filter(|line| line["action"] == "roll_back").collect()
    };
    // From which rates a run recovers depends on the rounding of the processor.
    let rates = ["0.7", "0.65", "0.8", "0.5", "1.0"];
    let saved = rates.iter().find_map(|rate| {
        let (out, rate) = (dir.path().join(rate), format!("schedule.lr={rate}"));
        let done =
            output(&mut collapsing(dir.path(), &out, &["train.on_failure=roll_back", &rate]));
        (done.status.success() && !roll_backs(&out).is_empty()).then_some((out, rate))
    });
    let (undisturbed, rate) = saved.expect("a rate at which a run collapses and recovers");
    let policy = ["train.on_failure=roll_back", rate.as_str()];
    let roll_backs = roll_backs(&undisturbed);
    let scales: Vec<f64> =
        roll_backs.iter().map(|line| line["lr_scale"].as_f64().unwrap()).collect();
    assert!(scales.is_sorted_by(|a, b| a > b), "{roll_backs:?}");
    for line in &roll_backs {
        // It leads to a checkpoint before the failure.
        let [step, from] = ["step", "from"].map(|key| line[key].as_u64().unwrap());
        assert!(step.is_multiple_of(4) && step < from, "{line}");
    }
    let steps: Vec<u64> =
        metrics(&undisturbed).iter().map(|x| x["step"].as_u64().unwrap()).collect();
    assert!(steps.is_sorted(), "{steps:?}");

    // Repeated kills do not change the result.
    let out = dir.path().join("killed");
    for round in 0..20 {
        let child = collapsing(dir.path(), &out, &policy).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(700 + 150 * round));
        kill("KILL", child.id());
        if finish(child).status.code().is_some() {
            break;
        }
    }
    succeed(&mut collapsing(dir.path(), &out, &policy));
    assert_same(&undisturbed, &out);
}

#[test]
fn probes_during_pretraining() {
    let dir = temp_dir();
    let data = dir.path().join("pictures");
    for (class, picture) in [("bright", "brightness-1.37.png"), ("dark", "brightness-0.63.png")] {
        fs::create_dir_all(data.join(class)).unwrap();
        for i in 0..15 {
            fs::copy(image(picture), data.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
    let out = dir.path().join("run");
    let with = |out: &Path, probe: &Path| {
        let mut command = pretrain_images(&data, out, &[]);
        command.arg("--probe").arg(probe);
        command
    };
    succeed(&mut with(&out, &data));
    let probes: Vec<Value> =
        metrics(&out).into_iter().filter(|line| line["kind"] == "probe").collect();
    let steps: Vec<u64> = probes.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 6, 12]);
    let last = probes.last().unwrap();
    assert_eq!((&last["k"], &last["accuracy"]), (&10.into(), &1.0.into()), "{last}");
    assert!(last["chance"].as_f64().unwrap() < 0.9);

    // The probe does not affect the run.
    let without = dir.path().join("without");
    succeed(&mut pretrain_images(&data, &without, &[]));
    assert_eq!(result(&out), result(&without));

    let nowhere = dir.path().join("nowhere");
    fail(&mut with(&dir.path().join("other"), &nowhere), &["--probe", "nowhere"]);
    let one = data.join("dark");
    fail(&mut with(&dir.path().join("other"), &one), &["--probe", "dark"]);
}
