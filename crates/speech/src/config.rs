//! Which recordings are trained on, and how they are put together.

use data2vec_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::audio::{MAX_SECONDS, SAMPLE_RATE};

/// Which recordings are used, and how they become batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeechDataConfig {
    /// Shorter recordings are left out.
    pub min_seconds: f64,
    /// Of longer ones, a piece of this length is used, another one each time.
    pub max_seconds: f64,
    /// How recordings of different lengths share a batch.
    pub batching: Batching,
}

/// How recordings of different lengths share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// All are cut to the shortest of the batch, each at a random place: no padding.
    Crop,
    /// All are filled with zeros, at the end, to the longest of the batch.
    Pad,
}

impl SpeechDataConfig {
    /// All recordings that can be read at all, whole.
    pub fn everything() -> Self {
        let min_seconds = 1.0 / f64::from(SAMPLE_RATE);
        Self { min_seconds, max_seconds: MAX_SECONDS as f64, batching: Batching::Pad }
    }

    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn validate(&self) -> Result<()> {
        if !(self.min_seconds.is_finite() && self.min_samples() > 0) {
            return Err(Error::config("data.min_seconds", "must be a length above 0, in seconds"));
        }
        if !(self.max_seconds.is_finite() && self.max_seconds >= self.min_seconds) {
            let reason = format!("must be at least min_seconds = {}", self.min_seconds);
            return Err(Error::config("data.max_seconds", reason));
        }
        Ok(())
    }

    pub(crate) fn min_samples(&self) -> u64 {
        (self.min_seconds * f64::from(SAMPLE_RATE)).round() as u64
    }

    pub(crate) fn max_samples(&self) -> u64 {
        (self.max_seconds * f64::from(SAMPLE_RATE)).round() as u64
    }
}

/// How much of a corpus is kept for validation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeldOut {
    /// About this share of the recordings, in `[0, 1)`. Whether one is held out depends on its own
    /// path alone, so a corpus can grow without moving any from one side to the other.
    Share(f64),
    /// Exactly so many.
    Count(usize),
}
