//! The doctor: checks the metrics of a run for collapse and divergence, while it trains ([`Watch`])
//! and afterwards ([`Diagnosis`]).

mod check;
mod diagnosis;
mod measure;
mod reference;
mod summary;
mod watch;
#[cfg(test)]
mod watch_tests;

pub use check::{Check, Issue};
pub use diagnosis::{CheckResult, Diagnosis, Verdict};
pub use measure::measure;
pub use reference::Comparison;
pub use summary::summary;
pub use watch::Watch;
