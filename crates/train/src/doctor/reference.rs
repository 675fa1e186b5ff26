//! How the quick starts go: what real runs of their recipes told, to lay another one beside.
//!
//! `reference/NAME.toml` is such a run's `recipe.toml`, `reference/NAME.jsonl` are lines of its `metrics.jsonl`: of some
//! steps, with numbers of four digits and without what the clock tells.

use serde::Serialize;
use toml::Table;

use crate::metrics::{self, Line};
use crate::page::number;
use crate::recipe;

/// Keys of a recipe that may differ, at most: with more, it is another one.
const MOST_CHANGES: usize = 8;

/// Keys that say how long and with which randomness, which makes no other recipe.
const ALIKE: [&str; 2] = ["train.steps: ", "seed: "];

/// Steps that are compared, at most.
const MOST_STEPS: usize = 6;

/// Figures that are compared, where both runs have them.
const FIGURES: [&str; 6] = [
    "held_out/explained",
    "train/target_var",
    "train/loss",
    "health/target_rank",
    "health/local_rank",
    "probe/accuracy",
];

/// A run of a quick start.
struct Reference {
    name: &'static str,
    recipe: &'static str,
    lines: &'static str,
    /// What looks like trouble and is none.
    remark: &'static str,
}

const REFERENCES: &[Reference] = &[
    Reference {
        name: "speech-tiny",
        recipe: include_str!("reference/speech-tiny.toml"),
        lines: include_str!("reference/speech-tiny.jsonl"),
        remark: "ranks of blocks fall from 100 to 20 and rise again to 30; in longer runs the loss rises again and stays up, since the targets become richer",
    },
    Reference {
        name: "nlp-tiny",
        recipe: include_str!("reference/nlp-tiny.toml"),
        lines: include_str!("reference/nlp-tiny.jsonl"),
        remark: "half of the targets’ spread is position alone, which is learned first",
    },
    Reference {
        name: "vision-tiny",
        recipe: include_str!("reference/vision-tiny.toml"),
        lines: include_str!("reference/vision-tiny.jsonl"),
        remark: "the rank of the last block falls to 10 in the first 50 steps and rises from then on; explained variance stands still near 0.77 while the targets become richer",
    },
];

/// Values of a figure at the same steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub figure: &'static str,
    /// Step, the value of this run, and that of the reference.
    pub values: Vec<(u64, f64, f64)>,
}

/// A run beside one that went well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The recipe of the other one.
    pub name: &'static str,
    /// `KEY: THERE → HERE` for keys that differ.
    pub changes: Vec<String>,
    /// What looks like trouble there and is none.
    pub remark: &'static str,
    pub rows: Vec<Row>,
}

impl Comparison {
    /// Of a run with this recipe and these lines; `None`: no quick start is like it.
    pub fn of(recipe: &Table, lines: &[Line]) -> Option<Self> {
        let known = REFERENCES.iter().filter_map(|reference| {
            let own: Table = reference.recipe.parse().ok()?;
            let mut changes = recipe::changes(&own, recipe);
            changes.retain(|change| !ALIKE.iter().any(|key| change.starts_with(key)));
            (changes.len() <= MOST_CHANGES).then_some((reference, changes))
        });
        let (reference, changes) = known.min_by_key(|(_, changes)| changes.len())?;
        let there = metrics::parse(reference.lines);
        let rows = FIGURES.iter().filter_map(|figure| {
            let [here, there] = [lines, &there[..]].map(|lines| values(lines, figure));
            let mut values: Vec<(u64, f64, f64)> = there
                .iter()
                .filter_map(|&(step, there)| Some((step, near(&here, step)?, there)))
                .collect();
            let stretch = values.len().div_ceil(MOST_STEPS).max(1);
            // The last one, and others as far apart.
            let mut place = values.len();
            values.retain(|_| {
                place -= 1;
                place.is_multiple_of(stretch)
            });
            (!values.is_empty()).then_some(Row { figure, values })
        });
        let rows: Vec<Row> = rows.collect();
        let Reference { name, remark, .. } = *reference;
        Some(Self { name, changes, remark, rows })
    }

