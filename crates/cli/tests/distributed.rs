//! One run on several processes: the same numbers whatever their number, and a clean end whatever befalls one.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stderr, reason = "a test that was skipped says why")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::ranks::*;
use support::*;

fn images(dir: &Path) -> PathBuf {
    let data = dir.join("images");
    for i in 0..40_u8 {
        let folder = data.join(format!("{}", i % 2));
        fs::create_dir_all(&folder).unwrap();
        let pixel =
            |x: u32, y: u32| image::Rgb([(x * 20 + u32::from(i)) as u8, (y * 25) as u8, i * 6]);
        image::RgbImage::from_fn(10, 10, pixel).save(folder.join(format!("{i:02}.png"))).unwrap();
    }
    data
}

/// One, two and four processes learn the same, of `make(out, overrides)`.
fn the_same_on_one_two_and_four(make: &dyn Fn(&Path, &[&str]) -> Command, dir: &Path) {
    let out = |size: usize| dir.join(format!("on-{size}"));
    succeed(&mut make(&out(1), &with(&[])));
    for size in [2, 4] {
        // Four share the optimizer as well, and exchange gradients after the backward pass, not during it.
        let shard: &[&str] = match size {
            4 => &["train.shard_optimizer=true", "model.activation_checkpointing=true"],
            _ => &[],
        };
        let said = run_on(size, &|| make(&out(size), &with(shard)));
        assert!(said.contains(&format!("processes: {size}; a step is ")), "{said}");
        assert_close(&out(1), &out(size));
    }
}

#[test]
fn recordings_on_one_two_and_four_processes() {
    let dir = folder();
    let data = corpus(dir.path());
    the_same_on_one_two_and_four(&|out, set| pretrain(&data, out, set), dir.path());
}

#[test]
fn images_on_one_two_and_four_processes() {
    let dir = folder();
    let data = images(dir.path());
    the_same_on_one_two_and_four(&|out, set| pretrain_images(&data, out, set), dir.path());
}

#[test]
fn texts_on_one_two_and_four_processes() {
    let dir = folder();
    let data = texts(dir.path());
    the_same_on_one_two_and_four(&|out, set| pretrain_texts(&data, out, set), dir.path());
}

#[test]
fn fine_tuning_on_one_two_and_four_processes() {
    let dir = folder();
    let data = images(dir.path());
    let run = dir.path().join("pretrained");
    succeed(&mut pretrain_images(&data, &run, &["train.steps=4"]));
    let tune = |out: &Path, overrides: &[&str]| {
        let mut command = program(&["finetune"]);
        command.arg(repository().join("recipes/finetune-vision-tiny.toml"));
        command.arg("--encoder").arg(run.join("encoder")).arg("--data").arg(&data);
        command.arg("--out").arg(out).args(["--device", "cpu"]);
        let own = ["train.held_out=0.2", "train.batch=4", "tune.dropout=0.1"];
        for set in FOUR.iter().filter(|set| set.starts_with("train")).chain(&own).chain(overrides) {
            command.args(["--set", set]);
        }
        command.args(["--set", "schedule.warmup_steps=1"]);
        command
    };
    let out = |size: usize| dir.path().join(format!("on-{size}"));
    succeed(&mut tune(&out(1), &[]));
    for (size, shard) in [(2, "train.shard_optimizer=true"), (4, "train.keep=2")] {
        run_on(size, &|| tune(&out(size), &[shard]));
        assert_close(&out(1), &out(size));
    }
}

#[test]
fn a_group_of_one_is_as_none() {
    let dir = folder();
    let data = corpus(dir.path());
    let [alone, group] = ["alone", "group"].map(|name| dir.path().join(name));
    succeed(&mut pretrain(&data, &alone, &FOUR));
    run_on(1, &|| pretrain(&data, &group, &FOUR));
    assert_same(&alone, &group);
}

#[test]
fn batches_that_cannot_be_divided() {
    let dir = folder();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let outputs = end(start(3, &|| pretrain(&data, &out, &FOUR)));
    for (rank, error) in errors(&outputs).iter().enumerate() {
        let who = format!("error: rank {rank} of 3: ");
        assert!(error.starts_with(&who) && error.contains("a multiple of 3"), "{error}");
    }
    assert!(!out.exists());
}

#[test]
fn a_rank_that_was_started_in_another_way() {
    let dir = folder();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let mut commands = ranks(2, &|| pretrain(&data, &out, &FOUR));
    commands[1].args(["--set", "seed=7"]);
    let errors = errors(&end(commands.iter_mut().map(|c| c.spawn().unwrap()).collect()));
    for error in &errors {
        assert!(error.contains("rank 1 differs from rank 0 in the recipe"), "{error}");
    }
}

