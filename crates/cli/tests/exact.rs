//! Exact resume of each published recipe: a run that is stopped in the middle of an epoch and
//! resumed ends with the same bits as an uninterrupted run.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::*;

/// Overrides that turn on every kind of randomness.
const RANDOM: [&str; 6] = [
    "transformer.layer_drop=0.2",
    "transformer.drop_path=0.1",
    "transformer.input_dropout=0.1",
    "transformer.dropout=0.1",
    "transformer.attention_dropout=0.1",
    "transformer.activation_dropout=0.1",
];

/// Further randomness of decoders that support it.
const DECODER: &[&str] = &["decoder.input_dropout=0.1"];

/// Returns the number of the next batch in the newest checkpoint.
fn next_batch(run: &Path) -> u64 {
    let newest = checkpoint(run, *checkpoints(run).last().unwrap());
    let text = fs::read_to_string(newest.join("checkpoint.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["position"]["next_batch"].as_u64().unwrap()
}

/// Returns the number of batches per epoch, from the last training line.
fn batches_per_epoch(run: &Path) -> u64 {
    let lines = metrics(run);
    let epoch = lines.iter().rev().find_map(|line| line["epoch"].as_f64()).unwrap();
    (next_batch(run) as f64 / epoch).round() as u64
}

/// Asserts that the EMA decay in each line is the schedule's at its step.
fn assert_ema_schedule(run: &Path) {
    for line in metrics(run).iter().filter(|line| line["kind"] == "train") {
        let step = line["step"].as_f64().unwrap();
        let expected = 0.99 - 0.09 * (1.0 - step / 18.0).max(0.0);
        let decay = line["ema_decay"].as_f64().unwrap();
        assert!((decay - expected).abs() < 1e-12, "step {step}: {decay}, not {expected}");
    }
}

/// Stops a run twice at random times in the middle of an epoch, resumes it, and compares it with an
/// uninterrupted run.
fn assert_resumes_exactly(recipe: &str, more: &[&str]) {
    let dir = temp_dir();
    let data = small::data(recipe, dir.path());
    let random: Vec<&str> = RANDOM.iter().chain(more).copied().collect();
    let command = |out: &Path| small::pretrain(recipe, &random, &data, out);
    let straight = dir.path().join("straight");
    succeed(&mut command(&straight));
    assert_ema_schedule(&straight);
    let per_epoch = batches_per_epoch(&straight);
    assert!((3..40).contains(&per_epoch), "{recipe}: {per_epoch} batches an epoch");

    for attempt in 0..20 {
        let out = dir.path().join(format!("stopped-{attempt}"));
        let mut inside = 0;
        for lines in [1, 5] {
            let mut child = command(&out).spawn().unwrap();
            let metrics_text = || fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
            let done =
                || metrics_text().lines().count() > lines || child.try_wait().unwrap().is_some();
            assert!(wait_until(done));
            kill("TERM", child.id());
            let output = finish(child);
            if output.status.success() {
                break; // it finished first
            }
            assert_eq!(output.status.code(), Some(143), "{recipe}: {}", stderr(&output));
            inside += u32::from(!next_batch(&out).is_multiple_of(per_epoch));
        }
        if inside == 2 {
            let printed = succeed(&mut command(&out));
            assert!(printed.contains("resuming from step "), "{recipe}: {printed}");
            assert_same(&straight, &out);
            return;
        }
    }
    panic!("{recipe}: never stopped in the middle of an epoch");
}

#[test]
fn speech_v1() {
    assert_resumes_exactly("speech-v1", &[]);
}

#[test]
fn speech_v2() {
    assert_resumes_exactly("speech", DECODER);
}

#[test]
fn vision_v1() {
    assert_resumes_exactly("vision-v1", &[]);
}

#[test]
fn vision_v2() {
    assert_resumes_exactly("vision", DECODER);
}

#[test]
fn text_v1() {
    assert_resumes_exactly("nlp-v1", &[]);
}

#[test]
fn text_v2() {
    assert_resumes_exactly("nlp", DECODER);
}
