//! The checks of a run, and what to do about each.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

/// A check that a run can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The loss is NaN or infinite.
    NotFinite,
    /// The loss is far above that of an untrained model, and not because the targets grew.
    Diverging,
    /// The teacher's targets are nearly equal at all tokens.
    Targets,
    /// The teacher's targets vary along one direction only.
    TargetRank,
    /// The student's predictions are nearly equal at all tokens, after they varied.
    Predictions,
    /// The output of a student block varies along one direction only.
    Features,
    /// The output of the local encoder is nearly constant, or varies along one direction only.
    LocalEncoder,
    /// Features vary along few of the directions along which they varied at first.
    LowRank,
    /// The gradient norm is far above its usual value.
    Gradient,
    /// Half of the run is over, and predictions are no better than a constant.
    NothingLearned,
    /// Predictions were better than a constant, and no longer are.
    Forgetting,
    /// Predictions are too good to depend on content.
    TooEasy,
    /// Half of the run is over, and predictions know where a token is, but not what is there.
    PositionsOnly,
}

impl Check {
    /// Returns whether a failure ruins the run; otherwise it is a hint.
    pub fn is_severe(self) -> bool {
        match self {
            Self::NotFinite
            | Self::Diverging
            | Self::Targets
            | Self::TargetRank
            | Self::Predictions
            | Self::Features
            | Self::LocalEncoder => true,
            Self::LowRank
            | Self::Gradient
            | Self::NothingLearned
            | Self::Forgetting
            | Self::TooEasy
            | Self::PositionsOnly => false,
        }
    }

    /// Returns whether a failure is a divergence rather than a collapse.
    pub fn is_divergence(self) -> bool {
        matches!(self, Self::NotFinite | Self::Diverging)
    }

    /// Returns how many consecutive lines must fail: one bad batch is no trend.
    pub fn patience(self) -> u32 {
        match self {
            Self::NotFinite | Self::NothingLearned | Self::TooEasy | Self::PositionsOnly => 1,
            Self::Targets
            | Self::TargetRank
            | Self::Features
            | Self::LocalEncoder
            | Self::Forgetting => 2,
            Self::Diverging | Self::Predictions | Self::LowRank | Self::Gradient => 3,
        }
    }

    /// Returns what to change in the recipe.
    pub fn advice(self) -> &'static str {
        match self {
            Self::NotFinite | Self::Diverging => {
                "lower schedule.lr, warm up longer, or set train.clip_norm"
            }
            Self::Targets | Self::TargetRank | Self::Predictions | Self::Features => {
                "normalize the targets (target.layer_norm, target.target_norm), update the teacher more slowly (ema.decay), lower schedule.lr, or mask more"
            }
            Self::LocalEncoder => {
                "lower schedule.lr or warm up longer, and start again: the local encoder does not recover"
            }
            Self::LowRank => {
                "usual in short runs of tiny models; otherwise train longer, use more varied data, or mask more"
            }
            Self::Gradient => "set train.clip_norm, or lower schedule.lr",
            Self::NothingLearned => {
                "raise schedule.lr, or train longer; check the masks in report.html"
            }
            Self::Forgetting => "lower schedule.lr, or decay it earlier",
            Self::TooEasy => {
                "mask more or in longer spans; set ema.scope = \"everything\" if only positions are learned"
            }
            Self::PositionsOnly => {
                "break the tie between position and content (crops, longer and more varied examples), mask less, set ema.scope = \"everything\", or train longer"
            }
        }
    }
}

impl Display for Check {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFinite => "non-finite loss",
            Self::Diverging => "diverging loss",
            Self::Targets => "collapsed targets",
            Self::TargetRank => "rank-one targets",
            Self::Predictions => "collapsed predictions",
            Self::Features => "collapsed features",
            Self::LocalEncoder => "collapsed local encoder",
            Self::LowRank => "low-rank features",
            Self::Gradient => "exploding gradients",
            Self::NothingLearned => "nothing learned yet",
            Self::Forgetting => "forgetting",
            Self::TooEasy => "task too easy",
            Self::PositionsOnly => "learns positions only",
        })
    }
}

/// A failed check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Issue {
    /// The check.
    pub check: Check,
    /// One line with the metrics that failed it.
    pub evidence: String,
    /// Step of the first line that failed it.
    pub since: u64,
}

impl Display for Issue {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.evidence)
    }
}
