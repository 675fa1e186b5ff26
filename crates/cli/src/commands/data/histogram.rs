//! How values are spread, as bars.

use std::path::Path;

use plotters::prelude::*;
use serde::Serialize;

/// How many bars there are.
const BARS: usize = 40;
/// Where the largest value is more than so many times the median, bars grow wider with their values.
const LONG_TAIL: f64 = 20.0;

/// Counts of values between edges.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bars {
    /// Where bars begin and end, one more than there are bars.
    pub edges: Vec<f64>,
    /// How many values are in each, the first edge included; in the last one, the last edge too.
    pub counts: Vec<usize>,
}

impl Bars {
    /// Of at least one finite value, from the smallest to the largest.
    pub fn of(sorted: &[f64]) -> Self {
        let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
        let median = sorted[sorted.len() / 2];
        // One value alone still has a bar.
        let high = if high > low { high } else { low + 1.0 };
        let is_long = low > 0.0 && high > LONG_TAIL * median;
        let edge = |at: usize| {
            let share = at as f64 / BARS as f64;
            match at {
                0 => low,
                BARS => high,
                _ if is_long => low * (high / low).powf(share),
                _ => low + (high - low) * share,
            }
        };
        let edges: Vec<f64> = (0..=BARS).map(edge).collect();
        let below = |edge: f64| sorted.partition_point(|&value| value < edge);
        let mut starts: Vec<usize> = edges.iter().map(|&edge| below(edge)).collect();
        starts[BARS] = sorted.len();
        let counts = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Self { edges, counts }
    }
}

/// Draws panels, each with its title, to the SVG file `out`.
pub fn draw(out: &Path, panels: &[(String, &Bars)]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(out, (760, 300 * panels.len().max(1) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, (title, bars)) in root.split_evenly((panels.len().max(1), 1)).iter().zip(panels) {
        let most = bars.counts.iter().max().copied().unwrap_or(0).max(1) as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 15))
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..BARS as f64, 0.0..1.05 * most)?;
        let edge = |x: &f64| {
            let value = bars.edges[(x.round() as usize).min(BARS)];
            if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(9)
            .x_label_formatter(&edge)
            .y_label_formatter(&|y| format!("{y:.0}"))
            .draw()?;
        let color = RGBColor(31, 119, 180).filled();
        chart.draw_series(bars.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(
            |(at, &count)| {
                Rectangle::new([(at as f64, 0.0), (at as f64 + 0.9, count as f64)], color)
            },
        ))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_one_bar() {
        let even: Vec<f64> = (0..=80).map(f64::from).collect();
        let bars = Bars::of(&even);
        assert_eq!((bars.edges[0], bars.edges[1], bars.edges[40]), (0.0, 2.0, 80.0));
        assert!(bars.counts[..39].iter().all(|&count| count == 2) && bars.counts[39] == 3);

        let long = [1.0, 1.0, 1.0, 10.0, 10_000.0];
        let bars = Bars::of(&long);
        assert!((bars.edges[20] - 100.0).abs() < 1e-6, "the middle of a long tail is its root");
        assert_eq!((bars.counts[0], bars.counts[10], bars.counts[39]), (3, 1, 1));

        let bars = Bars::of(&[5.0]);
        assert_eq!((bars.counts[0], bars.counts.iter().sum::<usize>()), (1, 1));
    }

    #[test]
    fn pictures_have_a_rectangle_for_each_bar() {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path().join("sizes.svg");
        let bars = Bars::of(&[1.0, 2.0, 2.0, 9.0]);
        draw(&out, &[("seconds".into(), &bars)]).expect("a picture");
        let svg = std::fs::read_to_string(&out).expect("text");
        assert!(svg.contains("seconds") && !svg.contains("NaN"));
        assert_eq!(svg.matches("#1F77B4").count(), 3, "{svg}");
    }
}
