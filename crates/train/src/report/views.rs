//! How exhibits look on the page.

use anyhow::Result;
use maud::{Markup, html};

use crate::page::exhibits::{Card, Exhibits, Gallery, Judged, Neighbours, Picture, Shown};
use crate::page::html::number;
use crate::page::picture::of_colours;

/// Most classes whose confusion is shown.
const MOST_CLASSES: usize = 40;

/// All that there is to see; nothing of a run without exhibits.
pub fn exhibits(exhibits: &Exhibits) -> Result<Markup> {
    let gallery = exhibits.gallery.as_ref().map(|g| gallery(g, exhibits.step)).transpose()?;
    let judged = exhibits.judged.as_ref().map(|judged| self::judged(judged, exhibits.step));
    Ok(html! { (gallery.unwrap_or_default()) (judged.unwrap_or_default()) })
}

fn gallery(gallery: &Gallery, step: u64) -> Result<Markup> {
    let is_text = gallery.shown.iter().any(|s| matches!(s.card.picture, Picture::Text(_)));
    let shares = gallery.shares.map(|share| format!("{:.0}\u{a0}%", 100.0 * share)).join(", ");
    let whose = if gallery.held_out {
        "Examples that training never sees"
    } else {
        "Examples of the training data (none are held out)"
    };
    let shown = gallery.shown.iter().enumerate();
    let shown = shown.map(|(i, shown)| example(i, shown)).collect::<Result<Vec<_>>>()?;
    Ok(html! {
        section id="masks" {
            h2 { "What the mask hides, and what the features see" }
            p.hint {
                (whose) ", with masks as training draws them: the student sees what is not shaded, and predicts the teacher’s features of the rest. "
                @if is_text { "The line under each token shows its" } @else { "Colours show the" }
                " features in the student’s last layer at step " (step) ", the first three principal components as red, green and blue ("
                (shares) " of their variance). The same colour means alike; one colour everywhere: collapse; a mere gradient: positions alone."
            }
            div.examples { @for one in &shown { (one) } }
        }
        section id="neighbours" {
            h2 { "Nearest neighbours" }
            p.hint {
                "By the mean of their features, among " (gallery.among) " examples, with the cosine of the angle between them. What is near should be alike in what you care for."
                @if let Some([same, of]) = agreement(&gallery.neighbours) {
                    " Here " (same) " of " (of) " neighbours have the label of the one they are near to."
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

/// How many neighbours have the same label, where labels are shared at all.
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
    let hidden = |mask: &str| mask.matches('#').count();
    let view = format!("0 0 {columns} {rows}");
    let share = |mask: &str| {
        format!("{:.0}\u{a0}% hidden", 100.0 * hidden(mask) as f64 / mask.len() as f64)
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
                            span.hid[mark == '#'].other[mark == '?'] title=[note(mark)]
                                style={ "border-color:rgb(" (r) "," (g) "," (b) ")" } { (piece) }
                        }
                    }
                    p.note { (share(first)) ": shaded" @if first.contains('?') { "; shown as another token: dotted" } }
                }
            }
        }
        Picture::Raster { url, is_drawing, width, .. } => {
            let id = format!("example-{number}");
            let colours = of_colours(&shown.colours, shown.grid)?;
            let is_coarse = *width < 150 || *is_drawing;
            let picture = |what: &str, inner: Markup| {
                html! {
                    svg.drawing[*is_drawing].coarse[is_coarse] viewBox=(view) preserveAspectRatio="none" role="img"
                        aria-label={ (what) " of " (shown.card.name) } { (inner) }
                }
            };
            let whole = html! { image id=(id) href=(url) width=(columns) height=(rows) preserveAspectRatio="none" {} };
            let again = html! { use href={ "#" (id) } {} };
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
                            figure { (picture("The whole", whole)) figcaption { "the whole" } }
                            @for mask in &shown.masks {
                                figure { (picture("What is left", html! { (again) (shade(mask, columns)) })) figcaption { (share(mask)) } }
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
                            div.bar.tall { (picture("The whole", html! { (whole) (shade(first, columns)) })) }
                            p.note { (share(first)) }
                            @for mask in masks {
                                div.bar.thin { svg viewBox=(view) preserveAspectRatio="none" role="img" aria-label={ "Another mask, " (share(mask)) } { (shade(mask, columns)) } }
                            }
                            @if shown.masks.len() > 1 { p.note { "other masks of the same" } }
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
        '#' => Some("hidden"),
        '?' => Some("shown as another token"),
        _ => None,
    }
}

/// Hidden tokens of a grid with so many columns, run by run.
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

fn judged(judged: &Judged, step: u64) -> Markup {
    let classes = &judged.classes;
    let most =
        judged.confusion.iter().flat_map(|row| row.iter()).max().copied().unwrap_or(0).max(1);
    html! {
        @if !classes.is_empty() && classes.len() <= MOST_CLASSES {
            section id="confusion" {
                h2 { "What is taken for what" }
                p.hint { (judged.among) " held-out examples at step " (step) ". Rows: what is right; columns: what was said. Off the diagonal: mistakes." }
                div.scroll tabindex="0" role="region" aria-label="Confusion matrix" {
                    table.confusion {
                        tr { th {} @for class in classes { th scope="col" { (class) } } }
                        @for (i, (class, row)) in classes.iter().zip(&judged.confusion).enumerate() {
                            tr {
                                th scope="row" { (class) }
                                @for (j, count) in row.iter().enumerate() {
                                    @let share = (*count as f64 / most as f64).sqrt();
                                    td.right[i == j].wrong[i != j] style={ "--share:" (format!("{share:.3}")) } { (count) }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if !judged.worst.is_empty() {
            section id="worst" {
                h2 { "Worst answers" }
                p.hint { "Of the same examples, the furthest off first: mistakes of the model, or of the labels." }
                div.scroll {
                    table.wide {
                        tr { th { "right" } th { "said" } th { "off by" } }
                        @for answer in &judged.worst {
                            tr { td { (answer.right) } td { (answer.said) } td { (number(answer.off)) } }
                        }
                    }
                }
            }
        }
    }
}
