//! Histograms of example sizes, as numbers and as SVG.

use std::path::Path;

use plotters::prelude::*;
use serde::Serialize;

/// Number of bins.
const BINS: usize = 40;

/// If the maximum exceeds the median by this factor, bins are logarithmic.
const LONG_TAIL: f64 = 20.0;

/// A histogram.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// Edges of the bins, one more than there are bins.
    pub edges: Vec<f64>,
    /// Number of values in each bin. A bin includes its lower edge, the last one its upper edge
    /// too.
    pub counts: Vec<usize>,
}

impl Histogram {
    /// Bins at least one finite value, sorted.
    pub fn of(sorted: &[f64]) -> Self {
        let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
        let median = sorted[sorted.len() / 2];
        // Equal values still need a bin of some width.
        let high = if high > low { high } else { low + 1.0 };
        let is_logarithmic = low > 0.0 && high > LONG_TAIL * median;
        let edge = |at: usize| {
            let share = at as f64 / BINS as f64;
            match at {
                0 => low,
                BINS => high,
                _ if is_logarithmic => low * (high / low).powf(share),
                _ => low + (high - low) * share,
            }
        };
        let edges: Vec<f64> = (0..=BINS).map(edge).collect();
        let below = |edge: f64| sorted.partition_point(|&value| value < edge);
        let mut starts: Vec<usize> = edges.iter().map(|&edge| below(edge)).collect();
        starts[BINS] = sorted.len();
        let counts = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Self { edges, counts }
    }
}

/// Draws histograms below each other, each with its title, to the SVG file `out`.
pub fn draw(
    out: &Path,
    histograms: &[(String, &Histogram)],
) -> Result<(), Box<dyn std::error::Error>> {
    let root =
        SVGBackend::new(out, (760, 300 * histograms.len().max(1) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, (title, histogram)) in
        root.split_evenly((histograms.len().max(1), 1)).iter().zip(histograms)
    {
        let highest = histogram.counts.iter().max().copied().unwrap_or(0).max(1) as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 15))
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..BINS as f64, 0.0..1.05 * highest)?;
        let edge = |x: &f64| {
            let value = histogram.edges[(x.round() as usize).min(BINS)];
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
        chart.draw_series(
            histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(
                |(at, &count)| {
                    Rectangle::new([(at as f64, 0.0), (at as f64 + 0.9, count as f64)], color)
                },
            ),
        )?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_value_once() {
        let even: Vec<f64> = (0..=80).map(f64::from).collect();
        let histogram = Histogram::of(&even);
        assert_eq!((histogram.edges[0], histogram.edges[1], histogram.edges[40]), (0.0, 2.0, 80.0));
        assert!(
            histogram.counts[..39].iter().all(|&count| count == 2) && histogram.counts[39] == 3
        );

        let long = [1.0, 1.0, 1.0, 10.0, 10_000.0];
        let histogram = Histogram::of(&long);
        assert!((histogram.edges[20] - 100.0).abs() < 1e-6, "logarithmic bins");
        assert_eq!((histogram.counts[0], histogram.counts[10], histogram.counts[39]), (3, 1, 1));

        let histogram = Histogram::of(&[5.0]);
        assert_eq!((histogram.counts[0], histogram.counts.iter().sum::<usize>()), (1, 1));
    }

    #[test]
    fn draws_a_rectangle_per_bin() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let out = dir.path().join("sizes.svg");
        let histogram = Histogram::of(&[1.0, 2.0, 2.0, 9.0]);
        draw(&out, &[("seconds".into(), &histogram)]).expect("draws");
        let svg = std::fs::read_to_string(&out).expect("is text");
        assert!(svg.contains("seconds") && !svg.contains("NaN"));
        assert_eq!(svg.matches("#1F77B4").count(), 3, "{svg}");
    }
}
