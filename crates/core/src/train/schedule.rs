//! Learning rate schedules.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The learning rate as a function of completed optimizer steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Linear warm-up, plateau, exponential decay.
    TriStage {
        /// Peak learning rate.
        lr: f64,
        /// Ratio of the first learning rate to the peak.
        init_scale: f64,
        /// Ratio of the last learning rate to the peak.
        final_scale: f64,
        /// Fractions of all steps for warm-up, plateau and decay; they sum to 1.
        phases: [f64; 3],
    },
    /// Linear warm-up from `min_lr`, then cosine decay to it.
    Cosine {
        /// Peak learning rate.
        lr: f64,
        /// First and last learning rate.
        min_lr: f64,
        /// Number of warm-up steps.
        warmup_steps: u64,
    },
    /// Linear warm-up from 0, then polynomial decay.
    Polynomial {
        /// Peak learning rate.
        lr: f64,
        /// Last learning rate.
        end_lr: f64,
        /// Exponent of the decay; 1 is linear.
        power: f64,
        /// Number of warm-up steps.
        warmup_steps: u64,
    },
}

/// The schedule of 2.0 Base for speech.
impl Default for Schedule {
    fn default() -> Self {
        Self::Cosine { lr: 7.5e-4, min_lr: 0.0, warmup_steps: 8000 }
    }
}

impl Schedule {
    /// Checks the settings for a run of `steps` steps.
    ///
    /// # Errors
    /// Returns [`Error::Config`] naming the key.
    pub fn validate(&self, steps: u64) -> Result<()> {
        let (Self::TriStage { lr, .. } | Self::Cosine { lr, .. } | Self::Polynomial { lr, .. }) =
            *self;
        if !(lr > 0.0 && lr.is_finite()) {
            return Err(Error::config("schedule.lr", format!("must be above 0, not {lr}")));
        }
        let last = match *self {
            Self::Cosine { min_lr, .. } => Some(("schedule.min_lr", min_lr)),
            Self::Polynomial { end_lr, .. } => Some(("schedule.end_lr", end_lr)),
            Self::TriStage { .. } => None,
        };
        if let Some((key, rate)) = last.filter(|(_, rate)| !(0.0..=lr).contains(rate)) {
            return Err(Error::config(key, format!("{rate} is outside 0..=lr = {lr}")));
        }
        match *self {
            Self::TriStage { phases, init_scale, final_scale, .. } => {
                let sum: f64 = phases.iter().sum();
                if (sum - 1.0).abs() > 1e-6 || phases.iter().any(|p| *p < 0.0) {
                    let reason = format!("must be three fractions that sum to 1, not {phases:?}");
                    return Err(Error::config("schedule.phases", reason));
                }
                if !(init_scale > 0.0 && final_scale > 0.0) {
                    let reason = "init_scale and final_scale must be above 0".to_owned();
                    return Err(Error::config("schedule.final_scale", reason));
                }
                Ok(())
            }
            Self::Cosine { warmup_steps, .. } | Self::Polynomial { warmup_steps, .. } => {
                if warmup_steps >= steps {
                    let reason = format!(
                        "must be below train.steps = {steps}, not {warmup_steps}; a shorter run needs a \
                         shorter warm-up, as in --set schedule.warmup_steps={}",
                        steps / 10
                    );
                    return Err(Error::config("schedule.warmup_steps", reason));
                }
                Ok(())
            }
        }
    }

    /// Returns the learning rate of the step after `step` completed ones, of `steps` in total.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        let n = step as f64;
        match *self {
            Self::TriStage { lr, init_scale, final_scale, phases } => {
                let [warmup, hold, decay] =
                    phases.map(|fraction| (steps as f64 * fraction).trunc());
                if n < warmup {
                    lr * init_scale + (lr - lr * init_scale) / warmup * n
                } else if n < warmup + hold {
                    lr
                } else if n <= warmup + hold + decay && decay > 0.0 {
                    lr * (final_scale.ln() / decay * (n - warmup - hold)).exp()
                } else {
                    lr * final_scale
                }
            }
            Self::Cosine { lr, min_lr, warmup_steps } => {
                let warmup = warmup_steps as f64;
                if n < warmup {
                    return min_lr + n * (lr - min_lr) / warmup;
                }
                let progress = ((n - warmup) / (steps as f64 - warmup)).min(1.0);
                min_lr + 0.5 * (lr - min_lr) * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            Self::Polynomial { lr, end_lr, power, warmup_steps } => {
                let warmup = warmup_steps as f64;
                if n <= warmup && warmup > 0.0 {
                    return lr * n / warmup;
                }
                let remaining = 1.0 - ((n - warmup) / (steps as f64 - warmup)).min(1.0);
                (lr - end_lr) * remaining.powf(power) + end_lr
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(schedule: &Schedule, steps: u64, expected: &[(u64, f64)]) {
        for &(step, lr) in expected {
            let got = schedule.at(step, steps);
            assert!(
                (got - lr).abs() <= 1e-9 * lr.max(1e-9),
                "step {step}: expected {lr}, got {got}"
            );
        }
    }

    // Values of the released configurations, computed with the formulas of fairseq 3d262bb.
    #[test]
    fn tri_stage_matches_data2vec_1() {
        let schedule = Schedule::TriStage {
            lr: 5e-4,
            init_scale: 0.01,
            final_scale: 0.01,
            phases: [0.03, 0.9, 0.07],
        };
        assert!(schedule.validate(400_000).is_ok());
        close(
            &schedule,
            400_000,
            &[
                (0, 5e-6),
                (1, 5.04125e-6),
                (6_000, 2.525e-4),
                (12_000, 5e-4),
                (372_000, 5e-4),
                (386_000, 5e-5),
                (400_000, 5e-6),
                (500_000, 5e-6),
            ],
        );
    }

    #[test]
    fn cosine_matches_data2vec_2() {
        let schedule = Schedule::Cosine { lr: 7.5e-4, min_lr: 0.0, warmup_steps: 8_000 };
        close(
            &schedule,
            400_000,
            &[(0, 0.0), (1, 9.375e-8), (4_000, 3.75e-4), (8_000, 7.5e-4), (204_000, 3.75e-4)],
        );
        assert!(schedule.at(400_000, 400_000) < 1e-18);
    }

    #[test]
    fn polynomial_with_power_1_is_linear() {
        let schedule = Schedule::Polynomial { lr: 2e-5, end_lr: 0.0, power: 1.0, warmup_steps: 10 };
        close(&schedule, 110, &[(0, 0.0), (5, 1e-5), (10, 2e-5), (60, 1e-5)]);
    }

    #[test]
    fn rejects_invalid_settings() {
        let cosine = Schedule::Cosine { lr: 1e-3, min_lr: 0.0, warmup_steps: 100 };
        assert!(cosine.validate(100).unwrap_err().to_string().contains("schedule.warmup_steps"));
        let stages = Schedule::TriStage {
            lr: 1e-3,
            init_scale: 0.01,
            final_scale: 0.01,
            phases: [0.5, 0.5, 0.5],
        };
        assert!(stages.validate(100).unwrap_err().to_string().contains("schedule.phases"));
    }
}
