//! Distributed training with LibTorch's process groups (c10d).
//!
//! Each process is a rank. All ranks must call the same collectives in the same order, with tensors
//! of the same sizes and kinds: Gloo aborts the process if they differ.

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

/// Error of a launch or a collective.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launcher's environment variables are incomplete or invalid.
    #[error("{0}")]
    Launch(String),
    /// A collective failed: another rank exited or timed out, or LibTorch returned an error.
    #[error("rank {rank}: {collective}: {reason}")]
    Collective {
        /// Rank of this process.
        rank: usize,
        /// Name of the collective, or `init_process_group`.
        collective: &'static str,
        /// LibTorch's message.
        reason: String,
    },
    /// Local work of this process failed.
    #[error(transparent)]
    Torch(#[from] TchError),
}

impl Error {
    fn new(rank: usize, collective: &'static str, reason: String) -> Self {
        Self::Collective { rank, collective, reason }
    }
}

/// Returns the first line of LibTorch's message, without its C++ backtrace.
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
