//! Invalid input: the program reports it in one line with place, cause and advice. It never panics
//! or loses data.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::*;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns a `pretrain` command of a recipe with this text, and the recipe's path.
fn with_recipe(recipe: &str, dir: &Path) -> (Command, PathBuf) {
    let path = dir.join("recipe.toml");
    fs::write(&path, recipe).unwrap();
    let mut command = program(&["pretrain"]);
    command.arg(&path).arg("--data").arg(dir).arg("--out").arg(dir.join("run"));
    (command, path)
}

#[test]
fn rejects_unusable_data() {
    let dir = temp_dir();
    let (dir, out) = (dir.path(), dir.path().join("run"));
    let missing = dir.join("missing");
    fail(&mut pretrain(&missing, &out, &[]), &[text(&missing), "No such file"]);

    let empty = dir.join("empty");
    fs::create_dir(&empty).unwrap();
    fail(&mut pretrain(&empty, &out, &[]), &[text(&empty), "no audio", "wav"]);

    let texts = dir.join("texts");
    fs::create_dir(&texts).unwrap();
    fs::write(texts.join("one.txt"), "one").unwrap();
    fs::write(texts.join("two.md"), "two").unwrap();
    fail(&mut pretrain(&texts, &out, &[]), &[text(&texts), "no audio"]);
    fail(&mut pretrain(&texts.join("one.txt"), &out, &[]), &["one.txt", "not audio"]);

    let short = dir.join("short");
    fs::create_dir(&short).unwrap();
    fs::write(short.join("a.wav"), wav(&sound(0.1, 1))).unwrap();
    fail(&mut pretrain(&short, &out, &[]), &[text(&short), "shorter", "min_seconds = 0.5"]);

    // Too few for two splits.
    let one = dir.join("one");
    fs::create_dir(&one).unwrap();
    fs::write(one.join("a.wav"), wav(&sound(1.0, 1))).unwrap();
    fail(&mut pretrain(&one, &out, &[]), &["train.held_out", "1 recording"]);
    let all = ["train.held_out=0", "train.steps=3"];
    succeed(&mut pretrain(&one, &out, &all));
}

/// Each is skipped, reported once with its reason, and counted, up to the limit.
#[test]
fn skips_and_counts_broken_recordings() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let good = wav(&sound(1.2, 7));
    let nan = {
        let mut samples = sound(1.0, 8);
        samples[9_000] = f32::NAN;
        wav(&samples)
    };
    let broken = [
        ("text.wav", b"once upon a time".to_vec(), "not audio"),
        ("cut.wav", good[..20_000].to_vec(), "truncated"),
        ("header.wav", good[..30].to_vec(), "cut off"),
        ("zero.wav", Vec::new(), "empty (0 bytes)"),
        ("nan.wav", nan, "NaN"),
        ("silent.wav", wav(&vec![0.0; 16_000]), "silent"),
        ("none.wav", wav(&[]), "no samples"),
    ];
    for (name, bytes, _) in &broken {
        fs::write(data.join(name), bytes).unwrap();
    }
    fs::write(data.join("short.wav"), wav(&sound(0.2, 9))).unwrap();
    let count = broken.len();

    // Two epochs over all usable recordings.
    let allowed = format!("train.max_bad_examples={count}");
    let overrides = ["train.held_out=0", "train.steps=20", &allowed];
    let printed = succeed(&mut pretrain(&data, &out, &overrides));
    for (name, _, reason) in &broken {
        let path = data.join(name);
        let reports: Vec<&str> =
            printed.lines().filter(|line| line.contains(text(&path))).collect();
        assert_eq!(reports.len(), 1, "{name}: {printed}");
        assert!(
            reports[0].starts_with("warning: skipped ") && reports[0].contains(reason),
            "{printed}"
        );
    }
    assert!(printed.contains("too short: 1"), "{printed}");
    let last = metrics(&out).into_iter().rfind(|line| line["kind"] == "train").unwrap();
    assert_eq!(last["bad_examples"], count, "{last}");

    // One more than allowed.
    let (count, allowed) = (count.to_string(), format!("train.max_bad_examples={}", count - 1));
    let overrides = ["train.held_out=0", "train.steps=20", &allowed];
    let out = dir.path().join("strict");
    let printed = fail(
        &mut pretrain(&data, &out, &overrides),
        &[&count, "unusable", "train.max_bad_examples = 6", text(&data)],
    );
    for (name, ..) in &broken {
        assert!(printed.contains(name), "all are reported: {printed}");
    }
}

