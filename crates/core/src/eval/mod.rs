//! Metrics, probes of frozen features, and measures of a run's health.

pub mod explained;
pub mod health;
pub mod probe;
pub mod score;
