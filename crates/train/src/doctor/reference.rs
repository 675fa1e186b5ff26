//! Reference runs of the quick starts, to compare other runs with.
//!
//! `reference/NAME.toml` is the `recipe.toml` of a reference run. `reference/NAME.jsonl` has some
//! lines of its `metrics.jsonl`, with numbers of four digits and without timings.

use serde::Serialize;
use toml::Table;

use crate::metrics::{self, Line};
use crate::recipe;
use crate::report::number;

/// Maximum number of differing recipe keys; with more, runs are not comparable.
const MAX_CHANGES: usize = 8;

/// Prefixes of changes that do not count: length and seed of a run.
const IGNORED: [&str; 2] = ["train.steps: ", "seed: "];

/// Maximum number of compared steps.
const MAX_STEPS: usize = 6;

/// Metrics to compare, where both runs have them.
const METRICS: [&str; 7] = [
    "held_out/explained_content",
    "held_out/explained_variance",
    "train/target_std",
    "train/loss",
    "health/target_rank",
    "health/local_rank",
    "probe/accuracy",
];

/// A reference run of a quick start.
struct Reference {
    name: &'static str,
    recipe: &'static str,
    lines: &'static str,
    /// What looks wrong and is not.
    remark: &'static str,
}

const REFERENCES: &[Reference] = &[
    Reference {
        name: "speech-tiny",
        recipe: include_str!("reference/speech-tiny.toml"),
        lines: include_str!("reference/speech-tiny.jsonl"),
        remark: "block ranks fall from 100 to 20 and rise to 30; in longer runs the loss rises again and stays up, because the targets become richer",
    },
    Reference {
        name: "nlp-tiny",
        recipe: include_str!("reference/nlp-tiny.toml"),
        lines: include_str!("reference/nlp-tiny.jsonl"),
        remark: "explained content rises slowly, to 0.1: masked words are hard to predict; the norm by position leaves nothing that positions explain",
    },
    Reference {
        name: "vision-tiny",
        recipe: include_str!("reference/vision-tiny.toml"),
        lines: include_str!("reference/vision-tiny.jsonl"),
        remark: "the rank of the last block falls to 10 in the first 50 steps and rises from there; explained content reaches 0.23 by step 200 and rises slowly from there, while the targets become richer",
    },
];

/// Values of a metric in two runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Tag, as in `train/loss`.
    pub metric: &'static str,
    /// Step, value of this run, value of the reference run.
    pub values: Vec<(u64, f64, f64)>,
}

/// A comparison of a run with a reference run that learned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the reference recipe.
    pub name: &'static str,
    /// `KEY: REFERENCE → THIS RUN` for differing recipe keys.
    pub changes: Vec<String>,
    /// What looks wrong in such runs and is not.
    pub remark: &'static str,
    /// Metrics that both runs have.
    pub rows: Vec<Row>,
}

impl Comparison {
    /// Compares a run with the reference run of the closest recipe. Returns `None` if no quick
    /// start is close to `recipe`.
    pub fn find(recipe: &Table, lines: &[Line]) -> Option<Self> {
        let known = REFERENCES.iter().filter_map(|reference| {
            let reference_recipe: Table = reference.recipe.parse().ok()?;
            let mut changes = recipe::changes(&reference_recipe, recipe);
            changes.retain(|change| !IGNORED.iter().any(|key| change.starts_with(key)));
            (changes.len() <= MAX_CHANGES).then_some((reference, changes))
        });
        let (reference, changes) = known.min_by_key(|(_, changes)| changes.len())?;
        let there = metrics::parse(reference.lines);
        let rows = METRICS.iter().filter_map(|metric| {
            let [here, there] = [lines, &there[..]].map(|lines| values(lines, metric));
            let mut values: Vec<(u64, f64, f64)> = there
                .iter()
                .filter_map(|&(step, there)| Some((step, near(&here, step)?, there)))
                .collect();
            let interval = values.len().div_ceil(MAX_STEPS).max(1);
            // Evenly spaced steps that include the last one.
            let mut left = values.len();
            values.retain(|_| {
                left -= 1;
                left.is_multiple_of(interval)
            });
            (!values.is_empty()).then_some(Row { metric, values })
        });
        let rows: Vec<Row> = rows.collect();
        let Reference { name, remark, .. } = *reference;
        Some(Self { name, changes, remark, rows })
    }

