//! Handles SIGINT (Ctrl-C) and SIGTERM: a run finishes its step, saves and exits. A second signal
//! exits at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use data2vec_train::Stop;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Installs the handlers. Returns the stop request that the first signal sets.
pub fn listen() -> Result<Stop> {
    let stop = Stop::default();
    let is_second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the shutdown is registered first, so that only the second signal finds
        // the flag set.
        let code = 128 + signal;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&is_second))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&is_second)))
            .and_then(|_| signal_hook::flag::register_usize(signal, stop.signal(), signal as usize))
            .context("cannot install signal handlers")?;
    }
    Ok(stop)
}
