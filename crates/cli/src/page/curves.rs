//! What `metrics.jsonl` tells, as curves: which belong together, and what to look for in them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::metrics::{self, Line};

/// Points of a curve that are kept; the rest cannot be told apart on a screen.
const POINTS: usize = 1_000;

/// By tag, `train/loss` and the like: values by step. JSON has no NaN: it becomes `null`.
pub type Curves = BTreeMap<String, Vec<(u64, f64)>>;

/// A figure of the page.
#[derive(Clone, Debug, Serialize)]
pub struct Panel {
    /// Of its element in the page.
    pub id: String,
    pub title: String,
    /// What to look for.
    #[serde(skip)]
    pub hint: String,
    /// Whether it starts with a logarithmic scale.
    pub log: bool,
    /// Whether 0 is to be seen.
    pub zero: bool,
    pub series: Vec<Series>,
}

/// A curve of a figure.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    pub name: String,
    pub points: Vec<(u64, f64)>,
}

/// Figures under one heading.
pub struct Group {
    pub title: &'static str,
    pub panels: Vec<Panel>,
}

/// What is known of a figure.
struct Known {
    group: &'static str,
    title: &'static str,
    hint: &'static str,
    /// Tag of each curve, and what it is called beside the others.
    tags: &'static [(&'static str, &'static str)],
    log: bool,
    zero: bool,
}

const LEARNING: &str = "How it learns";
const HEALTH: &str = "How healthy it is";
const OPTIMIZER: &str = "What the optimizer does";
const SPEED: &str = "How fast it goes";
const OTHER: &str = "What else was written down";

/// In this order on the page.
const GROUPS: [&str; 5] = [LEARNING, HEALTH, OPTIMIZER, SPEED, OTHER];

#[rustfmt::skip]
const KNOWN: &[Known] = &[
    Known {
        group: LEARNING, title: "Loss", log: false, zero: false,
        hint: "In pretraining the targets move with the teacher: a fall alone proves nothing, and a rise after the first fall is usual.",
        tags: &[("train/loss", "training"), ("held_out/loss", "held out"), ("validation/loss", "held out")],
    },
    Known {
        group: LEARNING, title: "Explained variance", log: false, zero: true,
        hint: "Share of the targets’ variance that is predicted on held-out examples. 0: no better than a constant. Should pass 0 early and stay up.",
        tags: &[("held_out/explained", "held out")],
    },
    Known {
        group: LEARNING, title: "Spread of targets and predictions", log: false, zero: true,
        hint: "Near 0: collapse. Predictions spread less than targets, since they are means.",
        tags: &[
            ("train/target_var", "targets"), ("train/pred_var", "predictions"),
            ("held_out/target_var", "targets, held out"), ("held_out/pred_var", "predictions, held out"),
        ],
    },
    Known {
        group: LEARNING, title: "Probe", log: false, zero: true,
        hint: "Share of labelled examples that nearest neighbours by frozen features get right. At chance: nothing was learned that labels care for.",
        tags: &[("probe/accuracy", "accuracy"), ("probe/chance", "chance")],
    },
    Known {
        group: LEARNING, title: "Word error rate", log: false, zero: true,
        hint: "Wrong, missing and added words for each word that was said. 1 or more: no word is right.",
        tags: &[("validation/wer", "held out")],
    },
    Known {
        group: LEARNING, title: "Letter error rate", log: false, zero: true,
        hint: "Falls long before the word error rate does. 1: only blanks.",
        tags: &[("validation/cer", "held out")],
    },
    Known {
        group: LEARNING, title: "Accuracy", log: false, zero: false,
        hint: "Share of held-out examples whose most probable class is right.",
        tags: &[("validation/accuracy", "held out"), ("validation/top5", "among the first five")],
    },
    Known {
        group: OPTIMIZER, title: "Norm of the gradient", log: true, zero: false,
        hint: "Before clipping. Peaks that come back down are usual; a steady climb wants a lower learning rate.",
        tags: &[("train/grad_norm", "norm")],
    },
    Known {
        group: OPTIMIZER, title: "Learning rate", log: false, zero: true,
        hint: "As the schedule says.",
        tags: &[("train/lr", "rate")],
    },
    Known {
        group: OPTIMIZER, title: "Teacher’s decay", log: false, zero: false,
        hint: "Share of the teacher that a step keeps. Nearer to 1: a slower teacher.",
        tags: &[("train/ema_decay", "decay")],
    },
    Known {
        group: OPTIMIZER, title: "Hidden share", log: false, zero: true,
        hint: "Share of the tokens that the student does not see.",
        tags: &[("train/masked_share", "hidden")],
    },
    Known {
        group: SPEED, title: "Throughput", log: false, zero: true,
        hint: "Units of data a second. Dips: something else took the machine, or the data came late.",
        tags: &[("train/units_per_second", "a second")],
    },
    Known {
        group: SPEED, title: "Waiting for data", log: false, zero: true,
        hint: "Share of the time that the model had nothing to do. Above 0.05: raise train.workers, or move the data to a faster disk.",
        tags: &[("train/waiting", "share")],
    },
    Known {
        group: SPEED, title: "Passes over the data", log: false, zero: true,
        hint: "Epochs so far.",
        tags: &[("train/epoch", "epochs")],
    },
    Known {
        group: SPEED, title: "Unusable examples", log: false, zero: true,
        hint: "Met so far. The run gives up at train.max_bad_examples.",
        tags: &[("train/bad_examples", "so far")],
    },
];

