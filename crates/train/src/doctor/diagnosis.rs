//! The verdict on a run, from all of its lines.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::{Issue, Watch};
use crate::metrics::{Action, ActionLine, Line};

/// Training lines that a run needs to count as healthy.
const MIN_TRAIN_LINES: usize = 5;

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No check fails.
    Healthy,
    /// A hint is active, or a severe issue was resolved.
    Suspicious,
    /// A severe issue is active: features, targets or predictions have collapsed.
    Collapsed,
    /// A severe issue is active: the loss has diverged.
    Diverged,
    /// No check fails, but there are too few lines.
    TooEarly,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Suspicious => "suspicious",
            Self::Collapsed => "collapsed",
            Self::Diverged => "diverged",
            Self::TooEarly => "too early to tell",
        })
    }
}

/// A failed check of a run, active or resolved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckResult {
    /// Step at which the check had failed for [`Check::patience`](super::Check::patience) lines.
    pub step: u64,
    /// Step at which the check passed again; `None` if it still fails.
    pub until: Option<u64>,
    /// Whether the issue ruins the run; otherwise it is a hint.
    pub is_severe: bool,
    /// The issue, with its newest evidence.
    #[serde(flatten)]
    pub issue: Issue,
    /// What to change in the recipe.
    pub advice: &'static str,
}

/// The verdict on a run and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The state of the run.
    pub verdict: Verdict,
    /// Last step with a line.
    pub step: u64,
    /// Failed checks, oldest first.
    pub results: Vec<CheckResult>,
    /// Recovery actions, oldest first.
    pub actions: Vec<ActionLine>,
}

impl Diagnosis {
    /// Diagnoses a run of `steps` steps from its `lines`, oldest first.
    pub fn new(lines: &[Line], steps: u64) -> Self {
        let mut watch = Watch::new(steps);
        let mut results: Vec<CheckResult> = Vec::new();
        for line in lines {
            let step = line.step();
            results.extend(watch.update(line).into_iter().map(|issue| CheckResult {
                step,
                until: None,
                is_severe: issue.check.is_severe(),
                advice: issue.check.advice(),
                issue,
            }));
            let active = watch.active();
            for result in results.iter_mut().filter(|result| result.until.is_none()) {
                match active.iter().find(|issue| issue.check == result.issue.check) {
                    Some(issue) => result.issue.evidence.clone_from(&issue.evidence),
                    None => result.until = Some(step),
                }
            }
        }
        let action = |line: &Line| match line {
            Line::Action(action) => Some(action.clone()),
            _ => None,
        };
        let actions: Vec<ActionLine> = lines.iter().filter_map(action).collect();
        let severe = || results.iter().filter(|result| result.is_severe && result.until.is_none());
        // A resolved hint does not count.
        let is_suspicious = results.iter().any(|result| result.is_severe || result.until.is_none());
        let train_lines = lines.iter().filter(|line| matches!(line, Line::Train(_))).count();
        let is_pretraining =
            lines.iter().any(|line| matches!(line, Line::Train(t) if t.pretraining.is_some()));
        let verdict = if severe().any(|result| result.issue.check.is_divergence()) {
            Verdict::Diverged
        } else if severe().next().is_some() {
            Verdict::Collapsed
        } else if is_suspicious || actions.iter().any(|line| line.action != Action::Warn) {
            Verdict::Suspicious
        } else if train_lines < MIN_TRAIN_LINES || (is_pretraining && !watch.has_begun()) {
            Verdict::TooEarly
        } else {
            Verdict::Healthy
        };
        let step = lines.iter().map(Line::step).max().unwrap_or(0);
        Self { verdict, step, results, actions }
    }

    /// Returns whether the run has collapsed or diverged.
    pub fn is_severe(&self) -> bool {
        matches!(self.verdict, Verdict::Collapsed | Verdict::Diverged)
    }
}
