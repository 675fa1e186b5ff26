//! What the user sees while a run goes on: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::metrics::{Line, Pretraining, TrainLine};
use crate::report::{speaks, tell};

/// What is seen of a run.
pub struct View {
    bar: ProgressBar,
    unit: &'static str,
    steps: u64,
    terminal: bool,
}

impl View {
    /// Of a run of `steps`, whose data are counted in `unit`. Nothing is drawn yet.
    pub fn new(steps: u64, unit: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal() && speaks();
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden());
        let style = "{bar:24} {pos}/{len} {msg} {elapsed_precise} left {eta_precise}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self { bar, unit, steps, terminal }
    }

    /// Shows the run, which stands at `step`.
    pub fn show(&self, step: u64) {
        if self.terminal {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(step);
        self.bar.reset_eta();
    }

    /// One more step.
    pub fn step(&self, step: u64) {
        self.bar.set_position(step);
    }

    /// Means of the last steps, and the last evaluation.
    pub fn line(&self, line: &TrainLine, evaluation: Option<&Line>, left: Duration) {
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
        text += &format!(" lr {:.1e} {:.0} {}/s", line.lr, line.units_per_second, self.unit);
        if self.terminal {
            self.bar.set_message(text);
        } else {
            tell!("step {}/{}  {text}  {} left", line.step, self.steps, clock(left));
        }
    }

    /// A line of its own, above the bar.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| tell!("{text}"));
    }

    /// Leaves the terminal as it was.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `1:02:03` or `2:03`.
pub fn clock(time: Duration) -> String {
    let s = time.as_secs();
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}