/// All curves of the file; none if there is no file.
pub fn read(path: &Path) -> Result<Curves> {
    Ok(curves(&metrics::read(path)?))
}

/// All curves of `lines`.
pub fn curves(lines: &[Line]) -> Curves {
    let mut curves = Curves::new();
    for line in lines {
        for (tag, value) in line.scalars() {
            curves.entry(tag).or_default().push((line.step(), value));
        }
    }
    curves
}

/// Figures of one run. Every curve is in one of them.
pub fn groups(curves: &Curves) -> Vec<Group> {
    let series = |(tag, name): &(&str, &str)| {
        let points = thinned(curves.get(*tag)?);
        Some(Series { name: (*name).to_owned(), points })
    };
    let known = |group: &'static str| {
        KNOWN.iter().filter(move |known| known.group == group).map(move |known| Panel {
            id: id(known.title),
            title: known.title.to_owned(),
            hint: known.hint.to_owned(),
            log: known.log,
            zero: known.zero,
            series: known.tags.iter().filter_map(series).collect(),
        })
    };
    assemble(curves.keys(), &known, &|tag| {
        vec![Series { name: last(tag).to_owned(), points: thinned(&curves[tag]) }]
    })
}

/// The same figures of several runs by name: one for each tag, in which each run is a curve.
pub fn compared(runs: &[(String, Curves)]) -> Vec<Group> {
    let series = |tag: &str| -> Vec<Series> {
        let has = runs.iter().filter_map(|(name, curves)| Some((name, curves.get(tag)?)));
        has.map(|(name, points)| Series { name: name.clone(), points: thinned(points) }).collect()
    };
    let known = |group: &'static str| {
        KNOWN.iter().filter(move |known| known.group == group).flat_map(move |known| {
            known.tags.iter().map(move |(tag, name)| Panel {
                id: id(tag),
                title: match known.tags.len() {
                    1 => known.title.to_owned(),
                    _ => format!("{}: {name}", known.title),
                },
                hint: known.hint.to_owned(),
                log: known.log,
                zero: known.zero,
                series: series(tag),
            })
        })
    };
    let tags: std::collections::BTreeSet<&String> =
        runs.iter().flat_map(|(_, curves)| curves.keys()).collect();
    assemble(tags.into_iter(), &known, &series)
}