/// Held-out examples count too.
#[test]
fn counts_broken_recordings_of_both_splits() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    for i in 0..6 {
        fs::write(data.join(format!("nan-{i}.wav")), wav(&[f32::NAN; 16_000])).unwrap();
    }
    for (allowed, is_enough) in [(6, true), (5, false)] {
        let out = dir.path().join(format!("run-{allowed}"));
        let allowed = format!("train.max_bad_examples={allowed}");
        let all = ["train.held_out=0.5", "train.eval_batches=99", "train.steps=20", &allowed];
        let mut command = pretrain(&data, &out, &all);
        if is_enough {
            let printed = succeed(&mut command);
            assert_eq!(printed.matches("warning: skipped ").count(), 6, "{printed}");
            let lines = metrics(&out);
            let last = lines.iter().rfind(|line| line["kind"] == "train").unwrap();
            assert_eq!(last["bad_examples"], 6, "{last}");
        } else {
            fail(&mut command, &["6 unusable", "train.max_bad_examples = 5"]);
        }
    }
}

#[test]
fn rejects_invalid_manifests() {
    let dir = temp_dir();
    let data = corpus(dir.path());
    let (manifest, out) = (dir.path().join("list.tsv"), dir.path().join("run"));
    let train = |lines: &str| {
        fs::write(&manifest, lines).unwrap();
        pretrain(&manifest, &out, &["train.held_out=0", "train.steps=3"])
    };
    let line = "speaker/00.wav\t16000\n";
    let root = format!("{}\n", text(&data));
    let wrong = ["speaker/01.wav 16000", "speaker/01.wav\tlong", "speaker/01.wav\t0", "\t16000"];
    for wrong in wrong {
        let list = format!("{root}{line}{wrong}\n");
        fail(&mut train(&list), &["list.tsv", "line 3", "path<TAB>samples"]);
    }
    fail(&mut train(line), &["list.tsv", "line 1", "directory"]);
    fail(&mut train(""), &["list.tsv", "line 1"]);
    fail(&mut train(&root), &["list.tsv"]);
    let printed = succeed(&mut train(&format!("{root}{line}speaker/gone.wav\t16000\n")));
    assert!(printed.contains("speaker/gone.wav: No such file"), "{printed}");
    let other = "speaker/19.wav\t48000\n"; // it has 31200
    fs::remove_dir_all(&out).unwrap();
    let printed = succeed(&mut train(&format!("{root}{line}{other}")));
    assert!(printed.contains("speaker/19.wav: 31200 samples"), "{printed}");
    fs::remove_dir_all(&out).unwrap();
    let fail_all = format!("/nowhere\n{line}");
    fail(&mut train(&fail_all), &["/nowhere/speaker/00.wav", "No such file"]);
}

