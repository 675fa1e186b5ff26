//! Whether a run learns, or why not: signs of collapse and divergence in the lines of `metrics.jsonl`, while it
//! trains ([`Watch`]) and afterwards (`data2vec doctor`).

mod command;
mod diagnosis;
mod figures;
mod reference;
mod sign;
mod watch;
#[cfg(test)]
mod watch_tests;

pub use command::{Args, run};
pub use diagnosis::{Diagnosis, Finding, Verdict};
pub use figures::examine;
pub use sign::{Sign, Symptom};
pub use watch::Watch;
