//! Runs on several ranks: the same metrics for any world size, and a clean end if a rank fails.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stderr, reason = "a skipped test prints the reason")]

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
        let class = data.join(format!("{}", i % 2));
        fs::create_dir_all(&class).unwrap();
        let pixel =
            |x: u32, y: u32| image::Rgb([(x * 20 + u32::from(i)) as u8, (y * 25) as u8, i * 6]);
        image::RgbImage::from_fn(10, 10, pixel).save(class.join(format!("{i:02}.png"))).unwrap();
    }
    data
}

/// Asserts that the run of `make(out, overrides)` gives the same result on 1, 2 and 4 ranks.
fn assert_independent_of_world_size(make: &dyn Fn(&Path, &[&str]) -> Command, dir: &Path) {
    let out = |size: usize| dir.join(format!("on-{size}"));
    succeed(&mut make(&out(1), &with(&[])));
    for size in [2, 4] {
        // On 4 ranks also shards the optimizer; gradients are then reduced after the backward pass,
        // not during it.
        let shard: &[&str] = match size {
            4 => &["train.shard_optimizer=true", "model.activation_checkpointing=true"],
            _ => &[],
        };
        let printed = run_on(size, &|| make(&out(size), &with(shard)));
        assert!(printed.contains(&format!("world size: {size}; a step is ")), "{printed}");
        assert_close(&out(1), &out(size));
    }
}

#[test]
fn speech_run_is_independent_of_world_size() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    assert_independent_of_world_size(&|out, set| pretrain(&data, out, set), dir.path());
}

#[test]
fn vision_run_is_independent_of_world_size() {
    let dir = temp_dir();
    let data = images(dir.path());
    assert_independent_of_world_size(&|out, set| pretrain_images(&data, out, set), dir.path());
}

#[test]
fn text_run_is_independent_of_world_size() {
    let dir = temp_dir();
    let data = texts(dir.path());
    assert_independent_of_world_size(&|out, set| pretrain_texts(&data, out, set), dir.path());
}

#[test]
fn finetuning_is_independent_of_world_size() {
    let dir = temp_dir();
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
fn group_of_one_equals_no_group() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    let [alone, group] = ["alone", "group"].map(|name| dir.path().join(name));
    succeed(&mut pretrain(&data, &alone, &FOUR));
    run_on(1, &|| pretrain(&data, &group, &FOUR));
    assert_same(&alone, &group);
}

#[test]
fn rejects_batches_not_divisible_by_world_size() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let outputs = end(start(3, &|| pretrain(&data, &out, &FOUR)));
    for (rank, error) in errors(&outputs).iter().enumerate() {
        let who = format!("error: rank {rank} of 3: ");
        assert!(error.starts_with(&who) && error.contains("a multiple of 3"), "{error}");
    }
    assert!(!out.exists());
}

#[test]
fn rejects_ranks_with_different_recipes() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let mut commands = ranks(2, &|| pretrain(&data, &out, &FOUR));
    commands[1].args(["--set", "seed=7"]);
    let errors = errors(&end(commands.iter_mut().map(|c| c.spawn().unwrap()).collect()));
    for error in &errors {
        assert!(error.contains("rank 1 differs from rank 0 in the recipe"), "{error}");
    }
}

#[test]
fn rejects_ranks_with_different_data() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let fewer = dir.path().join("fewer");
    copy_dir(&data, &fewer);
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

/// Returns the number of lines of metrics so far.
fn metrics_lines(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

const LONG: [&str; 3] = ["train.steps=40", "train.save_every=4", "train.eval_every=20"];

/// Starts a run on two ranks and sends `signal` to one of them once `ready` returns true. Returns
/// the other rank's error. Asserts that the same command then completes the run exactly.
fn kill_one_rank(victim: usize, signal: &str, ready: &dyn Fn(&Path) -> bool) -> Option<String> {
    let dir = temp_dir();
    let data = corpus(dir.path());
    let [out, uninterrupted] = ["run", "uninterrupted"].map(|name| dir.path().join(name));
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
    run_on(2, &|| make(&uninterrupted));
    assert_same(&uninterrupted, &out);
    error
}

#[test]
fn killed_rank_ends_the_others_and_the_run_resumes_exactly() {
    let in_steps = |out: &Path| metrics_lines(out) > 6;
    let error = kill_one_rank(1, "KILL", &in_steps).expect("rank 0 fails");
    assert!(error.contains("rank 1 is gone or does not answer"), "{error}");
    let writing = |out: &Path| {
        let entries = fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
        entries.map(|e| e.file_name()).any(|n| n.to_string_lossy().starts_with(".unfinished"))
    };
    if let Some(error) = kill_one_rank(0, "KILL", &writing) {
        assert!(error.contains("rank 0"), "{error}");
    }
    // While they join the process group.
    if let Some(error) = kill_one_rank(1, "KILL", &|out| out.join("run.lock").exists()) {
        assert!(error.contains("rank 1"), "{error}");
    }
}

#[test]
fn hanging_rank_ends_the_others() {
    let error = kill_one_rank(1, "STOP", &|out| metrics_lines(out) > 6).expect("rank 0 fails");
    assert!(error.contains("rank 1 is gone or does not answer"), "{error}");
}

#[test]
fn failing_rank_reports_its_reason_to_the_others() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    fs::write(data.join("speaker/07.wav"), wav(&[f32::NAN; 20_000])).unwrap();
    let set = ["train.max_bad_examples=0", "train.held_out=0.0"];
    let errors = errors(&end(start(2, &|| pretrain(&data, &out, &with(&set)))));
    assert!(errors.iter().all(|error| error.contains("07.wav")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains(" failed: ")), "{errors:?}");
}