/// The error names the key, and no run directory is left behind.
#[test]
fn rejects_impossible_values() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    for (set, words) in [
        ("seed=-1", &["seed", "-1"][..]),
        ("train.steps=0", &["train.steps"]),
        ("train.batch=0", &["train.batch"]),
        ("train.batch=nan", &["train.batch"]),
        ("train.accumulate=0", &["train.accumulate"]),
        ("train.clip_norm=0", &["train.clip_norm"]),
        ("train.held_out=1", &["train.held_out"]),
        ("train.eval_batches=0", &["train.eval_batches"]),
        ("train.eval_every=0", &["train.eval_every"]),
        ("train.log_every=0", &["train.log_every"]),
        ("train.save_every=0", &["train.save_every"]),
        ("train.keep=0", &["train.keep"]),
        ("train.workers=0", &["train.workers"]),
        ("train.workers=many", &["train", "workers", "many"]),
        ("train.max_bad_examples=-1", &["train", "max_bad_examples", "-1"]),
        ("data.min_seconds=0", &["data.min_seconds"]),
        ("data.min_seconds=0.02", &["data.min_seconds", "0.02", "0.045"]),
        ("data.max_seconds=0.1", &["data.max_seconds", "min_seconds = 0.5"]),
        ("data.batching=stretch", &["batching", "stretch", "crop", "pad"]),
        ("model.copies=0", &["model.copies"]),
        ("model.noise_std=-1", &["model.noise_std"]),
        ("model.masked_input=burn", &["masked_input", "burn", "replace", "drop"]),
        ("features.conv_layers=[]", &["features.conv_layers"]),
        ("features.conv_layers=[[16,0,5]]", &["features.conv_layers", "[16, 0, 5]"]),
        ("features.conv_layers=[[16,10]]", &["conv_layers"]),
        ("features.pos_kernel=0", &["features.pos_kernel"]),
        ("features.pos_groups=5", &["features.pos_groups", "32"]),
        ("features.conv_norm=batch", &["conv_norm", "batch", "layer", "group"]),
        ("transformer.dim=0", &["transformer.dim"]),
        ("transformer.heads=5", &["transformer.heads", "5", "32"]),
        ("transformer.depth=0", &["transformer.depth"]),
        ("transformer.mlp_ratio=0", &["transformer.mlp_ratio"]),
        ("transformer.norm_eps=0", &["transformer.norm_eps"]),
        ("transformer.dropout=1", &["transformer.dropout"]),
        ("transformer.layer_drop=-0.1", &["transformer.layer_drop"]),
        ("mask.kind=spiral", &["mask", "spiral", "blocks"]),
        ("mask.probability=1.5", &["mask.probability"]),
        ("mask.length=0", &["mask.length"]),
        ("mask.adjust=2", &["mask.adjust"]),
        ("target.top_k=0", &["target.top_k"]),
        ("target.top_k=9", &["target.top_k", "9", "1"]),
        ("target.source=head", &["source", "head", "ffn"]),
        ("loss.beta=-1", &["loss.beta"]),
        ("loss.scale=0", &["loss.scale"]),
        ("decoder.kind=magic", &["decoder", "magic", "conv1d"]),
        ("decoder.dim=0", &["decoder.dim"]),
        ("decoder.groups=5", &["decoder.groups", "5"]),
        ("decoder.kernel=0", &["decoder.", "kernel"]),
        ("decoder.layers=0", &["decoder.", "layers"]),
        ("decoder.projections=3", &["decoder.projections"]),
        ("decoder.input_dropout=2", &["decoder.input_dropout"]),
        ("ema.decay=2", &["ema.decay"]),
        ("ema.end_decay=-1", &["ema.end_decay"]),
        ("ema.scope=half", &["scope", "half", "context"]),
        ("optimizer.betas=[0.9,1.0]", &["optimizer.betas"]),
        ("optimizer.eps=0", &["optimizer.eps"]),
        ("optimizer.weight_decay=-1", &["optimizer.weight_decay"]),
        ("optimizer.compat=[\"magic\"]", &["compat", "magic"]),
        ("schedule.kind=steps", &["schedule", "steps", "cosine"]),
        ("schedule.lr=0", &["schedule.lr"]),
        ("schedule.min_lr=-1", &["schedule.min_lr"]),
        ("schedule.warmup_steps=12", &["schedule.warmup_steps", "12"]),
    ] {
        println!("{set}");
        let printed = fail(&mut pretrain(&data, &out, &[set]), words);
        assert!(printed.contains("speech-tiny.toml"), "the recipe is named: {printed}");
        assert!(!out.exists(), "{set} left a run directory");
    }
}

/// Values that are valid for other data.
#[test]
fn rejects_values_that_do_not_fit_the_data() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let words = ["train.batch = 1 ", "1.95 s of audio", "19.wav"];
    fail(&mut pretrain(&data, &out, &["train.batch=1", "train.held_out=0"]), &words);
    fail(&mut pretrain(&data, &out, &["train.batch=1"]), &["train.batch", "s of audio"]);
    fail(&mut pretrain(&data, &out, &["data.min_seconds=3"]), &["data", "min_seconds = 3"]);
    fail(
        &mut pretrain(&data, &out, &["train.held_out=1e-9"]),
        &["train.held_out", "0 of 20 recordings; try 0."],
    );
    // More than the address space holds.
    let huge = ["transformer.dim=4000000", "features.pos_layers=0"];
    fail(&mut pretrain(&data, &out, &huge), &["not enough memory"]);
    // No step was taken: another recipe may use the run directory.
    succeed(&mut pretrain(&data, &out, &["train.steps=3"]));
}

