//! Each check fails on a series made for it, and none fails on the metrics of healthy runs.

use super::diagnosis::{Diagnosis, Verdict};
use super::{Check, Watch};
use crate::metrics::{Action, ActionLine, HealthLine, HeldOutLine, Line, Pretraining, TrainLine};

/// A training line with loss, gradient norm, `target_std` and `pred_std`.
fn train(step: u64, [loss, grad_norm, target_std, pred_std]: [f64; 4]) -> Line {
    let pretraining = Some(Pretraining { target_std, pred_std, ..Pretraining::default() });
    Line::Train(TrainLine { step, loss, grad_norm, pretraining, ..TrainLine::default() })
}

fn held_out(step: u64, explained: f64) -> Line {
    Line::HeldOut(HeldOutLine {
        step,
        loss: 1.0,
        explained_variance: Some(explained),
        target_std: 0.6,
        pred_std: 0.3,
        ..HeldOutLine::default()
    })
}

fn health(step: u64, metrics: &[(&str, f64)]) -> Line {
    let metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Line::Health(HealthLine { step, metrics })
}

/// A training line of a healthy run.
fn healthy(step: u64) -> Line {
    train(step, [1.0, 1.0, 0.6, 0.3])
}

/// Returns the failed checks, each with the step at which it was reported.
fn failures(steps: u64, lines: &[Line]) -> Vec<(u64, Check)> {
    let mut watch = Watch::new(steps);
    let update = |line: &Line| {
        let issues = watch.update(line).into_iter();
        issues.map(|issue| (line.step(), issue.check)).collect::<Vec<_>>()
    };
    lines.iter().flat_map(update).collect()
}

#[test]
fn healthy_run_has_no_issues() {
    // Like `recipes/speech-tiny.toml`: the loss falls, rises and stays up, block ranks fall far,
    // and predictions hardly vary until the decoder has learned.
    let lines: Vec<Line> = (1..=40)
        .flat_map(|i| {
            let x = f64::from(i as u32);
            let loss = if i < 8 { 8.0 - x } else { (1.0 + 0.2 * (x - 8.0)).min(5.0) };
            let pred_std = if i < 3 { 0.002 } else { 0.4 };
            [
                train(10 * i, [loss, 1.0 + x % 3.0, 0.6, pred_std]),
                health(
                    10 * i,
                    &[("block_01_rank", (135.0 - 5.0 * x).max(4.5)), ("local_rank", 40.0)],
                ),
                held_out(10 * i, 0.02 * x),
            ]
        })
        .collect();
    assert_eq!(failures(400, &lines), []);
    assert_eq!(Diagnosis::new(&lines, 400).verdict, Verdict::Healthy);
    assert_eq!(Diagnosis::new(&lines[..6], 400).verdict, Verdict::TooEarly);
    assert_eq!(Diagnosis::new(&[], 400).verdict, Verdict::TooEarly);
    // One outlier is no trend.
    let outlier = [1, 2, 3, 4, 5].map(|i| match i {
        4 => train(i, [9.0, 90.0, 0.01, 0.0]),
        _ => healthy(i),
    });
    assert_eq!(failures(10, &outlier), []);
}

#[test]
fn detects_collapsed_targets() {
    let shrinking = [0.6, 0.3, 0.05, 0.04, 0.04, 0.2, 0.05, 0.05];
    let lines: Vec<Line> = (1..).zip(shrinking).map(|(i, t)| train(i, [1.0, 1.0, t, t])).collect();
    assert_eq!(
        failures(8, &lines),
        [(4, Check::Targets), (8, Check::Targets)],
        "reported again after it was resolved"
    );
    let flat = [1, 2, 3].map(|i| train(i, [1.0, 1.0, 0.001, 0.001]));
    assert_eq!(failures(8, &flat), [(2, Check::Targets)]);
    let diagnosis = Diagnosis::new(&lines, 8);
    assert_eq!(diagnosis.verdict, Verdict::Collapsed);
    let [first, second] = &diagnosis.results[..] else { panic!("two results") };
    assert_eq!((first.until, second.until), (Some(6), None));
    assert_eq!(second.issue.evidence, "target_std is 0.05, at first 0.6, since step 7");
    assert_eq!(Diagnosis::new(&lines[..6], 8).verdict, Verdict::Suspicious);
}

#[test]
fn detects_collapsed_predictions_only_after_they_varied() {
    let lines = |before: f64| -> Vec<Line> {
        let pred_std = |i| if i < 4 { before } else { 0.004 };
        (1..=8).map(|i| train(i, [1.0, 1.0, 0.6, pred_std(i)])).collect()
    };
    assert_eq!(failures(8, &lines(0.3)), [(6, Check::Predictions)]);
    assert_eq!(failures(8, &lines(0.02)), [], "0.02 of 0.6 is less than twice the limit");
}

