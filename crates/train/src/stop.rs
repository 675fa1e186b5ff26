//! Asks a run to stop after its current step and to save.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A request to stop, shared by the run and whoever may ask for it, such as a signal handler. The
/// default never stops.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// Asks the run to stop, as signal number `signal` (2: interrupt, 15: terminate) would.
    pub fn request(&self, signal: usize) {
        self.0.store(signal, Ordering::Relaxed);
    }

    /// Returns the exit code of the requested signal, 128 + its number; `None` if nothing was
    /// requested.
    pub fn exit_code(&self) -> Option<u8> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(128 + signal as u8),
        }
    }
}
