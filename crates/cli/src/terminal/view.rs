//! What the user sees while a run goes on: on a terminal how each figure went and a bar, plain lines elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use console::style;

use crate::metrics::{Line, Pretraining, TrainLine};
use crate::report::tell;
use crate::screen;

/// Time between two drawings.
const PACE: Duration = Duration::from_millis(100);

/// Figures that are drawn if they are known, in this order: tags and what to call them.
const ROWS: [(&str, &str); 9] = [
    ("train/loss", "loss"),
    ("held_out/explained", "explained"),
    ("validation", ""), // each of them
    ("probe/accuracy", "probe"),
    ("train/target_var", "target var"),
    ("health/target_rank", "target rank"),
    ("train/grad_norm", "gradient"),
    ("train/units_per_second", "speed"),
    (MEMORY, "memory GiB"),
];

/// Tag of what only the view knows: memory in GiB.
const MEMORY: &str = "memory";

/// Heights of a point in a sparkline.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Columns of names and of numbers, each with the space behind it.
const NAME: usize = 13;
const NUMBER: usize = 9;

/// What is seen of a run.
pub struct View {
    unit: &'static str,
    step: u64,
    steps: u64,
    /// Whether lines are drawn again and again.
    drawing: bool,
    /// Of each figure all values, oldest first.
    history: BTreeMap<String, Vec<f64>>,
    /// What follows the bar.
    now: String,
    started: Instant,
    left: Option<Duration>,
    drawn: Option<Instant>,
}

impl View {
    /// Of a run that stands at `step` of `steps`, counts its data in `unit`, and has told `lines`. Nothing is
    /// drawn yet.
    pub fn new((step, steps): (u64, u64), unit: &'static str, lines: &[Line]) -> Self {
        let mut view = Self {
            unit,
            step,
            steps,
            drawing: false,
            history: BTreeMap::new(),
            now: String::new(),
            started: Instant::now(),
            left: None,
            drawn: None,
        };
        lines.iter().for_each(|line| view.remember(line));
        view
    }

    /// Begins to show the run.
    pub fn show(&mut self) {
        self.started = Instant::now();
        self.drawing = screen::is_there() && crate::report::has_news();
        self.draw();
    }

    /// One more step.
    pub fn step(&mut self, step: u64) {
        self.step = step;
        if self.drawn.is_none_or(|drawn| drawn.elapsed() > PACE) {
            self.draw();
        }
    }

    /// Means of the last steps, the last evaluation, the time that the rest will take, and bytes of memory in
    /// use.
    pub fn train(
        &mut self,
        line: &TrainLine,
        evaluation: Option<&Line>,
        left: Duration,
        memory: Option<f64>,
    ) {
        self.left = Some(left);
        let speed = format!("lr {:.1e} {:.0} {}/s", line.lr, line.units_per_second, self.unit);
        if self.drawing {
            self.now = speed;
            if let Some(memory) = memory {
                let gib = memory / (1_u64 << 30) as f64;
                self.history.entry(MEMORY.into()).or_default().push(gib);
            }
            return;
        }
        let mut text = format!("loss {:.3}", line.loss);
        let known = match evaluation {
            Some(Line::HeldOut(line)) => line.explained.map(|e| format!(" explained {e:.3}")),
            Some(Line::Validation(line)) => {
                let figures = line.figures.iter();
                Some(figures.map(|(name, value)| format!(" {name} {value:.3}")).collect())
            }
            _ => None,
        };
        text += &known.unwrap_or_default();
        if let Some(Pretraining { target_var, pred_var, .. }) = line.pretraining {
            text += &format!(" var {target_var:.2}/{pred_var:.2}");
        }
        tell!("step {}/{}  {text} {speed}  {} left", line.step, self.steps, clock(left));
    }

    /// Takes the figures of a line into what is drawn.
    pub fn remember(&mut self, line: &Line) {
        for (tag, value) in line.scalars() {
            self.history.entry(tag).or_default().push(value);
        }
        self.draw();
    }