#[test]
fn compares_ranks_with_first_ranks() {
    let fall = |name: &str, from: f64, to: f64| -> Vec<Line> {
        (1..=5).map(|i| health(i, &[(name, if i < 3 { from } else { to })])).collect()
    };
    assert_eq!(failures(5, &fall("target_rank", 20.0, 1.2)), [(4, Check::TargetRank)]);
    assert_eq!(failures(5, &fall("target_rank", 20.0, 3.0)), []);
    assert_eq!(
        failures(5, &fall("block_07_rank", 135.0, 4.5)),
        [],
        "usual in short runs of tiny models"
    );
    assert_eq!(failures(5, &fall("block_07_rank", 135.0, 2.5)), [(5, Check::LowRank)]);
    assert_eq!(failures(5, &fall("block_07_rank", 135.0, 1.2)), [(4, Check::Features)]);
    assert_eq!(failures(5, &fall("local_rank", 20.0, 1.1)), [(4, Check::LocalEncoder)]);
    assert_eq!(failures(5, &fall("local_rank", 20.0, 1.9)), [(5, Check::LowRank)]);
    assert_eq!(failures(5, &fall("local_std", 0.5, 0.004)), [(4, Check::LocalEncoder)]);
    assert_eq!(failures(5, &fall("local_rank", 1.3, 1.2)), [], "data with one direction");
    let ranks = |step, low| {
        health(step, &[("block_1_rank", 50.0), ("block_2_rank", low), ("block_3_rank", low / 2.0)])
    };
    let lines = [(1, 40.0), (2, 2.0), (3, 2.0), (4, 2.0)].map(|(step, low)| ranks(step, low));
    let evidence = "effective rank of block 3 is 1, at first 20, since step 2";
    assert_eq!(Diagnosis::new(&lines, 5).results[0].issue.evidence, evidence);
}

#[test]
fn detects_diverging_loss_unless_targets_grow() {
    let rise = |loss: f64, target: f64| -> Vec<Line> {
        let at = |i| if i < 4 { [2.0, 1.0, 0.5, 0.2] } else { [loss, 1.0, target, 0.2] };
        (1..=7).map(|i| train(i, at(i))).collect()
    };
    assert_eq!(failures(7, &rise(7.0, 0.5)), [(6, Check::Diverging)]);
    assert_eq!(Diagnosis::new(&rise(7.0, 0.5), 7).verdict, Verdict::Diverged);
    assert_eq!(failures(7, &rise(7.0, 1.0)), [], "the square of the targets' growth");
    assert_eq!(failures(7, &rise(5.0, 0.5)), []);
    assert_eq!(failures(7, &rise(f64::NAN, 0.5)), [(4, Check::NotFinite)]);
    // Fine-tuning has no regression targets.
    let finetune = |step, loss| Line::Train(TrainLine { step, loss, ..TrainLine::default() });
    let lines = [(1, 2.0), (2, 7.0), (3, 7.0), (4, 7.0)].map(|(step, loss)| finetune(step, loss));
    assert_eq!(failures(7, &lines), [(4, Check::Diverging)]);
}

#[test]
fn compares_gradients_with_usual_gradients() {
    let exploding = |i: u64| train(i, [1.0, if i > 10 { 30.0 } else { 1.0 }, 0.6, 0.3]);
    assert_eq!(failures(20, &(1..=16).map(exploding).collect::<Vec<_>>()), [(13, Check::Gradient)]);
    let steady = |i: u64| train(i, [1.0, 1.2_f64.powi(i as i32), 0.6, 0.3]);
    assert_eq!(failures(20, &(1..=16).map(steady).collect::<Vec<_>>()), []);
}

#[test]
fn checks_explained_variance() {
    let lines = |values: &[f64]| -> Vec<Line> {
        (0..).zip(values).map(|(i, explained)| held_out(100 * i, *explained)).collect()
    };
    assert_eq!(failures(400, &lines(&[-0.5, 0.0, 0.01, 0.01])), [(200, Check::NothingLearned)]);
    assert_eq!(failures(400, &lines(&[-0.5, 0.0, 0.03, 0.05])), []);
    assert_eq!(failures(80, &lines(&[-0.5, 0.0])), [(100, Check::NothingLearned)]);
    assert_eq!(failures(800, &lines(&[0.0, 0.3, -0.1, -0.1])), [(300, Check::Forgetting)]);
    assert_eq!(failures(800, &lines(&[0.0, 0.5, 0.99])), [(200, Check::TooEasy)]);
}

#[test]
fn names_models_that_learn_positions_only() {
    let lines = |values: &[(f64, f64)]| -> Vec<Line> {
        let line =
            |(i, &(explained, content)): (u64, &(f64, f64))| match held_out(100 * i, explained) {
                Line::HeldOut(line) => {
                    Line::HeldOut(HeldOutLine { explained_content: Some(content), ..line })
                }
                other => other,
            };
        (0..).zip(values).map(line).collect()
    };
    let positions = [(-0.5, -3.0), (0.6, -0.1), (0.8, 0.01), (0.8, 0.01)];
    assert_eq!(failures(400, &lines(&positions)), [(200, Check::PositionsOnly)]);
    let content = [(-0.5, -3.0), (0.6, -0.1), (0.8, 0.1), (0.8, 0.2)];
    assert_eq!(failures(400, &lines(&content)), []);
}

#[test]
fn recovery_actions_make_a_run_suspicious() {
    let action = |action| {
        let line =
            ActionLine { step: 3, action, reason: "a collapse".into(), lr_scale: None, from: None };
        let mut lines: Vec<Line> = (1..=8).map(healthy).collect();
        lines.insert(3, Line::Action(line));
        Diagnosis::new(&lines, 8)
    };
    assert_eq!(action(Action::RollBack).verdict, Verdict::Suspicious);
    assert_eq!(action(Action::RollBack).actions.len(), 1);
    assert_eq!(action(Action::Warn).verdict, Verdict::Healthy);
}
