//! Groups the metrics of `metrics.jsonl` into charts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::metrics::Line;
use crate::report::known::{Family, GROUPS, HEALTH, KNOWN, LEARNING, OTHER, family};

/// Maximum number of points of a curve; more cannot be distinguished on a screen.
const MAX_POINTS: usize = 1_000;

/// Steps and values by tag, as in `train/loss`. NaN becomes `null` in JSON.
pub type Curves = BTreeMap<String, Vec<(u64, f64)>>;

/// A chart of the page.
#[derive(Clone, Debug, Serialize)]
pub struct Panel {
    /// Id of its HTML element, without prefix.
    pub id: String,
    /// Tag of its curves, if they have a common one.
    #[serde(skip)]
    pub tag: String,
    /// Title.
    pub title: String,
    /// How to read the chart.
    #[serde(skip)]
    pub hint: &'static str,
    /// Whether the scale is logarithmic at first.
    pub log: bool,
    /// Whether the scale includes 0.
    pub zero: bool,
    /// Curves of the chart.
    pub series: Vec<Series>,
}

/// A curve of a chart.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Steps and values.
    pub points: Vec<(u64, f64)>,
}

/// Charts under one heading.
pub struct Group {
    /// The heading.
    pub title: &'static str,
    /// Its charts.
    pub panels: Vec<Panel>,
}

/// Collects the curves of `lines`, which are ordered by step.
pub fn curves(lines: &[Line]) -> Curves {
    let mut curves = Curves::new();
    for line in lines {
        for (tag, value) in line.scalars() {
            curves.entry(tag).or_default().push((line.step(), value));
        }
    }
    curves
}

/// Returns the charts of one run. Every curve is in exactly one chart.
pub fn groups(curves: &Curves) -> Vec<Group> {
    let series = |(tag, name): &(&str, &str)| {
        let points = thin(curves.get(*tag)?);
        Some(Series { name: (*name).to_owned(), points })
    };
    let known = |group: &'static str| {
        KNOWN.iter().filter(move |known| known.group == group).map(move |known| Panel {
            id: id(known.title),
            tag: String::new(),
            title: known.title.to_owned(),
            hint: known.hint,
            log: known.log,
            zero: known.zero,
            series: known.tags.iter().filter_map(series).collect(),
        })
    };
    let mut groups = assemble(curves.keys(), &known, &|tag, family| {
        let name = family.map_or(last(tag), |family| family.member);
        vec![Series { name: name.replace('_', " "), points: thin(&curves[tag]) }]
    });
    for group in &mut groups {
        // Metrics of one family share a chart.
        group.panels.dedup_by(|next, panel| {
            let is_same = next.title == panel.title;
            if is_same {
                panel.series.append(&mut next.series);
            }
            is_same
        });
    }
    groups
}

/// Returns the charts of several named runs: one per tag, with a curve per run.
pub fn compared(runs: &[(String, Curves)]) -> Vec<Group> {
    let series = |tag: &str| -> Vec<Series> {
        let has = runs.iter().filter_map(|(name, curves)| Some((name, curves.get(tag)?)));
        has.map(|(name, points)| Series { name: name.clone(), points: thin(points) }).collect()
    };
    let known = |group: &'static str| {
        KNOWN.iter().filter(move |known| known.group == group).flat_map(move |known| {
            known.tags.iter().map(move |(tag, name)| Panel {
                id: id(tag),
                tag: String::new(),
                title: match known.tags.len() {
                    1 => known.title.to_owned(),
                    _ => format!("{}: {name}", known.title),
                },
                hint: known.hint,
                log: known.log,
                zero: known.zero,
                series: series(tag),
            })
        })
    };
    let tags: std::collections::BTreeSet<&String> =
        runs.iter().flat_map(|(_, curves)| curves.keys()).collect();
    let mut groups = assemble(tags.into_iter(), &known, &|tag, _| series(tag));
    for panel in groups.iter_mut().flat_map(|group| &mut group.panels) {
        if let Some(family) = family(&panel.tag) {
            panel.title = format!("{}: {}", panel.title, family.member.replace('_', " "));
        }
    }
    groups
}