    /// Leaves the terminal as it was.
    pub fn finish(&mut self) {
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

    /// All that is drawn on a terminal of so many rows and columns.
    fn lines(&self, (rows, columns): (usize, usize)) -> Vec<String> {
        let mut lines: Vec<String> =
            self.figures().map(|(name, values)| figure(&name, values, columns)).collect();
        lines.truncate(rows.saturating_sub(2));
        lines.push(self.bar(columns));
        lines
    }

    /// Figures that are known, with their names.
    fn figures(&self) -> impl Iterator<Item = (String, &Vec<f64>)> {
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

    /// `━━━━──── 120/400  lr 3.0e-4  1:02, 2:10 left`, the bar as wide as there is room.
    fn bar(&self, columns: usize) -> String {
        let mut text = format!(" {}/{}", self.step, self.steps);
        let mut times = clock(self.started.elapsed());
        times += &self.left.map_or(String::new(), |left| format!(", {} left", clock(left)));
        text += &format!("  {times}");
        let all = format!("{text}  {}", self.now);
        // What tells least goes first.
        if all.chars().count() + 10 < columns {
            text = all;
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

/// `loss        4.512    ▇▆▅▃▂▁`.
fn figure(name: &str, values: &[f64], columns: usize) -> String {
    let name: String = name.chars().take(NAME - 1).collect();
    let last = values.last().copied().unwrap_or(f64::NAN);
    let number = format!("{:<NUMBER$}", short(last));
    let number = style(number).for_stderr();
    let number = if last.is_finite() { number.bold() } else { number.red().bold() };
    let line = sparkline(values, columns.saturating_sub(NAME + NUMBER + 1));
    let name = style(format!("{name:<NAME$}")).for_stderr().dim();
    format!("{name}{number}{}", style(line).for_stderr().cyan())
}

/// A number in at most 8 characters.
fn short(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => value.to_string(),
        0.0 => "0".into(),
        size if !(0.001..1e6).contains(&size) => format!("{value:.1e}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size => format!("{value:.*}", if size < 10.0 { 3 } else { 1 }),
    }
}

/// How `values` went, in at most `width` characters, from their least to their greatest. Several share a
/// place by their mean; what is not finite is a cross.
fn sparkline(values: &[f64], width: usize) -> String {
    let places = values.len().min(width);
    let means = (0..places).map(|place| {
        let cut = |place: usize| place * values.len() / places;
        let here = &values[cut(place)..cut(place + 1)];
        here.iter().sum::<f64>() / here.len() as f64
    });
    let means: Vec<f64> = means.collect();
    let finite = || means.iter().copied().filter(|value| value.is_finite());
    let (least, most) =
        finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let level = |value: f64| match most > least {
        true => ((value - least) / (most - least) * 7.0).round() as usize,
        false => 3,
    };
    means
        .iter()
        .map(|&mean| if mean.is_finite() { LEVELS[level(mean).min(7)] } else { '×' })
        .collect()
}

/// `1:02:03` or `2:03`.
pub fn clock(time: Duration) -> String {
    let s = time.as_secs();
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{HeldOutLine, ValidationLine};

    #[test]
    fn sparklines_go_from_least_to_greatest() {
        assert_eq!(sparkline(&[0.0, 1.0, 7.0, f64::NAN], 10), "▁▂█×");
        assert_eq!(sparkline(&[0.0, 0.0, 1.0, 1.0], 2), "▁█");
        assert_eq!(sparkline(&[5.0; 30], 3), "▄▄▄");
        assert_eq!(sparkline(&[f64::INFINITY], 3), "×");
        assert_eq!(sparkline(&[-1e308, 1e308], 3).chars().count(), 2);
        assert_eq!(sparkline(&[], 3), "");
        assert_eq!(sparkline(&[1.0], 0), "");
    }

    #[test]
    fn numbers_stay_short() {
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
            assert_eq!(short(value), text);
            assert!(short(value).len() < NUMBER);
        }
    }

    #[test]
    fn every_line_fits() {
        let train = |step| Line::Train(TrainLine { step, loss: 1.0, ..TrainLine::default() });
        let mut lines: Vec<Line> = (0..500).map(train).collect();
        lines.push(Line::HeldOut(HeldOutLine {
            step: 500,
            loss: 1.0,
            explained: Some(0.25),
            target_var: 1.0,
            pred_var: 1.0,
        }));
        let figures = [("letter_error_rate".to_owned(), 0.25)].into();
        lines.push(Line::Validation(ValidationLine { step: 500, loss: 1.0, figures }));
        let view = View::new((500, 100_000), "seconds", &lines);
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
