//! Where a step's time goes.

use std::collections::BTreeMap;
use std::time::Duration;

/// What the parts of steps have taken since the last line.
#[derive(Default)]
pub struct Phases {
    spent: BTreeMap<String, Duration>,
    steps: u32,
}

impl Phases {
    /// Adds a step.
    pub fn add(&mut self, spent: Vec<(String, Duration)>) {
        self.steps += 1;
        for (name, took) in spent {
            *self.spent.entry(name).or_default() += took;
        }
    }

    /// Seconds a step, with what it `waited` for data; starts anew.
    pub fn take(&mut self, waited: Duration) -> BTreeMap<String, f64> {
        self.spent.insert("data".into(), waited);
        let Self { spent, steps } = std::mem::take(self);
        let mean = |took: Duration| took.as_secs_f64() / f64::from(steps);
        spent.into_iter().map(|(name, took)| (name, mean(took))).collect()
    }
}
