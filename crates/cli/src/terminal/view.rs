//! The view of a run: sparklines of its metrics and a bar on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use console::style;
use data2vec_core::Progress;
use data2vec_train::log::{Status, clock};
use data2vec_train::metrics::{Line, Pretraining, TrainLine};
use data2vec_train::{Observer, RunInfo};

use super::{Bar, print_message, prints_messages, screen};

/// Minimum time between two redraws.
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// Tags and names of the metrics to draw, in this order, where they are known.
const ROWS: [(&str, &str); 10] = [
    ("train/loss", "loss"),
    ("held_out/explained_content", "content"),
    ("held_out/explained_variance", "explained"),
    ("validation", ""), // one row per metric
    ("probe/accuracy", "probe"),
    ("train/target_std", "target std"),
    ("health/target_rank", "target rank"),
    ("train/grad_norm", "gradient"),
    ("train/units_per_second", "speed"),
    (MEMORY, "memory GiB"),
];

/// Tag of the memory in GiB, which is in no line of metrics.
const MEMORY: &str = "memory";

/// Characters of a sparkline, from low to high.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Width of the column of names, including its space.
const NAME: usize = 13;

/// Width of the column of numbers, including its space.
const NUMBER: usize = 9;

/// Shows a run's progress.
#[derive(Default)]
pub struct View {
    unit: &'static str,
    step: u64,
    steps: u64,
    /// Whether lines are redrawn.
    drawing: bool,
    /// Values of each metric, oldest first.
    history: BTreeMap<String, Vec<f64>>,
    /// Learning rate and speed, shown after the bar.
    speed: String,
    started: Option<Instant>,
    left: Option<Duration>,
    drawn: Option<Instant>,
    bar: Bar,
}

impl Observer for View {
    fn start(&mut self, run: &RunInfo) {
        *self = Self::default();
        (self.unit, self.step, self.steps) = (run.unit, run.step, run.steps);
        run.lines.iter().for_each(|line| self.remember(line));
    }

    fn progress(&mut self, progress: Progress) {
        self.bar.update(progress);
        if progress.done >= progress.total {
            self.bar.clear();
        }
    }

    fn begin(&mut self) {
        self.bar.clear();
        self.started = Some(Instant::now());
        self.drawing = screen::is_terminal() && prints_messages();
        self.draw();
    }

    fn step(&mut self, step: u64) {
        self.step = step;
        if self.drawn.is_none_or(|drawn| drawn.elapsed() > REDRAW_EVERY) {
            self.draw();
        }
    }

    fn line(&mut self, line: &Line, status: &Status) -> Result<()> {
        if let Line::Train(line) = line {
            self.train(line, status);
        }
        self.remember(line);
        Ok(())
    }

    fn end(&mut self) {
        self.finish();
    }
}

impl View {
    /// Shows a training line: the means over the last steps.
    fn train(&mut self, line: &TrainLine, status: &Status) {
        self.left = Some(status.left);
        let speed = format!("lr {:.1e} {:.0} {}/s", line.lr, line.units_per_second, self.unit);
        if self.drawing {
            self.speed = speed;
            if let Some(memory) = status.memory {
                let gib = memory / (1_u64 << 30) as f64;
                self.history.entry(MEMORY.into()).or_default().push(gib);
            }
            return;
        }
        let mut text = format!("loss {:.3}", line.loss);
        let evaluation = match status.evaluation {
            Some(Line::HeldOut(line)) => {
                let content = line.explained_content;
                content.map(|e| format!(" (explained_content {e:.3} at step {})", line.step))
            }
            Some(Line::Validation(line)) => {
                let metrics = line.metrics.iter();
                let metrics = metrics.map(|(name, value)| format!("{name} {value:.3}"));
                let metrics = metrics.collect::<Vec<_>>().join(" ");
                Some(format!(" ({metrics} at step {})", line.step))
            }
            _ => None,
        };
        text += &evaluation.unwrap_or_default();
        if let Some(Pretraining { target_std, pred_std, .. }) = line.pretraining {
            text += &format!(" std {target_std:.2}/{pred_std:.2}");
        }
        let (step, steps, left) = (line.step, self.steps, clock(status.left));
        print_message(format_args!("step {step}/{steps}  {text} {speed}  {left} left"));
    }

    /// Adds the metrics of a line to the history.
    fn remember(&mut self, line: &Line) {
        for (tag, value) in line.scalars() {
            self.history.entry(tag).or_default().push(value);
        }
        self.draw();
    }

    /// Erases what was drawn.
    fn finish(&mut self) {
        if std::mem::take(&mut self.drawing) {
            screen::clear();
        }
    }

    fn draw(&mut self) {
        if self.drawing {
            screen::draw(self.lines(screen::size()));
            self.drawn = Some(Instant::now());
        }
    }

    /// Returns the lines to draw on a terminal of this size.
    fn lines(&self, (rows, columns): (usize, usize)) -> Vec<String> {
        let mut lines: Vec<String> =
            self.metrics().map(|(name, values)| metric_row(&name, values, columns)).collect();
        lines.truncate(rows.saturating_sub(2));
        lines.push(self.bar(columns));
        lines
    }

    /// Returns the names and values of the metrics to draw.
    fn metrics(&self) -> impl Iterator<Item = (String, &Vec<f64>)> {
        ROWS.into_iter().flat_map(move |(row, name)| {
            let is_in = move |tag: &str| match name {
                "" => tag.strip_prefix(row).is_some_and(|rest| rest.starts_with('/')),
                _ => tag == row,
            };
            let found = self.history.iter().filter(move |(tag, _)| is_in(tag));
            found.map(move |(tag, values)| {
                let name = match name {
                    "" => tag.rsplit('/').next().unwrap_or_default().to_owned(),
                    "speed" => format!("{}/s", self.unit),
                    name => name.to_owned(),
                };
                (name, values)
            })
        })
    }

