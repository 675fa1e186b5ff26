//! Several runs on one page: their curves in the same figures, where they end, and what their recipes differ in.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use maud::{Markup, html};

use crate::page::curves;
use crate::page::html::{document, figures, number};
use crate::page::run_files::RunFiles;
use crate::recipe::keys;

/// The page that compares the runs in `folders`.
pub fn page(folders: &[PathBuf]) -> Result<String> {
    let mut runs =
        folders.iter().map(|folder| RunFiles::read(folder)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for (run, folder) in runs.iter_mut().zip(folders) {
        // Two folders of the same name are told apart by where they are.
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = folder.display().to_string();
        }
    }
    let curves: Vec<_> = runs.iter().map(|run| (run.name.clone(), run.curves.clone())).collect();
    let groups = curves::compared(&curves);
    let last = runs.iter().map(|run| run.steps().max(run.step())).max().unwrap_or(0);
    let body = html! {
        main {
            header {
                h1 { (names.len()) " runs side by side" }
                ul.legend.runs {
                    @for (i, run) in runs.iter().enumerate() {
                        li { i class={ "s" (i % 8) } {} (run.name) span.name { " – step " (run.step()) " of " (run.steps()) } }
                    }
                }
            }
            (ends(&runs))
            (differences(&runs))
            (figures(&groups))
        }
    };
    document(&format!("{} – data2vec", names.join(", ")), &body, &groups, last, &[])
}

fn heads(runs: &[RunFiles]) -> Markup {
    html! { tr { th {} @for run in runs { th scope="col" { (run.name) } } } }
}

/// The newest value of every figure that any of the runs has.
fn ends(runs: &[RunFiles]) -> Markup {
    let tags: BTreeSet<&String> = runs.iter().flat_map(|run| run.curves.keys()).collect();
    let tags = tags.into_iter().filter(|tag| {
        !["train/epoch", "train/lr", "train/bad_examples", "train/ema_decay"]
            .contains(&tag.as_str())
    });
    html! {
        section id="ends" {
            h2 { "Where they end" }
            p.hint { "The newest value of each figure. Losses of runs with other targets cannot be compared; explained variance can." }
            div.scroll tabindex="0" role="region" aria-label="End figures" {
                table.wide {
                    (heads(runs))
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

/// Keys of recipes and records whose values are not the same in all runs.
fn differences(runs: &[RunFiles]) -> Markup {
    let recipes: Vec<Vec<(String, String)>> = runs.iter().map(|run| keys(&run.recipe)).collect();
    let records: Vec<Vec<(String, String)>> = runs.iter().map(|run| run.record.clone()).collect();
    let table = |title: &str, all: &[Vec<(String, String)>], same: &str| {
        let rows = differing(all);
        html! {
            h3 { (title) }
            @if rows.is_empty() { p.note { (same) } } @else {
                div.scroll tabindex="0" role="region" aria-label=(title) {
                    table.wide {
                        (heads(runs))
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
            h2 { "What differs" }
            (table("Recipes", &recipes, "Nothing: the recipes are the same, key by key."))
            (table("How they were run", &records, "Nothing."))
        }
    }
}

/// Keys that not all have with the same value, with the value of each; `–` where one has none.
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
    fn what_differs_is_told_key_by_key() {
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