    /// A table of what differs how.
    pub fn table(&self) -> Vec<String> {
        let mut told = vec![format!(
            "beside a run of {} that learned, this one | that one at each step:",
            self.name
        )];
        for Row { figure, values } in &self.rows {
            let at = |&(step, here, there): &(u64, f64, f64)| {
                format!("{step}: {} | {}", number(here), number(there))
            };
            let values: Vec<String> = values.iter().map(at).collect();
            told.push(format!("  {figure:<19}{}", values.join("   ")));
        }
        told.push(format!("  as it should be there: {}", self.remark));
        if !self.changes.is_empty() {
            told.push(format!("  its recipe differs: {}", self.changes.join(", ")));
        }
        told
    }
}

/// Steps and values of a figure.
fn values(lines: &[Line], figure: &str) -> Vec<(u64, f64)> {
    let of = |line: &Line| {
        let found = line.scalars().into_iter().find(|(tag, _)| tag == figure);
        found.map(|(_, value)| (line.step(), value))
    };
    lines.iter().filter_map(of).collect()
}

/// The value at `step`, or at one that is no more than a tenth away.
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
    fn references_are_of_the_recipes_and_healthy() {
        for reference in REFERENCES {
            let name = reference.name;
            let path = format!("../../recipes/{name}.toml");
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let text = std::fs::read_to_string(path).expect("a recipe");
            let [published, own] =
                [&text[..], reference.recipe].map(|text| text.parse::<Table>().expect("a table"));
            // A run leaves out keys that have their usual value.
            let mut changes = recipe::changes(&own, &published);
            changes.retain(|change| !change.contains(": absent → "));
            assert_eq!(changes, Vec::<String>::new(), "{name}");
            let lines = metrics::parse(reference.lines);
            assert_eq!(lines.len(), reference.lines.lines().count(), "{name}: each is whole");
            let diagnosis = Diagnosis::of(&lines, recipe::steps(&own));
            assert!(!diagnosis.is_grave(), "{name}: {diagnosis:?}");
            assert_ne!(diagnosis.verdict, Verdict::TooEarly, "{name}");
            assert_eq!(diagnosis.step, recipe::steps(&own), "{name}: to the end");

            let beside = Comparison::of(&own, &lines).expect("itself");
            assert_eq!((beside.name, beside.changes.len()), (name, 0));
            let rows = || beside.rows.iter();
            assert!(rows().all(|row| row.values.iter().all(|(_, here, there)| here == there)));
            assert!(rows().all(|row| row.values.len() <= MOST_STEPS));
            assert!(rows().any(|row| row.figure == "held_out/explained"));
            assert!(rows().all(|row| row.values.last().is_some_and(|v| v.0 == diagnosis.step)));
        }
    }

    #[test]
    fn a_changed_recipe_is_told_and_another_one_has_no_reference() {
        let text = REFERENCES.iter().find(|reference| reference.name == "nlp-tiny");
        let mut recipe: Table = text.expect("a reference").recipe.parse().expect("a table");
        let section = |recipe: &mut Table, key: &str, value: &str| {
            let other: Table = value.parse().expect("a table");
            let section = recipe.get_mut(key).and_then(toml::Value::as_table_mut);
            section.expect("a section").extend(other);
        };
        section(&mut recipe, "schedule", "lr = 0.01");
        section(&mut recipe, "train", "steps = 60");
        let beside = Comparison::of(&recipe, &[]).expect("a reference");
        assert_eq!(
            (beside.name, &beside.changes[..]),
            ("nlp-tiny", &["schedule.lr: 0.0005 → 0.01".to_owned()][..])
        );
        assert!(beside.rows.is_empty());
        assert_eq!(Comparison::of(&Table::new(), &[]), None);
    }

    #[test]
    fn steps_are_matched_if_they_are_near() {
        let values = [(0, 1.0), (95, 2.0), (300, 3.0)];
        assert_eq!(
            [0, 100, 200, 310].map(|step| near(&values, step)),
            [Some(1.0), Some(2.0), None, Some(3.0)]
        );
        assert_eq!(near(&[], 5), None);
    }
}
