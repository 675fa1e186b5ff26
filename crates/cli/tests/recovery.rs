//! Runs that go wrong: steps that are not finite, collapse, and what the recipe wants done about it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use data2vec_core::checkpoint::read_tensors;
use serde_json::Value;
use support::*;

#[test]
fn a_step_that_is_not_finite_is_skipped_and_its_batch_kept() {
    let dir = folder();
    let data = loud(dir.path(), |i| i == 7);
    let out = dir.path().join("run");
    let said = succeed(&mut pretrain(&data, &out, &AS_THEY_ARE));
    let actions = actions(&out);
    assert!(!actions.is_empty() && actions.len() < 12, "{actions:?}");
    for action in &actions {
        assert_eq!(action["action"], "skip");
        let reason = action["reason"].as_str().unwrap();
        let file = reason.split("kept in ").nth(1).unwrap();
        assert!(said.contains(reason), "{said}");
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
fn nothing_but_steps_that_are_not_finite_ends_the_run() {
    let dir = folder();
    let data = loud(dir.path(), |_| true);
    let out = dir.path().join("run");
    let mut command = pretrain(&data, &out, &AS_THEY_ARE);
    fail(&mut command, &["10 steps in a row were not finite", "no checkpoint", "schedule.lr"]);
    assert_eq!(actions(&out).len(), 10);
    let kept = fs::read_dir(out.join("bad_steps")).unwrap().count();
    assert_eq!(kept, 20, "a file of tensors and one of names for each");
}

/// A tiny run on texts whose predictions begin to vary and then are all the same, within some 30 steps: the rate
/// is much too high.
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
fn a_collapse_is_met_as_the_recipe_wants() {
    let dir = folder();
    let run = |name: &str| dir.path().join(name);

    let out = run("warn");
    succeed(&mut collapsing(dir.path(), &out, &[]));
    let grave = actions(&out)[0].clone();
    assert!(actions(&out).iter().all(|action| action["action"] == "warn"), "{:?}", actions(&out));

    let out = run("stop");
    let mut command = collapsing(dir.path(), &out, &["train.on_trouble=stop"]);
    fail(&mut command, &["on_trouble = \"stop\"", "schedule.lr", "data2vec doctor"]);
    let last = actions(&out).pop().unwrap();
    assert_eq!(last["action"], "stop");
    assert!(grave["step"].as_u64() <= last["step"].as_u64());

    let out = run("lower");
    let _ = output(&mut collapsing(dir.path(), &out, &["train.on_trouble=lower_lr"]));
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
fn a_run_that_collapses_goes_back_and_on_at_a_lower_rate() {
    let dir = folder();
    let backs = |run: &Path| -> Vec<Value> {
        actions(run).into_iter().filter(|line| line["action"] == "roll_back").collect()
    };
    // Which rates a run can be saved from depends on the last digits of a processor's sums.
    let rates = ["0.7", "0.65", "0.8", "0.5", "1.0"];
    let saved = rates.iter().find_map(|rate| {
        let (out, rate) = (dir.path().join(rate), format!("schedule.lr={rate}"));
        let done =
            output(&mut collapsing(dir.path(), &out, &["train.on_trouble=roll_back", &rate]));
        (done.status.success() && !backs(&out).is_empty()).then_some((out, rate))
    });
    let (undisturbed, rate) = saved.expect("a rate at which a run collapses and can be saved");
    let policy = ["train.on_trouble=roll_back", rate.as_str()];
    let backs = backs(&undisturbed);
    let scales: Vec<f64> = backs.iter().map(|line| line["lr_scale"].as_f64().unwrap()).collect();
    assert!(scales.is_sorted_by(|a, b| a > b), "{backs:?}");
    for back in &backs {
        // It stands at a checkpoint, before what it tells of.
        let [step, from] = ["step", "from"].map(|key| back[key].as_u64().unwrap());
        assert!(step.is_multiple_of(4) && step < from, "{back}");
    }
    let steps: Vec<u64> =
        metrics(&undisturbed).iter().map(|x| x["step"].as_u64().unwrap()).collect();
    assert!(steps.is_sorted(), "{steps:?}");

    // Killed again and again, it comes to the same end.
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
fn nearest_neighbours_tell_classes_while_an_encoder_learns() {
    let dir = folder();
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

    // It changes nothing.
    let without = dir.path().join("without");
    succeed(&mut pretrain_images(&data, &without, &[]));
    assert_eq!(result(&out), result(&without));

    let nowhere = dir.path().join("nowhere");
    fail(&mut with(&dir.path().join("other"), &nowhere), &["--probe", "nowhere"]);
    let one = data.join("dark");
    fail(&mut with(&dir.path().join("other"), &one), &["--probe", "dark"]);
}
