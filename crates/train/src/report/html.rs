//! Building blocks of all pages: the skeleton, tables and charts. `maud` escapes every text; only
//! content made by this module is not escaped.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;

use crate::metrics::ActionLine;
use crate::report::curves::{Group, Panel};

/// Content security policy: the page fetches nothing.
const POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// Data of the page's script.
#[derive(Serialize)]
struct Data<'a> {
    /// End of the step axis.
    last: u64,
    actions: &'a [ActionLine],
    panels: Vec<&'a Panel>,
}

/// Renders a complete page, with the script that draws `groups`.
///
/// # Errors
/// If the data cannot be serialized.
pub fn document(
    title: &str,
    body: &Markup,
    groups: &[Group],
    last: u64,
    actions: &[ActionLine],
) -> Result<String> {
    let panels = groups.iter().flat_map(|group| &group.panels).collect();
    // `</script>` would end the script even inside of a string.
    let data = serde_json::to_string(&Data { last, actions, panels })?.replace('<', "\\u003c");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content={ "data2vec " (env!("CARGO_PKG_VERSION")) };
                title { (title) }
                link rel="icon" href="data:,";
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body {
                (body)
                script id="data" type="application/json" { (PreEscaped(data)) }
                script { (PreEscaped(include_str!("page.js"))) }
            }
        }
    };
    Ok(page.into_string())
}

/// Renders charts under their headings.
pub fn charts(groups: &[Group]) -> Markup {
    html! {
        @for (i, group) in groups.iter().enumerate() {
            section id={ "curves-" (i) } {
                h2 { (group.title) }
                div.panels { @for panel in &group.panels { (chart(panel)) } }
            }
        }
        noscript { p.note { "JavaScript draws the curves of this page. curve.svg shows the main ones without it." } }
    }
}

fn chart(panel: &Panel) -> Markup {
    let values =
        || panel.series.iter().flat_map(|s| &s.points).map(|p| p.1).filter(|v| v.is_finite());
    // A logarithmic scale needs positive values that differ enough.
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let can_be_log = low > 0.0 && high > 2.0 * low;
    html! {
        figure.panel id={ "panel-" (panel.id) } {
            header {
                h3 { (panel.title) }
                @if can_be_log || panel.log { button.log type="button" title="Logarithmic scale" { "log" } }
            }
            p.hint { (panel.hint) }
            ul.legend {
                @for (i, series) in panel.series.iter().enumerate() {
                    li { i class={ "s" (i % 8) } {} span.name { (series.name) } span.value {} }
                }
                li.where data-rest="last" aria-live="polite" { "last" }
            }
            div.plot {}
        }
    }
}

/// Renders a table of names and values.
pub fn facts(rows: &[(String, String)]) -> Markup {
    html! {
        div.scroll { table.facts { @for (name, value) in rows { tr { th scope="row" { (name) } td { (value) } } } } }
    }
}

/// Formats a number with four digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "not a number".into(),
        0.0 => "0".into(),
        _ if !(1e-3..1e6).contains(&size) => format!("{value:.2e}"),
        _ if size >= 1000.0 => format!("{value:.0}"),
        _ => {
            let digits = 3 - size.log10().floor() as i32;
            let text = format!("{value:.0$}", digits.max(0) as usize);
            match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_numbers_with_four_digits() {
        let pairs = [
            (0.0, "0"),
            (0.57123, "0.5712"),
            (-0.5, "-0.5"),
            (12.345_6, "12.35"),
            (999.96, "1000"),
            (12_345.6, "12346"),
            (1.5e-5, "1.50e-5"),
            (f64::NAN, "not a number"),
            (1.0, "1"),
        ];
        for (value, text) in pairs {
            assert_eq!(number(value), text);
        }
    }
}
