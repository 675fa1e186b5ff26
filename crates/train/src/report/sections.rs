//! The parts of one run's page.

use maud::{Markup, html};
use toml::{Table, Value};

use crate::modality;
use crate::page::html::{facts, number};
use crate::page::run_files::RunFiles;

/// What the run is, where it stands, and its most telling figures.
pub fn head(run: &RunFiles) -> Markup {
    let (step, steps) = (run.step(), run.steps());
    let device = run.recorded("device").unwrap_or("a device that nobody wrote down");
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
    let unit = modality::unit(run.modality()).unwrap_or("units");
    let known = [
        tile(
            "Explained, held out",
            "held_out/explained",
            "of the targets’ variance; 0: a constant",
        ),
        tile("Loss, held out", "held_out/loss", "falling alone proves nothing"),
        tile("Spread of the targets", "train/target_var", "near 0: collapse"),
        tile("Probe", "probe/accuracy", "right by nearest neighbours"),
        tile("Word error rate", "validation/wer", "held out; 0: no errors"),
        tile("Letter error rate", "validation/cer", "held out; 0: no errors"),
        tile("Accuracy", "validation/accuracy", "held out"),
        tile("F1", "validation/f1", "held out"),
        tile("Pearson", "validation/pearson", "held out"),
        tile("Throughput", "train/units_per_second", &format!("{unit} a second")),
        tile("Waiting for data", "train/waiting", "share of the time; near 0: none"),
    ];
    known.into_iter().flatten().collect()
}

/// Command, data, device, versions, and the recipe.
pub fn origin(run: &RunFiles) -> Markup {
    html! {
        section id="origin" {
            h2 { "Where it comes from" }
            p.hint { "Data, machine, versions and the command, as they were when the run was last started." }
            (facts(&run.record))
            h3 { "Recipe" }
            (recipe(&run.recipe))
        }
    }
}

/// Every key of a recipe, section by section.
fn recipe(recipe: &Table) -> Markup {
    let (sections, single): (Vec<_>, Vec<_>) =
        recipe.iter().partition(|(_, value)| value.is_table());
    let row = |(key, value): (&String, &Value)| {
        // A bare word reads better than a quoted one.
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