/// Known figures in their groups, then one for each tag that is in none.
fn assemble<'a, P: Iterator<Item = Panel>>(
    tags: impl Iterator<Item = &'a String>,
    known: &dyn Fn(&'static str) -> P,
    series: &dyn Fn(&str) -> Vec<Series>,
) -> Vec<Group> {
    let is_known = |tag: &str| KNOWN.iter().any(|k| k.tags.iter().any(|(known, _)| *known == tag));
    let mut groups: Vec<Group> =
        GROUPS.iter().map(|&title| Group { title, panels: known(title).collect() }).collect();
    for tag in tags.filter(|tag| !is_known(tag)) {
        let (at, title) = match tag.split_once('/') {
            Some(("health", name)) => (1, name.to_owned()),
            Some(("validation", name)) => (0, name.to_owned()),
            _ => (4, tag.clone()),
        };
        let title = title.replace('_', " ");
        let (hint, log, zero) = (String::new(), false, false);
        groups[at].panels.push(Panel { id: id(tag), title, hint, log, zero, series: series(tag) });
    }
    for group in &mut groups {
        group.panels.retain(|panel| !panel.series.is_empty());
    }
    groups.retain(|group| !group.panels.is_empty());
    groups
}

/// What is left of a tag without its kind.
fn last(tag: &str) -> &str {
    tag.rsplit('/').next().unwrap_or(tag)
}

/// A name for an element: letters, digits and dashes.
fn id(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(plain).collect()
}

/// At most [`POINTS`] of `points`: of each stretch the lowest and the highest, so that no peak is lost, and the
/// last of all.
pub fn thinned(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let rounded =
        |&(step, value): &(u64, f64)| (step, format!("{value:.5e}").parse().unwrap_or(value));
    if points.len() <= POINTS {
        return points.iter().map(rounded).collect();
    }
    let stretch = points.len().div_ceil(POINTS / 2 - 1);
    let mut kept = Vec::new();
    for part in points.chunks(stretch) {
        let order = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let ends = [part.iter().min_by(order), part.iter().max_by(order)];
        let mut ends: Vec<_> = ends.into_iter().flatten().map(rounded).collect();
        ends.sort_by_key(|&(step, _)| step);
        ends.dedup_by_key(|&mut (step, _)| step);
        kept.extend(ends);
    }
    if let Some(end) = points.last().filter(|end| kept.last().is_some_and(|k| k.0 != end.0)) {
        kept.push(rounded(end));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{HeldOutLine, Pretraining, TrainLine, ValidationLine};

    #[test]
    fn every_scalar_of_every_line_is_in_exactly_one_figure() {
        let pretraining = Some(Pretraining::default());
        let train = TrainLine { step: 3, pretraining, ..TrainLine::default() };
        let (explained, target_var, pred_var) = (None, 1.0, 0.5);
        let held_out = HeldOutLine { step: 3, loss: f64::NAN, explained, target_var, pred_var };
        let figures = [("wer".to_owned(), 0.5), ("new".to_owned(), 0.25)].into();
        let validation = ValidationLine { step: 4, loss: 2.0, figures };
        let lines = [Line::Train(train), Line::HeldOut(held_out), Line::Validation(validation)];
        let curves = curves(&lines);
        assert!(curves.len() > 14 && curves["validation/new"] == [(4, 0.25)]);
        assert!(curves["held_out/loss"][0].1.is_nan(), "a step without a number is a gap");
        let count = |groups: &[Group]| -> usize {
            groups.iter().flat_map(|g| &g.panels).map(|panel| panel.series.len()).sum()
        };
        assert_eq!(count(&groups(&curves)), curves.len());
        let runs = [("a".to_owned(), curves.clone()), ("b".to_owned(), curves.clone())];
        assert_eq!(count(&compared(&runs)), 2 * curves.len());
    }

    #[test]
    fn long_curves_keep_their_peaks_and_their_end() {
        let mut points: Vec<(u64, f64)> = (0..100_000).map(|i| (i, (i as f64).sin())).collect();
        points[54_321].1 = 7.0;
        points[99_999].1 = 0.5;
        let kept = thinned(&points);
        assert!(kept.len() <= POINTS && kept.len() > POINTS / 2, "{}", kept.len());
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
        assert!(kept.contains(&(54_321, 7.0)) && kept.last() == Some(&(99_999, 0.5)));
    }
}