#[test]
fn rejects_unknown_keys_and_invalid_overrides() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    for (set, words) in [
        ("transformer.dpeth=3", &["unknown key `dpeth`", "transformer", "`depth`"][..]),
        ("transfromer.depth=3", &["--set transfromer.depth=3", "`transformer`"]),
        ("transformer=3", &["transformer"]),
        ("train=3", &["train"]),
        ("sede=3", &["unknown key `sede`", "`seed`"]),
        ("decoder.krenel=3", &["unknown key `krenel`", "decoder"]),
        ("mask.lenght=3", &["unknown key `lenght`", "mask"]),
        ("nonsense", &["--set nonsense", "KEY=VALUE"]),
        ("=3", &["--set =3"]),
        ("seed.depth=3", &["--set seed.depth=3", "seed"]),
        ("train.steps=[1", &["steps"]),
        ("modality=speach", &["unknown modality `speach`", "`speech`"]),
        ("modality=smell", &["unknown modality `smell`", "speech, vision"]),
        ("modality=3", &["modality", "3"]),
    ] {
        println!("{set}");
        fail(&mut pretrain(&data, &out, &[set]), words);
        assert!(!out.exists(), "{set} left a run directory");
    }
}

#[test]
fn rejects_invalid_recipes() {
    let dir = temp_dir();
    let dir = dir.path();
    let gone = dir.join("gone.toml");
    let mut command = program(&["pretrain", text(&gone), "--data", "x", "--out", text(dir)]);
    fail(&mut command, &[text(&gone), "there is no such recipe"]);
    let mut command = program(&["pretrain", text(dir), "--data", "x", "--out", text(dir)]);
    fail(&mut command, &[text(dir), "directory"]);

    let good = fs::read_to_string(recipe()).unwrap();
    let lines = good.lines().count();
    let (mut command, path) = with_recipe(&format!("{good}\nonce upon a time"), dir);
    fail(&mut command, &[text(&path), &format!("line {}", lines + 2)]);
    let (mut command, path) = with_recipe(&format!("{good}\nwarmup_steps = 7"), dir);
    fail(&mut command, &[text(&path), &format!("line {}", lines + 2), "warmup_steps"]);
    let (mut command, path) = with_recipe("", dir);
    fail(&mut command, &[text(&path), "`modality` is missing"]);
    fs::write(&path, [0xff, 0xfe, 0, 1]).unwrap();
    fail(&mut command, &[text(&path), "UTF-8"]);
    for (without, words) in [
        ("seed = 1\n", &["`seed` is missing"][..]),
        ("mlp_ratio = 4.0\n", &["`mlp_ratio` is missing", "transformer"]),
        ("[loss]\nbeta = 0.0\n", &["`loss` is missing"]),
    ] {
        assert!(good.contains(without));
        let (mut command, path) = with_recipe(&good.replacen(without, "", 1), dir);
        fail(&mut command, words);
        fail(&mut command, &[text(&path)]);
    }
    assert!(!dir.join("run").exists());
}

#[test]
fn rejects_invalid_devices() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let on = |device: &str| {
        let mut command = program(&["pretrain"]);
        command.arg(recipe()).arg("--data").arg(&data).arg("--out").arg(&out);
        command.args(["--device", device]);
        command
    };
    for device in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""] {
        fail(&mut on(device), &["--device", device, "cpu, cuda, cuda:N"]);
    }
    // More GPUs than any machine has.
    let printed = fail(&mut on("cuda:1000"), &["--device cuda:1000"]);
    assert!(printed.contains("CUDA"), "{printed}");
    assert!(!out.exists());
}

#[test]
fn resume_rejects_another_recipe() {
    let dir = temp_dir();
    let (data, out) = (corpus(dir.path()), dir.path().join("run"));
    let mut command = pretrain(&data, &out, &["train.steps=3"]);
    fail(command.arg("--resume"), &["--resume", "no run", text(&out)]);
    succeed(&mut pretrain(&data, &out, &["train.steps=3"]));
    let kept = fs::read(out.join("recipe.toml")).unwrap();
    let other = ["train.steps=3", "transformer.dim=64", "schedule.lr=0.5"];
    fail(
        &mut pretrain(&data, &out, &other),
        &[text(&out), "transformer.dim: 32 → 64", "schedule.lr: 0.0005 → 0.5", "--out"],
    );
    fail(&mut pretrain(&data, &out, &["train.steps=4"]), &["train.steps: 3 → 4"]);
    assert_eq!(kept, fs::read(out.join("recipe.toml")).unwrap());
    // Keys that do not affect the result may change.
    succeed(&mut pretrain(&data, &out, &["train.steps=3", "train.workers=2", "train.keep=9"]));
    // A recipe that was edited.
    fs::write(out.join("recipe.toml"), "seed = ").unwrap();
    fail(&mut pretrain(&data, &out, &["train.steps=3"]), &["recipe.toml", "line 1"]);
}
