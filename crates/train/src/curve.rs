//! Draws `curve.svg`, the main curves of a run.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::metrics::{HeldOutLine, Line, Pretraining, TrainLine, ValidationLine, read};

type Points = Vec<(f64, f64)>;

/// A panel: title and named series.
type Panel = (String, Vec<(&'static str, Points)>);

/// Draws the curves of the file `metrics` to the SVG file `out`.
///
/// # Errors
/// If `metrics` cannot be read or `out` cannot be written.
pub fn draw(metrics: &Path, out: &Path) -> Result<()> {
    let lines = read(metrics)?;
    let is_finetuning = lines.iter().any(|line| matches!(line, Line::Validation(_)));
    let panels = if is_finetuning { finetuning(&lines) } else { pretraining(&lines) };
    draw_panels(out, &panels).map_err(|e| anyhow!("{}: {e}", out.display()))
}

/// Returns steps and values of the lines that have a value.
fn points(lines: &[Line], value: impl Fn(&Line) -> Option<(u64, f64)>) -> Points {
    lines.iter().filter_map(value).map(|(step, value)| (step as f64, value)).collect()
}

fn train(lines: &[Line], value: impl Fn(&TrainLine) -> Option<f64>) -> Points {
    points(lines, |line| match line {
        Line::Train(line) => Some((line.step, value(line)?)),
        _ => None,
    })
}

fn pretraining(lines: &[Line]) -> Vec<Panel> {
    let std = |value: fn(&Pretraining) -> f64| train(lines, |l| l.pretraining.as_ref().map(value));
    let held_out = |value: fn(&HeldOutLine) -> Option<f64>| {
        points(lines, |line| match line {
            Line::HeldOut(line) => Some((line.step, value(line)?)),
            _ => None,
        })
    };
    vec![
        (
            "loss (targets move with the teacher: a falling loss alone proves nothing)".into(),
            vec![
                ("training", train(lines, |l| Some(l.loss))),
                ("held out", held_out(|l| Some(l.loss))),
            ],
        ),
        (
            "explained variance, held out (content is 0 for a model of positions alone)".into(),
            vec![
                ("content", held_out(|l| l.explained_content)),
                ("total", held_out(|l| l.explained_variance)),
            ],
        ),
        (
            "standard deviation of targets and predictions (near 0: collapse)".into(),
            vec![("targets", std(|l| l.target_std)), ("predictions", std(|l| l.pred_std))],
        ),
    ]
}

/// Returns a panel of the loss, and one for each metric of the evaluations.
fn finetuning(lines: &[Line]) -> Vec<Panel> {
    let validation = |value: &dyn Fn(&ValidationLine) -> Option<f64>| {
        points(lines, |line| match line {
            Line::Validation(line) => Some((line.step, value(line)?)),
            _ => None,
        })
    };
    let losses = vec![
        ("training", train(lines, |l| Some(l.loss))),
        ("held out", validation(&|l| Some(l.loss))),
    ];
    let mut panels = vec![("loss".to_owned(), losses)];
    let names = lines.iter().filter_map(|line| match line {
        Line::Validation(line) => Some(line.metrics.keys()),
        _ => None,
    });
    for name in names.flatten().collect::<BTreeSet<_>>() {
        let values = validation(&|l| l.metrics.get(name).copied());
        panels.push((format!("{name}, held out"), vec![("held out", values)]));
    }
    panels
}

fn draw_panels(out: &Path, panels: &[Panel]) -> Result<(), Box<dyn std::error::Error>> {
    let colors = [RGBColor(31, 119, 180), RGBColor(214, 100, 20)];
    let root = SVGBackend::new(out, (760, 900)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, (title, series)) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
        let all = series.iter().flat_map(|(_, points)| points).filter(|p| p.1.is_finite());
        let (mut last, mut low, mut high) = (1.0_f64, 0.0_f64, f64::MIN);
        for &(x, y) in all {
            (last, low, high) = (last.max(x), low.min(y), high.max(y));
        }
        if high <= low {
            high = low + 1.0; // nothing to show yet
        }
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 15))
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..last, low..high + 0.05 * (high - low))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("step")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.2}"))
            .draw()?;
        for ((name, points), color) in series.iter().zip(colors) {
            let points = points.iter().copied().filter(|p| p.1.is_finite());
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?.label(*name).legend(
                move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)),
            );
        }
        if series.len() > 1 {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .border_style(TRANSPARENT)
                .draw()?;
        }
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{HeldOutLine, Metrics, TrainLine};

    #[test]
    fn draws_empty_metrics_and_nan() {
        let dir = std::env::temp_dir();
        let (metrics, out) = (dir.join("data2vec-curve.jsonl"), dir.join("data2vec-curve.svg"));
        let _ = std::fs::remove_file(&metrics);
        draw(&metrics, &out).expect("an empty plot");
        let mut file = Metrics::open(&metrics, 0).expect("a new file");
        for step in 1..20 {
            let loss = if step == 7 { f64::NAN } else { 1.0 / step as f64 };
            file.write(&Line::Train(TrainLine { step, loss, ..TrainLine::default() }))
                .expect("space");
        }
        let line = HeldOutLine {
            step: 9,
            loss: 1.0,
            explained_variance: Some(-0.1),
            explained_content: Some(-0.2),
            ..HeldOutLine::default()
        };
        file.write(&Line::HeldOut(line)).expect("space");
        draw(&metrics, &out).expect("a plot");
        let svg = std::fs::read_to_string(&out).expect("text");
        assert!(svg.contains("explained variance") && svg.matches("<polyline").count() > 3);
        assert!(!svg.contains("NaN"));
    }
}
