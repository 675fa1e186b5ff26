//! Renders previews of examples, confusion matrices and worst predictions.

use anyhow::Result;
use maud::{Markup, html};

use crate::report::html::number;
use crate::report::picture::colour_grid;
use crate::report::previews::{
    Card, Evaluated, Gallery, Neighbours, Picture, PreviewExamples, Shown,
};

/// Maximum number of classes of a confusion matrix.
const MAX_CLASSES: usize = 40;

/// Renders all previews of a run; nothing without any.
///
/// # Errors
/// If a preview is invalid.
pub fn previews(previews: &PreviewExamples) -> Result<Markup> {
    let gallery = previews.gallery.as_ref().map(|g| gallery(g, previews.step)).transpose()?;
    let evaluated =
        previews.evaluated.as_ref().map(|evaluated| self::evaluated(evaluated, previews.step));
    Ok(html! { (gallery.unwrap_or_default()) (evaluated.unwrap_or_default()) })
}

fn gallery(gallery: &Gallery, step: u64) -> Result<Markup> {
    let is_text = gallery.shown.iter().any(|s| matches!(s.card.picture, Picture::Text(_)));
    let shares = gallery.shares.map(|share| format!("{:.0}\u{a0}%", 100.0 * share)).join(", ");
    let origin = if gallery.held_out {
        "Held-out examples"
    } else {
        "Training examples (none are held out)"
    };
    let shown = gallery.shown.iter().enumerate();
    let shown = shown.map(|(i, shown)| example(i, shown)).collect::<Result<Vec<_>>>()?;
    Ok(html! {
        section id="masks" {
            h2 { "Masks and features" }
            p.hint {
                (origin) " with masks as in training. Shaded tokens are masked: the student predicts the teacher’s features there. "
                @if is_text { "The line under each token shows its" } @else { "Colours show the" }
                " features in the student’s last layer at step " (step) ": the first three principal components as red, green and blue ("
                (shares) " of the variance). Similar features have similar colours. One colour everywhere: collapse. A smooth gradient: only positions are learned."
            }
            div.examples { @for one in &shown { (one) } }
        }
        section id="neighbours" {
            h2 { "Nearest neighbours" }
            p.hint {
                "Nearest by mean features among " (gallery.among) " examples, with cosine similarity. Neighbours should be similar in content."
                @if let Some([same, total]) = agreement(&gallery.neighbours) {
                    " " (same) " of " (total) " neighbours have the same label."
                }
            }
            div.rows {
                @for row in &gallery.neighbours {
                    div.row {
                        (card(&row.of, None))
                        span.arrow aria-hidden="true" { "→" }
                        @for (near, cosine) in &row.nearest { (card(near, Some(*cosine))) }
                    }
                }
            }
        }
    })
}

/// Returns how many neighbours have the same label, and how many have labels. Returns `None` if no
/// two labels are the same, as with transcripts.
fn agreement(rows: &[Neighbours]) -> Option<[usize; 2]> {
    let pairs = rows
        .iter()
        .flat_map(|row| row.nearest.iter().map(move |near| (&row.of.label, &near.0.label)));
    let known: Vec<_> = pairs.filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?))).collect();
    let same = known.iter().filter(|(a, b)| a == b).count();
    (same > 0).then_some([same, known.len()])
}

fn title(card: &Card) -> Markup {
    html! {
        h3.name { (card.name) }
        @if let Some(label) = &card.label { p.label { (label) } }
    }
}

