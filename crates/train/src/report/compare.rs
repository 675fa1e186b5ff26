//! Compares several runs on one page: curves, final metrics, and differences of recipes and
//! records.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use maud::{Markup, html};

use crate::recipe::keys;
use crate::report::curves;
use crate::report::html::{charts, document, number};
use crate::report::run_files::RunFiles;

/// Renders a page that compares the runs in `dirs`.
///
/// # Errors
/// If a file of a run is missing or damaged.
pub fn page(dirs: &[PathBuf]) -> Result<String> {
    let mut runs = dirs.iter().map(|dir| RunFiles::read(dir)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for (run, dir) in runs.iter_mut().zip(dirs) {
        // Directories of the same name are shown with their paths.
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = dir.display().to_string();
        }
    }
    let curves: Vec<_> = runs.iter().map(|run| (run.name.clone(), run.curves.clone())).collect();
    let groups = curves::compared(&curves);
    let last = runs.iter().map(|run| run.steps().max(run.step())).max().unwrap_or(0);
    let body = html! {
        main {
            header {
                h1 { "Comparison of " (names.len()) " runs" }
                ul.legend.runs {
                    @for (i, run) in runs.iter().enumerate() {
                        li { i class={ "s" (i % 8) } {} (run.name) span.name { " – step " (run.step()) " of " (run.steps()) } }
                    }
                }
            }
            (final_metrics(&runs))
            (differences(&runs))
            (charts(&groups))
        }
    };
    document(&format!("{} – data2vec", names.join(", ")), &body, &groups, last, &[])
}

fn header_row(runs: &[RunFiles]) -> Markup {
    html! { tr { th {} @for run in runs { th scope="col" { (run.name) } } } }
}

/// Renders the newest values of all metrics.
fn final_metrics(runs: &[RunFiles]) -> Markup {
    let tags: BTreeSet<&String> = runs.iter().flat_map(|run| run.curves.keys()).collect();
    let tags = tags.into_iter().filter(|tag| {
        !["train/epoch", "train/lr", "train/bad_examples", "train/ema_decay"]
            .contains(&tag.as_str())
    });
    html! {
        section id="final" {
            h2 { "Final metrics" }
            p.hint { "Newest value of each metric. Losses of runs with different targets are not comparable; explained content is." }
            div.scroll tabindex="0" role="region" aria-label="Final metrics" {
                table.wide {
                    (header_row(runs))
                    @for tag in tags {
                        tr {
                            th scope="row" { (tag) }
                            @for run in runs { td { (run.last(tag).map_or("–".into(), number)) } }
                        }
                    }
                }
            }
        }
    }
}

/// Renders the keys of recipes and records whose values differ.
fn differences(runs: &[RunFiles]) -> Markup {
    let recipes: Vec<Vec<(String, String)>> = runs.iter().map(|run| keys(&run.recipe)).collect();
    let records: Vec<Vec<(String, String)>> = runs.iter().map(|run| run.record.clone()).collect();
    let table = |title: &str, all: &[Vec<(String, String)>], if_same: &str| {
        let rows = differing(all);
        html! {
            h3 { (title) }
            @if rows.is_empty() { p.note { (if_same) } } @else {
                div.scroll tabindex="0" role="region" aria-label=(title) {
                    table.wide {
                        (header_row(runs))
                        @for (key, values) in rows {
                            tr { th scope="row" { (key) } @for value in values { td { (value) } } }
                        }
                    }
                }
            }
        }
    };
    html! {
        section id="differences" {
            h2 { "Differences" }
            (table("Recipes", &recipes, "The recipes are the same."))
            (table("Records", &records, "The records are the same."))
        }
    }
}

/// Returns keys whose values differ, with the values of all runs; `–` if a run has none.
fn differing(all: &[Vec<(String, String)>]) -> Vec<(String, Vec<String>)> {
    let keys: BTreeSet<&String> = all.iter().flatten().map(|(key, _)| key).collect();
    let of = |one: &[(String, String)], key: &str| {
        one.iter().find(|(known, _)| known == key).map_or("–".into(), |(_, value)| value.clone())
    };
    let rows =
        keys.into_iter().map(|key| (key.clone(), all.iter().map(|one| of(one, key)).collect()));
    rows.filter(|(_, values): &(String, Vec<String>)| {
        values.windows(2).any(|pair| pair[0] != pair[1])
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml::Table;

    #[test]
    fn lists_differing_keys() {
        let recipe = |text: &str| keys(&text.parse::<Table>().expect("a recipe"));
        let one = recipe("seed = 1\n[train]\nsteps = 5\n[data.tokenizer]\ntrain = 300");
        let two =
            recipe("seed = 1\n[train]\nsteps = 6\nclip_norm = 1.0\n[data.tokenizer]\ntrain = 300");
        let rows = differing(&[one.clone(), two]);
        let expected = [("train.clip_norm", ["–", "1.0"]), ("train.steps", ["5", "6"])];
        assert_eq!(
            rows,
            expected.map(|(key, values)| (key.to_owned(), values.map(String::from).to_vec()))
        );
        assert!(differing(&[one.clone(), one]).is_empty());
    }
}
