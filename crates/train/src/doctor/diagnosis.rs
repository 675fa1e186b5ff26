//! What a run's lines say of it as a whole.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::{Symptom, Watch};
use crate::metrics::{Action, ActionLine, Line};

/// Lines of training before anything is said of a run in which nothing is wrong.
const FEWEST: usize = 5;

/// How a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Healthy,
    /// There are hints, or there was grave trouble.
    Suspicious,
    Collapsed,
    Diverged,
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

/// A sign of trouble, and when it was there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Step of the line that made it certain.
    pub step: u64,
    /// Step by which it had gone away.
    pub until: Option<u64>,
    pub is_grave: bool,
    #[serde(flatten)]
    pub symptom: Symptom,
    pub advice: &'static str,
}

/// All that is found in a run's lines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    pub verdict: Verdict,
    /// Last step that a line tells of.
    pub step: u64,
    /// Oldest first.
    pub findings: Vec<Finding>,
    /// What was done about it.
    pub actions: Vec<ActionLine>,
}

impl Diagnosis {
    /// Of a run of so many steps that has told `lines`.
    pub fn of(lines: &[Line], steps: u64) -> Self {
        let mut watch = Watch::new(steps);
        let mut findings: Vec<Finding> = Vec::new();
        for line in lines {
            let step = line.step();
            findings.extend(watch.see(line).into_iter().map(|symptom| Finding {
                step,
                until: None,
                is_grave: symptom.sign.is_grave(),
                advice: symptom.sign.advice(),
                symptom,
            }));
            let present = watch.present();
            for finding in findings.iter_mut().filter(|finding| finding.until.is_none()) {
                match present.iter().find(|symptom| symptom.sign == finding.symptom.sign) {
                    Some(symptom) => finding.symptom.evidence.clone_from(&symptom.evidence),
                    None => finding.until = Some(step),
                }
            }
        }
        let action = |line: &Line| match line {
            Line::Action(action) => Some(action.clone()),
            _ => None,
        };
        let actions: Vec<ActionLine> = lines.iter().filter_map(action).collect();
        let graves = || findings.iter().filter(|f| f.is_grave && f.until.is_none());
        // A hint that has gone away was none.
        let doubts = findings.iter().any(|f| f.is_grave || f.until.is_none());
        let trained = lines.iter().filter(|line| matches!(line, Line::Train(_))).count();
        let pretrains =
            lines.iter().any(|line| matches!(line, Line::Train(t) if t.pretraining.is_some()));
        let verdict = if graves().any(|f| f.symptom.sign.is_divergence()) {
            Verdict::Diverged
        } else if graves().next().is_some() {
            Verdict::Collapsed
        } else if doubts || actions.iter().any(|line| line.action != Action::Warn) {
            Verdict::Suspicious
        } else if trained < FEWEST || (pretrains && !watch.has_begun()) {
            Verdict::TooEarly
        } else {
            Verdict::Healthy
        };
        let step = lines.iter().map(Line::step).max().unwrap_or(0);
        Self { verdict, step, findings, actions }
    }

    /// Whether the run is lost.
    pub fn is_grave(&self) -> bool {
        matches!(self.verdict, Verdict::Collapsed | Verdict::Diverged)
    }
}