    /// Formats the progress, as in `━━━━──── 120/400  1:02, 2:10 left  lr 3.0e-4`. The bar takes
    /// the remaining width.
    fn bar(&self, columns: usize) -> String {
        let mut text = format!(" {}/{}", self.step, self.steps);
        let mut times = clock(self.started.map_or(Duration::ZERO, |started| started.elapsed()));
        times += &self.left.map_or(String::new(), |left| format!(", {} left", clock(left)));
        text += &format!("  {times}");
        let with_speed = format!("{text}  {}", self.speed);
        // A narrow terminal has no room for the speed.
        if with_speed.chars().count() + 10 < columns {
            text = with_speed;
        }
        let width = columns.saturating_sub(text.chars().count() + 1).clamp(4, 30);
        let share = self.step as f64 / self.steps.max(1) as f64;
        let full = ((share * width as f64) as usize).min(width);
        let (full, rest) = ("━".repeat(full), "─".repeat(width - full));
        format!("{}{}{text}", style(full).for_stderr().cyan(), style(rest).for_stderr().dim())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Formats a metric, as in `loss        4.512    ▇▆▅▃▂▁`.
fn metric_row(name: &str, values: &[f64], columns: usize) -> String {
    let name: String = name.chars().take(NAME - 1).collect();
    let last = values.last().copied().unwrap_or(f64::NAN);
    let number = format!("{:<NUMBER$}", format_number(last));
    let number = style(number).for_stderr();
    let number = if last.is_finite() { number.bold() } else { number.red().bold() };
    let line = sparkline(values, columns.saturating_sub(NAME + NUMBER + 1));
    let name = style(format!("{name:<NAME$}")).for_stderr().dim();
    format!("{name}{number}{}", style(line).for_stderr().cyan())
}

/// Formats a number in at most 8 characters.
fn format_number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => value.to_string(),
        0.0 => "0".into(),
        size if !(0.001..1e6).contains(&size) => format!("{value:.1e}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size => format!("{value:.*}", if size < 10.0 { 3 } else { 1 }),
    }
}

/// Draws a series in at most `width` characters, scaled from its minimum to its maximum. Where
/// several values share a character, it shows their mean; a value that is not finite is a cross.
fn sparkline(values: &[f64], width: usize) -> String {
    let count = values.len().min(width);
    let means = (0..count).map(|i| {
        let start = |i: usize| i * values.len() / count;
        let chunk = &values[start(i)..start(i + 1)];
        chunk.iter().sum::<f64>() / chunk.len() as f64
    });
    let means: Vec<f64> = means.collect();
    let finite = || means.iter().copied().filter(|value| value.is_finite());
    let (min, max) =
        finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let level = |value: f64| match max > min {
        true => ((value - min) / (max - min) * 7.0).round() as usize,
        false => 3,
    };
    means
        .iter()
        .map(|&mean| if mean.is_finite() { LEVELS[level(mean).min(7)] } else { '×' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use data2vec_train::metrics::{HeldOutLine, ValidationLine};

    #[test]
    fn sparkline_scales_from_minimum_to_maximum() {
        assert_eq!(sparkline(&[0.0, 1.0, 7.0, f64::NAN], 10), "▁▂█×");
        assert_eq!(sparkline(&[0.0, 0.0, 1.0, 1.0], 2), "▁█");
        assert_eq!(sparkline(&[5.0; 30], 3), "▄▄▄");
        assert_eq!(sparkline(&[f64::INFINITY], 3), "×");
        assert_eq!(sparkline(&[-1e308, 1e308], 3).chars().count(), 2);
        assert_eq!(sparkline(&[], 3), "");
        assert_eq!(sparkline(&[1.0], 0), "");
    }

    #[test]
    fn numbers_fit_their_column() {
        for (value, text) in [
            (0.0, "0"),
            (4.51234, "4.512"),
            (-0.5, "-0.500"),
            (31.44, "31.4"),
            (153_200.0, "153200"),
            (3e-5, "3.0e-5"),
            (-1.5e300, "-1.5e300"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(format_number(value), text);
            assert!(format_number(value).len() < NUMBER);
        }
    }

    #[test]
    fn lines_fit_the_terminal() {
        let train = |step| Line::Train(TrainLine { step, loss: 1.0, ..TrainLine::default() });
        let mut lines: Vec<Line> = (0..500).map(train).collect();
        lines.push(Line::HeldOut(HeldOutLine {
            step: 500,
            loss: 1.0,
            explained_variance: Some(0.25),
            ..HeldOutLine::default()
        }));
        let metrics = [("letter_error_rate".to_owned(), 0.25)].into();
        lines.push(Line::Validation(ValidationLine { step: 500, loss: 1.0, metrics }));
        let mut view = View::default();
        (view.unit, view.step, view.steps) = ("seconds", 500, 100_000);
        lines.iter().for_each(|line| view.remember(line));
        for (rows, columns) in [(24, 80), (24, 40), (3, 40), (1, 10), (24, 500)] {
            let drawn = view.lines((rows, columns));
            assert!(drawn.len() < rows.max(2), "{drawn:?}");
            for line in drawn.iter().filter(|_| columns > 39) {
                assert!(console::measure_text_width(line) < columns, "{columns}: {line}");
            }
        }
        let drawn = view.lines((24, 40)).join("\n");
        for part in ["loss", "explained", "letter_error", "0.250", "seconds/s", "500/100000"] {
            assert!(drawn.contains(part), "{drawn}");
        }
    }
}
