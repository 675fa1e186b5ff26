//! Several processes that compute one thing: LibTorch's process groups.
//!
//! Each process is a rank. All ranks call the same collectives in the same order, with tensors of the same
//! sizes and kinds: where these differ, Gloo ends the process.

mod ddp;
mod group;
mod launch;
mod store;

use std::time::Duration;

use tch::TchError;

pub use ddp::Ddp;
pub use group::{Backend, ProcessGroup, Reduce};
pub use launch::Launch;
pub use store::Store;

/// What went wrong between processes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launcher's variables make no sense.
    #[error("{0}")]
    Launch(String),
    /// A collective failed: another rank is gone, does not answer in time, or LibTorch refuses.
    #[error("rank {rank}: {collective}: {reason}")]
    Collective {
        /// Of this process.
        rank: usize,
        /// What it was about.
        collective: &'static str,
        /// What LibTorch says.
        reason: String,
    },
    /// Work of this process's own failed.
    #[error(transparent)]
    Torch(#[from] TchError),
}

impl Error {
    fn new(rank: usize, collective: &'static str, reason: String) -> Self {
        Self::Collective { rank, collective, reason }
    }
}

/// LibTorch's words without its C++ stack, in one line.
fn reason(error: &TchError) -> String {
    let text = match error {
        TchError::Torch(text) => text.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).max(1)
}
