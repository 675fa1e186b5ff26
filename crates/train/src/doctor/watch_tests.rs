//! Each sign is found in a series made for it, and none in what healthy runs tell.

use super::diagnosis::{Diagnosis, Verdict};
use super::{Sign, Watch};
use crate::metrics::{Action, ActionLine, HealthLine, HeldOutLine, Line, Pretraining, TrainLine};

/// A line of training with loss, gradient and spreads of targets and predictions.
fn train(step: u64, [loss, grad_norm, target_var, pred_var]: [f64; 4]) -> Line {
    let pretraining = Some(Pretraining { target_var, pred_var, ..Pretraining::default() });
    Line::Train(TrainLine { step, loss, grad_norm, pretraining, ..TrainLine::default() })
}

fn held_out(step: u64, explained: f64) -> Line {
    let (explained, target_var, pred_var) = (Some(explained), 0.6, 0.3);
    Line::HeldOut(HeldOutLine { step, loss: 1.0, explained, target_var, pred_var })
}

fn health(step: u64, figures: &[(&str, f64)]) -> Line {
    let figures = figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Line::Health(HealthLine { step, figures })
}

/// A healthy line.
fn usual(step: u64) -> Line {
    train(step, [1.0, 1.0, 0.6, 0.3])
}

/// Steps and kinds of what `watch` has to say of `lines`.
fn told(steps: u64, lines: &[Line]) -> Vec<(u64, Sign)> {
    let mut watch = Watch::new(steps);
    let see = |line: &Line| {
        let symptoms = watch.see(line).into_iter();
        symptoms.map(|symptom| (line.step(), symptom.sign)).collect::<Vec<_>>()
    };
    lines.iter().flat_map(see).collect()
}

#[test]
fn a_run_that_learns_shows_nothing() {
    // As `recipes/speech-tiny.toml` goes: the loss falls, rises and stays up, ranks of blocks fall far,
    // and predictions hardly vary until the decoder has learned.
    let lines: Vec<Line> = (1..=40)
        .flat_map(|i| {
            let x = f64::from(i as u32);
            let loss = if i < 8 { 8.0 - x } else { (1.0 + 0.2 * (x - 8.0)).min(5.0) };
            let pred_var = if i < 3 { 0.002 } else { 0.4 };
            [
                train(10 * i, [loss, 1.0 + x % 3.0, 0.6, pred_var]),
                health(
                    10 * i,
                    &[("block_01_rank", (135.0 - 5.0 * x).max(4.5)), ("local_rank", 40.0)],
                ),
                held_out(10 * i, 0.02 * x),
            ]
        })
        .collect();
    assert_eq!(told(400, &lines), []);
    assert_eq!(Diagnosis::of(&lines, 400).verdict, Verdict::Healthy);
    assert_eq!(Diagnosis::of(&lines[..6], 400).verdict, Verdict::TooEarly);
    assert_eq!(Diagnosis::of(&[], 400).verdict, Verdict::TooEarly);
    // One line out of the ordinary is no trend.
    let odd = [1, 2, 3, 4, 5].map(|i| match i {
        4 => train(i, [9.0, 90.0, 0.01, 0.0]),
        _ => usual(i),
    });
    assert_eq!(told(10, &odd), []);
}

#[test]
fn targets_collapse_by_what_they_were_or_outright() {
    let shrinking = [0.6, 0.3, 0.05, 0.04, 0.04, 0.2, 0.05, 0.05];
    let lines: Vec<Line> = (1..).zip(shrinking).map(|(i, t)| train(i, [1.0, 1.0, t, t])).collect();
    assert_eq!(
        told(8, &lines),
        [(4, Sign::Targets), (8, Sign::Targets)],
        "again, once it was gone"
    );
    let flat = [1, 2, 3].map(|i| train(i, [1.0, 1.0, 0.001, 0.001]));
    assert_eq!(told(8, &flat), [(2, Sign::Targets)]);
    let diagnosis = Diagnosis::of(&lines, 8);
    assert_eq!(diagnosis.verdict, Verdict::Collapsed);
    let [first, second] = &diagnosis.findings[..] else { panic!("two findings") };
    assert_eq!((first.until, second.until), (Some(6), None));
    assert_eq!(second.symptom.evidence, "targets vary by 0.05, at first by 0.6, since step 7");
    assert_eq!(Diagnosis::of(&lines[..6], 8).verdict, Verdict::Suspicious);
}

#[test]
fn predictions_collapse_only_after_they_varied() {
    let lines = |before: f64| -> Vec<Line> {
        let spread = |i| if i < 4 { before } else { 0.004 };
        (1..=8).map(|i| train(i, [1.0, 1.0, 0.6, spread(i)])).collect()
    };
    assert_eq!(told(8, &lines(0.3)), [(6, Sign::Predictions)]);
    assert_eq!(told(8, &lines(0.02)), [], "0.02 of 0.6 is less than twice the limit");
}