#[test]
fn a_rank_that_sees_other_data() {
    let dir = folder();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let fewer = dir.path().join("fewer");
    copy_folder(&data, &fewer);
    for i in 3..9 {
        fs::remove_file(fewer.join(format!("speaker/{i:02}.wav"))).unwrap();
    }
    let mut first = ranks(2, &|| pretrain(&data, &out, &FOUR)).swap_remove(0);
    let mut second = pretrain(&fewer, &out, &FOUR);
    second.args(["--dist-timeout", "20"]);
    for (name, value) in first.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        second.env(name, value);
    }
    second.env("RANK", "1").env("LOCAL_RANK", "1");
    for error in errors(&end(vec![first.spawn().unwrap(), second.spawn().unwrap()])) {
        assert!(error.contains("rank 1 differs from rank 0 in the data"), "{error}");
    }
}

/// The steps that metrics tell of so far.
fn told(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

const LONG: [&str; 3] = ["train.steps=40", "train.save_every=4", "train.eval_every=20"];

/// A run on two processes, in which one is killed when `ready` says so: the other one's error. The same
/// command then ends as if nothing had happened.
fn killed(victim: usize, signal: &str, ready: &dyn Fn(&Path) -> bool) -> Option<String> {
    let dir = folder();
    let data = corpus(dir.path());
    let [out, whole] = ["run", "whole"].map(|name| dir.path().join(name));
    let make = |out: &Path| pretrain(&data, out, &with(&LONG));
    let mut children = start(2, &|| {
        let mut command = make(&out);
        if signal == "STOP" {
            command.args(["--dist-timeout", "3"]);
        }
        command
    });
    let before = Instant::now();
    assert!(wait_until(|| ready(&out) || children[victim].try_wait().unwrap().is_some()));
    kill(signal, children[victim].id());
    let ended = wait_until(|| children[1 - victim].try_wait().unwrap().is_some());
    assert!(ended && before.elapsed() < Duration::from_secs(50));
    kill("KILL", children[victim].id());
    let outputs = end(children);
    let error =
        (!outputs[1 - victim].status.success()).then(|| errors(&outputs)[1 - victim].clone());
    run_on(2, &|| make(&out));
    run_on(2, &|| make(&whole));
    assert_same(&whole, &out);
    error
}

#[test]
fn a_rank_that_is_killed_ends_the_others_and_the_run_goes_on_exactly() {
    let in_steps = |out: &Path| told(out) > 6;
    let error = killed(1, "KILL", &in_steps).expect("it was in time");
    assert!(error.contains("rank 1 is gone or does not answer"), "{error}");
    let writing = |out: &Path| {
        let entries = fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
        entries.map(|e| e.file_name()).any(|n| n.to_string_lossy().starts_with(".unfinished"))
    };
    if let Some(error) = killed(0, "KILL", &writing) {
        assert!(error.contains("rank 0"), "{error}");
    }
    // While they meet.
    if let Some(error) = killed(1, "KILL", &|out| out.join("run.lock").exists()) {
        assert!(error.contains("rank 1"), "{error}");
    }
}

#[test]
fn a_rank_that_hangs_ends_the_others() {
    let error = killed(1, "STOP", &|out| told(out) > 6).expect("it was in time");
    assert!(error.contains("rank 1 is gone or does not answer"), "{error}");
}

#[test]
fn a_rank_that_fails_tells_the_others_why() {
    let dir = folder();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    fs::write(data.join("speaker/07.wav"), wav(&[f32::NAN; 20_000])).unwrap();
    let set = ["train.max_bad_examples=0", "train.held_out=0.0"];
    let errors = errors(&end(start(2, &|| pretrain(&data, &out, &with(&set)))));
    assert!(errors.iter().all(|error| error.contains("07.wav")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains(" failed: ")), "{errors:?}");
}

/// One rank's batch makes the gradients of all of them useless.
#[test]
fn a_step_that_is_not_finite_is_skipped_by_all() {
    let dir = folder();
    let data = loud(dir.path(), |i| i == 7);
    let make = |out: &Path| {
        let mut command = pretrain(&data, out, &with(&AS_THEY_ARE));
        command.args(["--set", "train.batch=2"]);
        command
    };
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    succeed(&mut make(&one));
    run_on(2, &|| make(&two));
    let skipped = actions(&one);
    assert!(!skipped.is_empty() && skipped.len() < 6, "{skipped:?}");
    assert_close(&one, &two);
    for action in skipped {
        let step = action["step"].as_u64().unwrap();
        let names = |run: &Path| {
            let path = run.join(format!("bad_steps/step-{step:08}.txt"));
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(&one), names(&two), "of all ranks");
    }
}

#[test]
fn unusable_examples_are_told_once_whoever_meets_them() {
    let dir = folder();
    let data = corpus(dir.path());
    fs::write(data.join("speaker/07.wav"), wav(&[f32::NAN; 20_000])).unwrap();
    // With one example a batch, a process has nothing at all to add to a step.
    let single = ["train.batch=2.0", "train.accumulate=2", "train.steps=12", "train.log_every=12"];
    for (name, more) in [("many", &["train.log_every=6"][..]), ("single", &single)] {
        let [one, two] = ["one", "two"].map(|run| dir.path().join(format!("{name}-{run}")));
        let set = [&with(&["train.held_out=0.0"]), more].concat();
        succeed(&mut pretrain(&data, &one, &set));
        let said = run_on(2, &|| pretrain(&data, &two, &set));
        assert_eq!(said.matches("note: skipped").count(), 1, "{name}: {said}");
        assert_close(&one, &two);
        let lines = metrics(&two);
        let trained = lines.iter().rfind(|line| line["kind"] == "train").unwrap();
        assert_eq!(trained["bad_examples"], Value::from(1), "{name}");
    }
}

/// In bf16 the teacher is divided as well, and nothing changes: not a bit of any weight, exact or not, and neither
/// when a run goes on.
#[test]
fn a_divided_teacher_is_the_same_teacher() {
    let dir = folder();
    let data = images(dir.path());
    let [whole, divided] = ["whole", "divided"].map(|name| dir.path().join(name));
    let run = |out: &Path, shard: &str| {
        let set = with(&["model.precision=bf16", "schedule.warmup_steps=1", shard]);
        run_on(2, &|| pretrain_images(&data, out, &set))
    };
    run(&whole, "train.shard_optimizer=false");
    let whole = tensors(&whole);
    assert!(whole.keys().any(|name| name.contains("teacher.safetensors")));
    for again in [false, true] {
        if again {
            fs::remove_dir_all(checkpoint(&divided, 6)).unwrap();
        }
        let said = run(&divided, "train.shard_optimizer=true");
        assert_eq!(said.contains("going on from step 4 "), again, "{said}");
        let divided = tensors(&divided);
        for (name, x) in &whole {
            assert_eq!(x.kind(), divided[name].kind(), "{name}");
            assert_eq!(x, &divided[name], "{name}");
        }
        assert_eq!(whole.len(), divided.len());
    }
}

/// Two processes, stopped by a signal to one of them; then one, stopped again; then four.
#[test]
fn another_number_of_processes_goes_on() {
    let dir = folder();
    let data = corpus(dir.path());
    let [out, whole] = ["run", "whole"].map(|name| dir.path().join(name));
    let make = |out: &Path| pretrain(&data, out, &with(&LONG));
    let children = start(2, &|| make(&out));
    assert!(wait_until(|| told(&out) > 4));
    kill("TERM", children[1].id());
    let outputs = end(children);
    let codes: Vec<_> = outputs.iter().map(|output| output.status.code()).collect();
    assert_eq!(codes, [Some(143), Some(143)], "{}", stderr(&outputs[0]));
    assert!(stderr(&outputs[0]).contains("stopped and saved at step "));
    let saved = *checkpoints(&out).last().unwrap();

    let child = make(&out).spawn().unwrap();
    assert!(wait_until(|| told(&out) > saved as usize + 4));
    kill("INT", child.id());
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains(&format!("going on from step {saved} ")));

    let said = run_on(4, &|| make(&out));
    assert!(said.contains("going on from step "), "{said}");
    succeed(&mut make(&whole));
    assert_close(&whole, &out);
}

