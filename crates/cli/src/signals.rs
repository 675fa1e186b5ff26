//! Ctrl-C and SIGTERM: finish the step, save, and go; a second one ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Whether the user wants the program to stop.
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// Starts listening.
    pub fn listen() -> Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the flag set by the first.
            let code = 128 + signal;
            signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&again))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&again)))
                .and_then(|_| {
                    signal_hook::flag::register_usize(signal, Arc::clone(&caught), signal as usize)
                })
                .context("cannot listen to signals")?;
        }
        Ok(Self(caught))
    }

    /// The exit code that tells which signal has come; `None`: none.
    pub fn exit_code(&self) -> Option<u8> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(128 + signal as u8),
        }
    }
}
