//! Measures the parts of a step.

use std::collections::BTreeMap;
use std::time::Duration;

/// Time spent in each part of the steps since the last line.
#[derive(Default)]
pub struct Phases {
    spent: BTreeMap<String, Duration>,
    steps: u32,
}

impl Phases {
    /// Adds the timings of a step.
    pub fn add(&mut self, spent: Vec<(String, Duration)>) {
        self.steps += 1;
        for (name, took) in spent {
            *self.spent.entry(name).or_default() += took;
        }
    }

    /// Returns the seconds per step of each part, and of waiting for data. Resets the timings.
    pub fn take(&mut self, waited: Duration) -> BTreeMap<String, f64> {
        self.spent.insert("data".into(), waited);
        let Self { spent, steps } = std::mem::take(self);
        let mean = |took: Duration| took.as_secs_f64() / f64::from(steps);
        spent.into_iter().map(|(name, took)| (name, mean(took))).collect()
    }
}
