//! Handles SIGINT (Ctrl-C) and SIGTERM: a run finishes its step, saves and exits. A second signal
//! exits at once.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use data2vec_train::Stop;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::warn;

/// Time after the first signal in which others do not count: GNU `timeout` and some schedulers signal
/// a process and its group, so that one request arrives twice.
const REPEATED: Duration = Duration::from_secs(1);

/// Starts a thread that waits for signals. Returns the stop request that the first one sets.
pub fn listen() -> Result<Stop> {
    let stop = Stop::default();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot install signal handlers")?;
    let requested = stop.clone();
    let wait = move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            match first {
                None => {
                    first = Some(Instant::now());
                    requested.request(signal as usize);
                    warn!(
                        "stopping: this step is finished and saved; a second signal stops at once, without saving"
                    );
                }
                Some(first) if first.elapsed() < REPEATED => {}
                // Without exit handlers, which the threads of LibTorch would meet in the middle of a step.
                Some(_) => signal_hook::low_level::exit(128 + signal),
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(stop)
}