#[test]
fn ranks_are_compared_with_the_first_ones() {
    let fall = |name: &str, from: f64, to: f64| -> Vec<Line> {
        (1..=5).map(|i| health(i, &[(name, if i < 3 { from } else { to })])).collect()
    };
    assert_eq!(told(5, &fall("target_rank", 20.0, 1.2)), [(4, Sign::TargetRank)]);
    assert_eq!(told(5, &fall("target_rank", 20.0, 3.0)), []);
    assert_eq!(
        told(5, &fall("block_07_rank", 135.0, 4.5)),
        [],
        "usual in short runs of tiny models"
    );
    assert_eq!(told(5, &fall("block_07_rank", 135.0, 2.5)), [(5, Sign::FewDirections)]);
    assert_eq!(told(5, &fall("block_07_rank", 135.0, 1.2)), [(4, Sign::Features)]);
    assert_eq!(told(5, &fall("local_rank", 20.0, 1.1)), [(4, Sign::LocalEncoder)]);
    assert_eq!(told(5, &fall("local_rank", 20.0, 1.9)), [(5, Sign::FewDirections)]);
    assert_eq!(told(5, &fall("local_var", 0.5, 0.004)), [(4, Sign::LocalEncoder)]);
    assert_eq!(told(5, &fall("local_rank", 1.3, 1.2)), [], "data of one direction");
    let ranks = |step, low| {
        health(step, &[("block_1_rank", 50.0), ("block_2_rank", low), ("block_3_rank", low / 2.0)])
    };
    let lines = [(1, 40.0), (2, 2.0), (3, 2.0), (4, 2.0)].map(|(step, low)| ranks(step, low));
    let evidence = "block 3 varies in 1 directions, at first in 20, since step 2";
    assert_eq!(Diagnosis::of(&lines, 5).findings[0].symptom.evidence, evidence);
}

#[test]
fn a_loss_diverges_above_that_of_an_untrained_model_unless_targets_grow() {
    let rise = |loss: f64, target: f64| -> Vec<Line> {
        let at = |i| if i < 4 { [2.0, 1.0, 0.5, 0.2] } else { [loss, 1.0, target, 0.2] };
        (1..=7).map(|i| train(i, at(i))).collect()
    };
    assert_eq!(told(7, &rise(7.0, 0.5)), [(6, Sign::Diverging)]);
    assert_eq!(Diagnosis::of(&rise(7.0, 0.5), 7).verdict, Verdict::Diverged);
    assert_eq!(told(7, &rise(7.0, 1.0)), [], "the square of the targets' growth");
    assert_eq!(told(7, &rise(5.0, 0.5)), []);
    assert_eq!(told(7, &rise(f64::NAN, 0.5)), [(4, Sign::NotFinite)]);
    // Fine-tuning has no targets that could grow.
    let tune = |step, loss| Line::Train(TrainLine { step, loss, ..TrainLine::default() });
    let lines = [(1, 2.0), (2, 7.0), (3, 7.0), (4, 7.0)].map(|(step, loss)| tune(step, loss));
    assert_eq!(told(7, &lines), [(4, Sign::Diverging)]);
}

#[test]
fn gradients_are_compared_with_the_usual_ones() {
    let steep = |i: u64| train(i, [1.0, if i > 10 { 30.0 } else { 1.0 }, 0.6, 0.3]);
    assert_eq!(told(20, &(1..=16).map(steep).collect::<Vec<_>>()), [(13, Sign::Gradient)]);
    let steady = |i: u64| train(i, [1.0, 1.2_f64.powi(i as i32), 0.6, 0.3]);
    assert_eq!(told(20, &(1..=16).map(steady).collect::<Vec<_>>()), []);
}

#[test]
fn explained_variance_tells_what_was_learned() {
    let lines = |values: &[f64]| -> Vec<Line> {
        (0..).zip(values).map(|(i, explained)| held_out(100 * i, *explained)).collect()
    };
    assert_eq!(told(400, &lines(&[-0.5, 0.0, 0.01, 0.01])), [(200, Sign::Unlearned)]);
    assert_eq!(told(400, &lines(&[-0.5, 0.0, 0.03, 0.05])), []);
    assert_eq!(told(80, &lines(&[-0.5, 0.0])), [(100, Sign::Unlearned)]);
    assert_eq!(told(800, &lines(&[0.0, 0.3, -0.1, -0.1])), [(300, Sign::Unlearning)]);
    assert_eq!(told(800, &lines(&[0.0, 0.5, 0.99])), [(200, Sign::TooEasy)]);
}

#[test]
fn what_was_done_makes_a_run_suspicious() {
    let action = |action| {
        let line =
            ActionLine { step: 3, action, reason: "a collapse".into(), lr_scale: None, from: None };
        let mut lines: Vec<Line> = (1..=8).map(usual).collect();
        lines.insert(3, Line::Action(line));
        Diagnosis::of(&lines, 8)
    };
    assert_eq!(action(Action::RollBack).verdict, Verdict::Suspicious);
    assert_eq!(action(Action::RollBack).actions.len(), 1);
    assert_eq!(action(Action::Warn).verdict, Verdict::Healthy);
}
