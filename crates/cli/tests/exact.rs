//! Each published recipe, made small: stopped in the middle of an epoch and gone on with, it ends with the
//! same bits as a run that nobody stopped.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::*;

/// For all: sizes alone are changed, and all that is random is switched on.
const SMALL: [&str; 23] = [
    "train.steps=24",
    "train.accumulate=2",
    "train.held_out=0.2",
    "train.eval_batches=1",
    "train.eval_every=8",
    "train.log_every=3",
    "train.save_every=50",
    "train.workers=3",
    "transformer.dim=32",
    "transformer.depth=4",
    "transformer.heads=2",
    "transformer.layer_drop=0.2",
    "transformer.drop_path=0.1",
    "transformer.input_dropout=0.1",
    "transformer.dropout=0.1",
    "transformer.attention_dropout=0.1",
    "transformer.activation_dropout=0.1",
    "target.top_k=2",
    "ema.decay=0.9",
    "ema.end_decay=0.99",
    "ema.anneal_steps=18",
    "optimizer.weight_decay=0.05",
    "schedule.lr=2e-3",
];

const SPEECH: [&str; 6] = [
    "data.min_seconds=0.5",
    "features.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    "features.pos_layers=2",
    "features.pos_kernel=5",
    "features.pos_groups=4",
    "train.batch=3",
];

const VISION: [&str; 6] = [
    "features.image_size=[16,16]",
    "features.channels=1",
    "features.mean=[0.4]",
    "features.std=[0.3]",
    "features.patch_size=4",
    "train.batch=5",
];

const TEXT: [&str; 6] = [
    "data.tokenizer={train=300}",
    "data.block=32",
    "features.vocabulary=300",
    "features.mask=299",
    "features.max_tokens=32",
    "train.batch=512",
];

/// Decoders of several layers.
const DECODER: [&str; 4] =
    ["decoder.dim=16", "decoder.groups=4", "decoder.layers=2", "decoder.input_dropout=0.1"];

/// The cosine's warm-up, and several masks of each input.
const WARMUP: &str = "schedule.warmup_steps=5";
const COPIES: &str = "model.copies=3";

fn command(recipe: &str, sets: &[&[&str]], data: &Path, out: &Path) -> Command {
    let mut command = program(&["pretrain"]);
    command.arg(repository().join(format!("recipes/{recipe}.toml")));
    command.arg("--data").arg(data).arg("--out").arg(out).args(["--device", "cpu"]);
    for set in SMALL.iter().chain(sets.iter().copied().flatten()) {
        command.args(["--set", set]);
    }
    command
}

/// Number of the next batch in the newest checkpoint.
fn next_batch(run: &Path) -> u64 {
    let newest = checkpoint(run, *checkpoints(run).last().unwrap());
    let text = fs::read_to_string(newest.join("checkpoint.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["position"]["next_batch"].as_u64().unwrap()
}

/// Batches of an epoch, from the last line about training.
fn batches_per_epoch(run: &Path) -> u64 {
    let lines = metrics(run);
    let epoch = lines.iter().rev().find_map(|line| line["epoch"].as_f64()).unwrap();
    (next_batch(run) as f64 / epoch).round() as u64
}

/// The decay that each line tells is the one of its step, no more and no fewer.
fn check_teacher(run: &Path) {
    for line in metrics(run).iter().filter(|line| line["kind"] == "train") {
        let step = line["step"].as_f64().unwrap();
        let expected = 0.99 - 0.09 * (1.0 - step / 18.0).max(0.0);
        let decay = line["ema_decay"].as_f64().unwrap();
        assert!((decay - expected).abs() < 1e-12, "step {step}: {decay}, not {expected}");
    }
}

/// Stops the run twice at moments that only the machine knows, in the middle of an epoch, and compares.
fn resumes(recipe: &str, sets: &[&[&str]], data: impl Fn(&Path) -> PathBuf) {
    let dir = folder();
    let data = data(dir.path());
    let straight = dir.path().join("straight");
    succeed(&mut command(recipe, sets, &data, &straight));
    check_teacher(&straight);
    let per_epoch = batches_per_epoch(&straight);
    assert!((3..40).contains(&per_epoch), "{recipe}: {per_epoch} batches an epoch");

    for attempt in 0..20 {
        let out = dir.path().join(format!("stopped-{attempt}"));
        let mut inside = 0;
        for lines in [1, 5] {
            let mut child = command(recipe, sets, &data, &out).spawn().unwrap();
            let told = || fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
            let done = || told().lines().count() > lines || child.try_wait().unwrap().is_some();
            assert!(wait_until(done));
            kill("TERM", child.id());
            let output = finish(child);
            if output.status.success() {
                break; // it was faster
            }
            assert_eq!(output.status.code(), Some(143), "{recipe}: {}", stderr(&output));
            inside += u32::from(!next_batch(&out).is_multiple_of(per_epoch));
        }
        if inside == 2 {
            let said = succeed(&mut command(recipe, sets, &data, &out));
            assert!(said.contains("going on from step "), "{recipe}: {said}");
            assert_same(&straight, &out);
            return;
        }
    }
    panic!("{recipe}: never stopped in the middle of an epoch");
}

/// 30 images of noise as an IDX file.
fn images(dir: &Path) -> PathBuf {
    let data = dir.join("train-images-idx3-ubyte");
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 30, 0, 0, 0, 20, 0, 0, 0, 20];
    let mut state = 1_u32;
    bytes.extend((0..30 * 400).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    fs::write(&data, bytes).unwrap();
    data
}

#[test]
fn speech_1() {
    resumes("speech-v1", &[&SPEECH], corpus);
}

#[test]
fn speech_2() {
    resumes("speech", &[&SPEECH, &DECODER, &[WARMUP, COPIES]], corpus);
}

#[test]
fn vision_1() {
    let masks = ["mask.patches=7", "mask.min_block=2", "mask.max_block=8"];
    resumes("vision-v1", &[&VISION, &masks, &[WARMUP]], images);
}

#[test]
fn vision_2() {
    let more = [WARMUP, COPIES, "mask.length=2"];
    resumes("vision", &[&VISION, &DECODER, &more], images);
}

#[test]
fn text_1() {
    resumes("nlp-v1", &[&TEXT, &[WARMUP]], texts);
}

#[test]
fn text_2() {
    resumes("nlp", &[&TEXT, &DECODER, &[WARMUP, COPIES]], texts);
}