    /// Formats the comparison as lines of text.
    pub fn table(&self) -> Vec<String> {
        let mut lines =
            vec![format!("reference run of {}; at each step, this run | reference:", self.name)];
        for Row { metric, values } in &self.rows {
            let at = |&(step, here, there): &(u64, f64, f64)| {
                format!("{step}: {} | {}", number(here), number(there))
            };
            let values: Vec<String> = values.iter().map(at).collect();
            lines.push(format!("  {metric:<28}{}", values.join("   ")));
        }
        lines.push(format!("  expected there: {}", self.remark));
        if !self.changes.is_empty() {
            lines.push(format!("  recipe, reference → this run: {}", self.changes.join(", ")));
        }
        lines
    }
}

/// Returns steps and values of a metric.
fn values(lines: &[Line], metric: &str) -> Vec<(u64, f64)> {
    let of = |line: &Line| {
        let found = line.scalars().into_iter().find(|(tag, _)| tag == metric);
        found.map(|(_, value)| (line.step(), value))
    };
    lines.iter().filter_map(of).collect()
}

/// Returns the value at the closest step, if it is within a tenth of `step`.
fn near(values: &[(u64, f64)], step: u64) -> Option<f64> {
    let closest = values.iter().min_by_key(|(at, _)| at.abs_diff(step))?;
    (10 * closest.0.abs_diff(step) <= step).then_some(closest.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::doctor::{Diagnosis, Verdict};

    #[test]
    fn references_match_published_recipes_and_are_healthy() {
        for reference in REFERENCES {
            let name = reference.name;
            let path = format!("../../recipes/{name}.toml");
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let text = std::fs::read_to_string(path).expect("a recipe");
            let [published, own] =
                [&text[..], reference.recipe].map(|text| text.parse::<Table>().expect("a table"));
            // Keys with default values are absent from a run's recipe.
            let mut changes = recipe::changes(&own, &published);
            changes.retain(|change| !change.contains(": absent → "));
            assert_eq!(changes, Vec::<String>::new(), "{name}");
            let lines = metrics::parse(reference.lines);
            assert_eq!(lines.len(), reference.lines.lines().count(), "{name}: a line is invalid");
            let diagnosis = Diagnosis::new(&lines, recipe::steps(&own));
            assert!(!diagnosis.is_severe(), "{name}: {diagnosis:?}");
            assert_ne!(diagnosis.verdict, Verdict::TooEarly, "{name}");
            assert_eq!(diagnosis.step, recipe::steps(&own), "{name}: incomplete");

            let comparison = Comparison::find(&own, &lines).expect("itself");
            assert_eq!((comparison.name, comparison.changes.len()), (name, 0));
            let rows = || comparison.rows.iter();
            assert!(rows().all(|row| row.values.iter().all(|(_, here, there)| here == there)));
            assert!(rows().all(|row| row.values.len() <= MAX_STEPS));
            assert!(rows().any(|row| row.metric == "held_out/explained_content"));
            assert!(rows().all(|row| row.values.last().is_some_and(|v| v.0 == diagnosis.step)));
        }
    }

    #[test]
    fn lists_recipe_changes_and_rejects_unknown_recipes() {
        let text = REFERENCES.iter().find(|reference| reference.name == "nlp-tiny");
        let mut recipe: Table = text.expect("a reference").recipe.parse().expect("a table");
        let section = |recipe: &mut Table, key: &str, value: &str| {
            let other: Table = value.parse().expect("a table");
            let section = recipe.get_mut(key).and_then(toml::Value::as_table_mut);
            section.expect("a section").extend(other);
        };
        section(&mut recipe, "schedule", "lr = 0.01");
        section(&mut recipe, "train", "steps = 60");
        let comparison = Comparison::find(&recipe, &[]).expect("a reference");
        assert_eq!(
            (comparison.name, &comparison.changes[..]),
            ("nlp-tiny", &["schedule.lr: 0.0005 → 0.01".to_owned()][..])
        );
        assert!(comparison.rows.is_empty());
        assert_eq!(Comparison::find(&Table::new(), &[]), None);
    }

    #[test]
    fn near_matches_steps_within_a_tenth() {
        let values = [(0, 1.0), (95, 2.0), (300, 3.0)];
        assert_eq!(
            [0, 100, 200, 310].map(|step| near(&values, step)),
            [Some(1.0), Some(2.0), None, Some(3.0)]
        );
        assert_eq!(near(&[], 5), None);
    }
}
