//! A labelled text as it is stored, and the list of those that are skipped.

/// Number of reasons that are kept; further ones are only counted.
const MAX_REASONS: usize = 10_000;

/// A valid example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its line, or its name in a shard.
    pub location: String,
    /// One text, or the two texts of a pair.
    pub texts: Vec<String>,
    pub label: String,
}

/// Reasons for skipped lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Skipped {
    reasons: Vec<String>,
    more: usize,
}

impl Skipped {
    /// Adds a reason.
    pub fn add(&mut self, reason: impl Into<String>) {
        if self.reasons.len() < MAX_REASONS {
            self.reasons.push(reason.into());
        } else {
            self.more += 1;
        }
    }

    /// Returns one line per reason; if there are too many, the last line counts the rest.
    pub fn list(&self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("and {} more", self.more));
        self.reasons.iter().cloned().chain(more).collect()
    }
}
