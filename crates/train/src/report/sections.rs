//! Header and provenance of a run's report.

use maud::{Markup, html};
use toml::{Table, Value};

use crate::report::html::{facts, number};
use crate::report::run_files::RunFiles;

/// Renders name, progress and key metrics.
pub fn head(run: &RunFiles) -> Markup {
    let (step, steps) = (run.step(), run.steps());
    let device = run.recorded("device").unwrap_or("an unknown device");
    html! {
        header {
            h1 { (run.name) }
            p.lead {
                (run.modality()) " on " (device) ", "
                @if step >= steps { "finished: " (steps) " steps" } @else { "step " (step) " of " (steps) }
            }
            dl.tiles { @for tile in tiles(run) { (tile) } }
        }
    }
}

fn tiles(run: &RunFiles) -> Vec<Markup> {
    let tile = |name: &str, tag: &str, note: &str| {
        let value = run.last(tag)?;
        Some(html! { div.tile { dt { (name) } dd { (number(value)) small { (note) } } } })
    };
    let unit = run.recorded("unit").unwrap_or("units");
    let known = [
        tile(
            "Explained content",
            "held_out/explained_content",
            "held out; 0: no better than positions alone",
        ),
        tile("Held-out loss", "held_out/loss", "a falling loss alone proves nothing"),
        tile("Target standard deviation", "train/target_std", "near 0: collapse"),
        tile("Probe accuracy", "probe/accuracy", "k-NN on frozen features"),
        tile("Word error rate", "validation/wer", "held out; 0: no errors"),
        tile("Character error rate", "validation/cer", "held out; 0: no errors"),
        tile("Accuracy", "validation/accuracy", "held out"),
        tile("F1", "validation/f1", "held out"),
        tile("Pearson", "validation/pearson", "held out"),
        tile("Throughput", "train/units_per_second", &format!("{unit} per second")),
        tile("Waiting for data", "train/waiting", "share of the time"),
    ];
    known.into_iter().flatten().collect()
}

/// Renders record and recipe.
pub fn provenance(run: &RunFiles) -> Markup {
    html! {
        section id="provenance" {
            h2 { "Provenance" }
            p.hint { "Command, data, hardware and versions of the last process that worked on the run." }
            (facts(&run.record))
            h3 { "Recipe" }
            (recipe(&run.recipe))
        }
    }
}

/// Renders all keys of a recipe by section.
fn recipe(recipe: &Table) -> Markup {
    let (sections, single): (Vec<_>, Vec<_>) =
        recipe.iter().partition(|(_, value)| value.is_table());
    let row = |(key, value): (&String, &Value)| {
        // Strings are shown without quotes.
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        html! { dt { (key) } dd { (value) } }
    };
    html! {
        div.recipe.mono {
            section { dl { @for (key, value) in single { (row((key, value))) } } }
            @for (name, section) in sections {
                section {
                    h3 { "[" (name) "]" }
                    dl { @for pair in section.as_table().into_iter().flatten() { (row(pair)) } }
                }
            }
        }
    }
}
