//! What can be wrong with a run.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// A loss is not a number.
    NotFinite,
    /// The loss is far above that of an untrained model, and not because the targets grew.
    Diverging,
    /// The teacher says the same everywhere.
    Targets,
    /// What the teacher says lies on one line.
    TargetRank,
    /// The student says the same everywhere, after it did not.
    Predictions,
    /// What a block of the student makes of its input lies on one line.
    Features,
    /// What looks at the raw signal first says the same everywhere.
    LocalEncoder,
    /// Features vary in few directions, of those that they varied in at first.
    FewDirections,
    /// Gradients are much longer than they were.
    Gradient,
    /// Half of the run is over, and predictions are no better than a constant.
    Unlearned,
    /// Predictions were better than a constant, and are not any more.
    Unlearning,
    /// Targets are predicted from next to nothing.
    TooEasy,
}

impl Sign {
    /// Whether it ruins the run; if not, it is a hint.
    pub fn is_grave(self) -> bool {
        match self {
            Self::NotFinite
            | Self::Diverging
            | Self::Targets
            | Self::TargetRank
            | Self::Predictions
            | Self::Features
            | Self::LocalEncoder => true,
            Self::FewDirections
            | Self::Gradient
            | Self::Unlearned
            | Self::Unlearning
            | Self::TooEasy => false,
        }
    }

    /// Whether training leaves the region where it learns, rather than collapses.
    pub fn is_divergence(self) -> bool {
        matches!(self, Self::NotFinite | Self::Diverging)
    }

    /// How many lines in a row have to show it: one bad batch is no trouble, a trend is.
    pub fn patience(self) -> u32 {
        match self {
            Self::NotFinite | Self::Unlearned | Self::TooEasy => 1,
            Self::Targets
            | Self::TargetRank
            | Self::Features
            | Self::LocalEncoder
            | Self::Unlearning => 2,
            Self::Diverging | Self::Predictions | Self::FewDirections | Self::Gradient => 3,
        }
    }

    /// What helps.
    pub fn advice(self) -> &'static str {
        match self {
            Self::NotFinite | Self::Diverging => {
                "lower schedule.lr, warm up longer, or set train.clip_norm"
            }
            Self::Targets | Self::TargetRank | Self::Predictions | Self::Features => {
                "normalise the targets (target.layer_norm, target.target_norm), move the teacher more slowly (ema.decay), lower schedule.lr, or hide more"
            }
            Self::LocalEncoder => {
                "lower schedule.lr or warm up longer; start again, since it does not come back"
            }
            Self::FewDirections => {
                "usual for a short run of a tiny model; else train longer, on more varied data, or hide more"
            }
            Self::Gradient => "set train.clip_norm, or lower schedule.lr",
            Self::Unlearned => "raise schedule.lr, or train longer; look at what the mask hides",
            Self::Unlearning => "lower schedule.lr, or let it fall earlier",
            Self::TooEasy => {
                "hide more or in longer spans; ema.scope = \"everything\" if positions alone are learned"
            }
        }
    }
}

impl Display for Sign {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFinite => "not a number",
            Self::Diverging => "diverging loss",
            Self::Targets => "collapsed targets",
            Self::TargetRank => "targets on one line",
            Self::Predictions => "collapsed predictions",
            Self::Features => "collapsed features",
            Self::LocalEncoder => "collapsed local encoder",
            Self::FewDirections => "features in few directions",
            Self::Gradient => "growing gradients",
            Self::Unlearned => "nothing learned yet",
            Self::Unlearning => "what was learned is lost",
            Self::TooEasy => "too easy a task",
        })
    }
}

/// What is wrong with a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Symptom {
    /// What kind of trouble it is.
    pub sign: Sign,
    /// One line, with figures.
    pub evidence: String,
    /// Step of the first line that showed it.
    pub since: u64,
}

impl Display for Symptom {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.sign, self.evidence)
    }
}