/// A batch of one rank invalidates the gradients of all.
#[test]
fn all_ranks_skip_a_non_finite_step() {
    let dir = temp_dir();
    let data = loud(dir.path(), |i| i == 7);
    let make = |out: &Path| {
        let mut command = pretrain(&data, out, &with(&WITHOUT_NORMALIZATION));
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
        assert_eq!(names(&one), names(&two), "examples of all ranks");
    }
}

#[test]
fn unusable_examples_are_reported_once() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    fs::write(data.join("speaker/07.wav"), wav(&[f32::NAN; 20_000])).unwrap();
    // With one example per batch, a rank has no batch at all for some step.
    let single = ["train.batch=2.0", "train.accumulate=2", "train.steps=12", "train.log_every=12"];
    for (name, more) in [("many", &["train.log_every=6"][..]), ("single", &single)] {
        let [one, two] = ["one", "two"].map(|run| dir.path().join(format!("{name}-{run}")));
        let set = [&with(&["train.held_out=0.0"]), more].concat();
        succeed(&mut pretrain(&data, &one, &set));
        let printed = run_on(2, &|| pretrain(&data, &two, &set));
        assert_eq!(printed.matches("warning: skipped").count(), 1, "{name}: {printed}");
        assert_close(&one, &two);
        let lines = metrics(&two);
        let trained = lines.iter().rfind(|line| line["kind"] == "train").unwrap();
        assert_eq!(trained["bad_examples"], Value::from(1), "{name}");
    }
}

/// In bf16 the teacher is sharded too. No bit of any weight changes, also after a resume.
#[test]
fn sharded_teacher_equals_replicated_teacher() {
    let dir = temp_dir();
    let data = images(dir.path());
    let [replicated, sharded] = ["replicated", "sharded"].map(|name| dir.path().join(name));
    let run = |out: &Path, shard: &str| {
        let set = with(&["model.precision=bf16", "schedule.warmup_steps=1", shard]);
        run_on(2, &|| pretrain_images(&data, out, &set))
    };
    run(&replicated, "train.shard_optimizer=false");
    let replicated = tensors(&replicated);
    assert!(replicated.keys().any(|name| name.contains("teacher.safetensors")));
    for is_resumed in [false, true] {
        if is_resumed {
            fs::remove_dir_all(checkpoint(&sharded, 6)).unwrap();
        }
        let printed = run(&sharded, "train.shard_optimizer=true");
        assert_eq!(printed.contains("resuming from step 4 "), is_resumed, "{printed}");
        let sharded = tensors(&sharded);
        for (name, x) in &replicated {
            assert_eq!(x.kind(), sharded[name].kind(), "{name}");
            assert_eq!(x, &sharded[name], "{name}");
        }
        assert_eq!(replicated.len(), sharded.len());
    }
}

/// Two ranks, stopped by a signal to one of them; then one process, stopped again; then four ranks.
#[test]
fn resumes_with_another_world_size() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    let [out, uninterrupted] = ["run", "uninterrupted"].map(|name| dir.path().join(name));
    let make = |out: &Path| pretrain(&data, out, &with(&LONG));
    let children = start(2, &|| make(&out));
    assert!(wait_until(|| metrics_lines(&out) > 4));
    kill("TERM", children[1].id());
    let outputs = end(children);
    let codes: Vec<_> = outputs.iter().map(|output| output.status.code()).collect();
    assert_eq!(codes, [Some(143), Some(143)], "{}", stderr(&outputs[0]));
    assert!(stderr(&outputs[0]).contains("stopped and saved at step "));
    let saved = *checkpoints(&out).last().unwrap();

    let child = make(&out).spawn().unwrap();
    assert!(wait_until(|| metrics_lines(&out) > saved as usize + 4));
    kill("INT", child.id());
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains(&format!("resuming from step {saved} ")));

    let printed = run_on(4, &|| make(&out));
    assert!(printed.contains("resuming from step "), "{printed}");
    succeed(&mut make(&uninterrupted));
    assert_close(&uninterrupted, &out);
}

/// Returns the process that torchrun, process `parent`, started as rank 1.
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
fn torchrun_restarts_after_a_killed_rank() {
    let Some(python) = std::env::var_os("DATA2VEC_PYTHON") else {
        eprintln!("skipped: DATA2VEC_PYTHON names no interpreter with torch");
        return;
    };
    let dir = temp_dir();
    let data = corpus(dir.path());
    let [out, uninterrupted] = ["run", "uninterrupted"].map(|name| dir.path().join(name));
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
    let printed = stderr(&output);
    assert!(output.status.success(), "{printed}");
    assert!(
        printed.contains("rank 0 of 2: rank 1 is gone") && printed.contains("resuming from step "),
        "{printed}"
    );
    run_on(2, &|| pretrain(&data, &uninterrupted, &with(&LONG)));
    assert_same(&uninterrupted, &out);
}