fn example(number: usize, shown: &Shown) -> Result<Markup> {
    let [rows, columns] = shown.grid;
    let masked = |mask: &str| mask.matches('#').count();
    let view = format!("0 0 {columns} {rows}");
    let share = |mask: &str| {
        format!("{:.0}\u{a0}% masked", 100.0 * masked(mask) as f64 / mask.len() as f64)
    };
    Ok(match &shown.card.picture {
        Picture::Text(pieces) => {
            let first = shown.masks.first().map_or("", String::as_str);
            let marks = first.chars().chain(std::iter::repeat('.'));
            html! {
                article.example {
                    (title(&shown.card))
                    p.tokens {
                        @for ((piece, mark), [r, g, b]) in pieces.iter().zip(marks).zip(&shown.colours) {
                            span.masked[mark == '#'].replaced[mark == '?'] title=[note(mark)]
                                style={ "border-color:rgb(" (r) "," (g) "," (b) ")" } { (piece) }
                        }
                    }
                    p.note { (share(first)) " (shaded)" @if first.contains('?') { "; dotted: replaced by another token" } }
                }
            }
        }
        Picture::Raster { url, is_drawing, width, .. } => {
            let id = format!("example-{number}");
            let colours = colour_grid(&shown.colours, shown.grid)?;
            let is_coarse = *width < 150 || *is_drawing;
            let picture = |label: &str, inner: Markup| {
                html! {
                    svg.drawing[*is_drawing].coarse[is_coarse] viewBox=(view) preserveAspectRatio="none" role="img"
                        aria-label={ (label) " of " (shown.card.name) } { (inner) }
                }
            };
            let input = html! { image id=(id) href=(url) width=(columns) height=(rows) preserveAspectRatio="none" {} };
            let copy = html! { use href={ "#" (id) } {} };
            let features = html! {
                svg.coarse viewBox=(view) preserveAspectRatio="none" role="img" aria-label={ "Features of " (shown.card.name) } {
                    image href=(colours) width=(columns) height=(rows) preserveAspectRatio="none" {}
                }
            };
            if rows > 1 {
                html! {
                    article.example {
                        (title(&shown.card))
                        div.squares style={ "--shape:" (columns) "/" (rows) } {
                            figure { (picture("Input", input)) figcaption { "input" } }
                            @for mask in &shown.masks {
                                figure { (picture("Visible part", html! { (copy) (shade(mask, columns)) })) figcaption { (share(mask)) } }
                            }
                            figure { (features) figcaption { "features" } }
                        }
                    }
                }
            } else {
                let mut masks = shown.masks.iter();
                let first = masks.next().map_or("", String::as_str);
                html! {
                    article.example {
                        (title(&shown.card))
                        div.bars {
                            div.bar.tall { (picture("Input", html! { (input) (shade(first, columns)) })) }
                            p.note { (share(first)) }
                            @for mask in masks {
                                div.bar.thin { svg viewBox=(view) preserveAspectRatio="none" role="img" aria-label={ "Another mask, " (share(mask)) } { (shade(mask, columns)) } }
                            }
                            @if shown.masks.len() > 1 { p.note { "other masks of this example" } }
                            div.bar.low { (features) }
                            p.note { "features" }
                        }
                    }
                }
            }
        }
    })
}

fn note(mark: char) -> Option<&'static str> {
    match mark {
        '#' => Some("masked"),
        '?' => Some("replaced by another token"),
        _ => None,
    }
}

/// Renders the masked tokens of a grid with `columns` columns.
fn shade(mask: &str, columns: usize) -> Markup {
    let mut path = String::new();
    for (row, marks) in mask.as_bytes().chunks(columns).enumerate() {
        let mut column = 0;
        while column < marks.len() {
            let len = marks[column..].iter().take_while(|&&mark| mark == b'#').count();
            if len > 0 {
                path += &format!("M{column} {row}h{len}v1h-{len}z");
            }
            column += len.max(1);
        }
    }
    html! { path.shade d=(path) {} }
}

fn card(card: &Card, cosine: Option<f64>) -> Markup {
    html! {
        figure.card {
            @match &card.picture {
                Picture::Raster { url, is_drawing, width, height } => {
                    img.drawing[*is_drawing].coarse[*width < 150] src=(url) width=(width) height=(height) alt=(card.name);
                }
                Picture::Text(pieces) => { p.snippet { (pieces.concat()) } }
            }
            figcaption {
                @if let Some(cosine) = cosine { b { (format!("{cosine:.2}")) } " " }
                @if let Some(label) = &card.label { span.label { (label) } " " }
                span.name { (card.name) }
            }
        }
    }
}

fn evaluated(evaluated: &Evaluated, step: u64) -> Markup {
    let classes = &evaluated.classes;
    let largest =
        evaluated.confusion.iter().flat_map(|row| row.iter()).max().copied().unwrap_or(0).max(1);
    html! {
        @if !classes.is_empty() && classes.len() <= MAX_CLASSES {
            section id="confusion" {
                h2 { "Confusion matrix" }
                p.hint { (evaluated.among) " held-out examples at step " (step) ". Rows: labels; columns: predictions." }
                div.scroll tabindex="0" role="region" aria-label="Confusion matrix" {
                    table.confusion {
                        tr { th {} @for class in classes { th scope="col" { (class) } } }
                        @for (i, (class, row)) in classes.iter().zip(&evaluated.confusion).enumerate() {
                            tr {
                                th scope="row" { (class) }
                                @for (j, count) in row.iter().enumerate() {
                                    @let share = (*count as f64 / largest as f64).sqrt();
                                    td.right[i == j].wrong[i != j] style={ "--share:" (format!("{share:.3}")) } { (count) }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if !evaluated.worst.is_empty() {
            section id="worst" {
                h2 { "Worst predictions" }
                p.hint { "Largest errors first. They may be mistakes of the model, or of the labels." }
                div.scroll {
                    table.wide {
                        tr { th { "target" } th { "prediction" } th { "error" } }
                        @for prediction in &evaluated.worst {
                            tr { td { (prediction.target) } td { (prediction.prediction) } td { (number(prediction.error)) } }
                        }
                    }
                }
            }
        }
    }
}