/// The process that torchrun, process `parent`, has started as rank 1.
fn rank_one_of(parent: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|id: &u32| {
        let read = |name: &str| fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let above = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        above == Some(&parent.to_string())
            && read("environ").split(|&byte| byte == 0).any(|variable| variable == b"RANK=1")
    })
}

#[test]
fn torchrun_starts_all_again_when_one_is_killed() {
    let Some(python) = std::env::var_os("DATA2VEC_PYTHON") else {
        eprintln!("skipped: DATA2VEC_PYTHON names no interpreter with torch");
        return;
    };
    let dir = folder();
    let data = corpus(dir.path());
    let [out, whole] = ["run", "whole"].map(|name| dir.path().join(name));
    let run = pretrain(&data, &out, &with(&LONG));
    let mut torchrun = Command::new(python);
    torchrun.args(["-m", "torch.distributed.run", "--standalone", "--no-python"]);
    torchrun.args(["--nproc-per-node", "2", "--max-restarts", "1"]);
    torchrun.arg(run.get_program()).args(run.get_args()).env("OMP_NUM_THREADS", "1");
    torchrun.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = torchrun.spawn().unwrap();
    assert!(wait_until(|| checkpoint(&out, 4).join("checkpoint.json").exists()));
    kill("KILL", rank_one_of(child.id()).expect("rank 1"));
    let output = finish(child);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("rank 0 of 2: rank 1 is gone") && said.contains("going on from step "),
        "{said}"
    );
    run_on(2, &|| pretrain(&data, &whole, &with(&LONG)));
    assert_same(&whole, &out);
}