/// Returns the known charts in their groups, and one for each remaining tag.
fn assemble<'a, P: Iterator<Item = Panel>>(
    tags: impl Iterator<Item = &'a String>,
    known: &dyn Fn(&'static str) -> P,
    series: &dyn Fn(&str, Option<Family>) -> Vec<Series>,
) -> Vec<Group> {
    let is_known = |tag: &str| KNOWN.iter().any(|k| k.tags.iter().any(|(known, _)| *known == tag));
    let mut groups: Vec<Group> =
        GROUPS.iter().map(|&title| Group { title, panels: known(title).collect() }).collect();
    let mut others: Vec<(&str, Panel)> = tags
        .filter(|tag| !is_known(tag))
        .map(|tag| {
            let family = family(tag);
            let group = match tag.split_once('/') {
                Some(("health", _)) => HEALTH,
                Some(("validation", _)) => LEARNING,
                _ => OTHER,
            };
            let title = match (&family, group) {
                (Some(family), _) => family.title.to_owned(),
                (None, OTHER) => tag.replace('_', " "),
                (None, _) => last(tag).replace('_', " "),
            };
            let (hint, zero) = family.as_ref().map_or(("", false), |family| (family.hint, true));
            let series = series(tag, family);
            (group, Panel { id: id(tag), tag: tag.clone(), title, hint, log: false, zero, series })
        })
        .collect();
    others.sort_by(|a, b| a.1.title.cmp(&b.1.title));
    for (name, panel) in others {
        groups
            .iter_mut()
            .filter(|group| group.title == name)
            .for_each(|g| g.panels.push(panel.clone()));
    }
    for group in &mut groups {
        group.panels.retain(|panel| !panel.series.is_empty());
    }
    groups.retain(|group| !group.panels.is_empty());
    groups
}

/// Returns the last part of a tag.
fn last(tag: &str) -> &str {
    tag.rsplit('/').next().unwrap_or(tag)
}

/// Returns a valid id of an HTML element.
fn id(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(plain).collect()
}

/// Thins `points` to at most [`MAX_POINTS`]: keeps the lowest and the highest of each interval, so
/// that no peak is lost, and the last point.
pub fn thin(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let rounded =
        |&(step, value): &(u64, f64)| (step, format!("{value:.5e}").parse().unwrap_or(value));
    if points.len() <= MAX_POINTS {
        return points.iter().map(rounded).collect();
    }
    let interval = points.len().div_ceil(MAX_POINTS / 2 - 1);
    let mut kept = Vec::new();
    for part in points.chunks(interval) {
        let order = |a: &(usize, &(u64, f64)), b: &(usize, &(u64, f64))| a.1.1.total_cmp(&b.1.1);
        let indexed = || part.iter().enumerate();
        let mut extremes: Vec<_> =
            [indexed().min_by(order), indexed().max_by(order)].into_iter().flatten().collect();
        extremes.sort_by_key(|&(index, _)| index);
        extremes.dedup_by_key(|&mut (index, _)| index);
        kept.extend(extremes.into_iter().map(|(_, point)| rounded(point)));
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
    fn every_scalar_is_in_exactly_one_chart() {
        let pretraining = Some(Pretraining::default());
        let train = TrainLine { step: 3, pretraining, ..TrainLine::default() };
        let held_out = HeldOutLine {
            step: 3,
            loss: f64::NAN,
            explained_content: Some(0.2),
            ..HeldOutLine::default()
        };
        let metrics = [("wer".to_owned(), 0.5), ("new".to_owned(), 0.25)].into();
        let health = r#"{"kind":"health","step":4,"metrics":{"block_01_rank":3,"block_02_rank":2,"target_rank":5,"student_norm":1,"odd":0}}"#;
        let health = serde_json::from_str(health).expect("a line");
        let validation = ValidationLine { step: 4, loss: 2.0, metrics };
        let lines =
            [Line::Train(train), Line::HeldOut(held_out), Line::Validation(validation), health];
        let curves = curves(&lines);
        assert!(curves.len() > 14 && curves["validation/new"] == [(4, 0.25)]);
        assert!(curves["held_out/loss"][0].1.is_nan(), "NaN is a gap");
        let count = |groups: &[Group]| -> usize {
            groups.iter().flat_map(|g| &g.panels).map(|panel| panel.series.len()).sum()
        };
        let groups = groups(&curves);
        assert_eq!(count(&groups), curves.len());
        let panels = || groups.iter().flat_map(|group| &group.panels);
        let blocks = panels().find(|panel| panel.title == "Effective rank of the blocks");
        let names = blocks.expect("a chart").series.iter().map(|s| s.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["block 01", "block 02"]);
        assert!(panels().any(|panel| panel.title == "odd"), "unknown metrics are shown");
        let runs = [("a".to_owned(), curves.clone()), ("b".to_owned(), curves.clone())];
        assert_eq!(count(&compared(&runs)), 2 * curves.len());
    }

    #[test]
    fn thin_keeps_peaks_and_last_point() {
        let mut points: Vec<(u64, f64)> = (0..100_000).map(|i| (i, (i as f64).sin())).collect();
        points[54_321].1 = 7.0;
        points[99_999].1 = 0.5;
        let kept = thin(&points);
        assert!(kept.len() <= MAX_POINTS && kept.len() > MAX_POINTS / 2, "{}", kept.len());
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
        assert!(kept.contains(&(54_321, 7.0)) && kept.last() == Some(&(99_999, 0.5)));
    }
}
