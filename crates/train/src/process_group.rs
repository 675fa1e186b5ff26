//! Ranks of a process group: how they meet, and how all end when one fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};
use data2vec_core::random::hash;
use data2vec_core::{Dataset, Units, World};
use data2vec_torch_ext::dist::{self, Backend, Launch, ProcessGroup};
use tch::Device;
use tracing::info;

use crate::device;
use crate::messages::{describe, describe_panic};
use crate::recipe::TrainConfig;

/// Default of the seconds after which a rank that does not answer counts as lost.
pub const TIMEOUT: u64 = 300;

/// How long a rank that lost contact asks the others what happened.
const GRACE: Duration = Duration::from_secs(5);

/// Time between two questions.
const POLL: Duration = Duration::from_millis(20);

/// Joins the process group that a launcher (torchrun, Slurm, Kubeflow) has started, if any, and
/// chooses the device of this rank.
///
/// # Errors
/// If the other ranks do not come within `timeout` seconds, or the device is unusable.
pub fn init_process_group(device: Option<&str>, timeout: u64) -> Result<(World, Device)> {
    if timeout == 0 {
        bail!("--dist-timeout: must be at least 1 second");
    }
    let Some(launch) = Launch::from_env()? else {
        return Ok((World::default(), device::choose(device)?));
    };
    let device = device::choose_for_rank(device, launch.local_rank)?;
    let backend = match device {
        Device::Cuda(_) => Backend::Nccl,
        _ => Backend::Gloo,
    };
    let group = ProcessGroup::new(launch, backend, Duration::from_secs(timeout))?;
    Ok((World::from(group), device))
}

/// Checks that all ranks see the same examples.
///
/// # Errors
/// If they do not, or a rank is gone.
pub fn assert_same_data(world: &World, dataset: &impl Dataset) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let mut seen = 0;
    for index in 0..dataset.len() {
        let example = (seen, dataset.size(index), file_name(&dataset.name(index)).to_owned());
        seen = hash(format!("{example:?}").as_bytes());
    }
    Ok(world.assert_same("the data", &format!("{} {seen:x}", dataset.len()))?)
}

/// Returns the file name: directories may be mounted elsewhere on another machine.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Logs how a step's batches are split over the ranks.
pub fn log_batch_split(world: &World, train: &TrainConfig, units: Units) {
    let (size, accumulate) = (world.size(), train.accumulate);
    if size > 1 {
        info!(
            "world size: {size}; a step is {:.0} {}: {accumulate} batches of up to {:.0}, {} on each rank",
            train.batch * accumulate as f64,
            units.name,
            train.batch,
            accumulate / size
        );
    }
}

/// Runs `work` on a rank. If it fails, reports the reason to the other ranks, or asks them what
/// happened.
///
/// # Errors
/// The error of `work`, with the reason of the rank that failed first.
pub fn run_with_abort<T>(world: &World, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(group) = world.group().filter(|group| group.size() > 1) else { return work() };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(result)) => {
            // Rank 0 hosts the store: other ranks may still be reading.
            group.barrier()?;
            Ok(result)
        }
        // The lost connection is only a consequence.
        Ok(Err(error)) if is_communication(&error) => {
            Err(ask_other_ranks(group).map_or(error, Error::msg))
        }
        Ok(Err(error)) => {
            report_to_other_ranks(group, &describe(&error));
            Err(error)
        }
        Err(panic) => {
            report_to_other_ranks(group, &describe_panic(panic.as_ref()));
            resume_unwind(panic)
        }
    }
}

/// Whether communication with other ranks failed, rather than this rank's own work.
fn is_communication(error: &Error) -> bool {
    let is = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<dist::Error>()
            || matches!(cause.downcast_ref(), Some(data2vec_core::Error::Dist(_)))
    };
    error.chain().any(is)
}

fn end_of(rank: usize) -> String {
    format!("end/{rank}")
}

fn read_by(rank: usize) -> String {
    format!("read/{rank}")
}

/// Leaves the group with a reason; on rank 0 waits until the others have read it.
fn report_to_other_ranks(group: &ProcessGroup, reason: &str) {
    // Whatever fails here, this rank reports the reason to the user itself.
    let _ = group.leave();
    let _ = group.store().set(&end_of(group.rank()), reason);
    stay_for_readers(group, &(1..group.size()).collect::<Vec<_>>());
}

/// Returns what happened to other ranks, as far as it can be found out.
fn ask_other_ranks(group: &ProcessGroup) -> Option<String> {
    let (rank, store, until) = (group.rank(), group.store(), Instant::now() + GRACE);
    // Ranks that still wait for this one fail at once, and report.
    let _ = group.leave();
    if store.set(&end_of(rank), "").is_err() {
        return Some("rank 0, which hosts the store, is gone".into());
    }
    let mut silent: Vec<usize> = (0..group.size()).filter(|&other| other != rank).collect();
    let (mut failed, mut ended) = (Vec::new(), Vec::new());
    while !silent.is_empty() && failed.is_empty() && Instant::now() < until {
        silent.retain(|&other| match store.has(&end_of(other)) {
            Ok(true) => {
                ended.push(other);
                let reason = store.get(&end_of(other), POLL).unwrap_or_default();
                if !reason.is_empty() {
                    failed.push(format!("rank {other} failed: {reason}"));
                }
                false
            }
            _ => true,
        });
        std::thread::sleep(POLL);
    }
    if rank != 0 && store.set(&read_by(rank), "").is_err() {
        return Some("rank 0, which hosts the store, is gone".into());
    }
    stay_for_readers(group, &ended);
    let silent: Vec<String> = silent.iter().map(usize::to_string).collect();
    match (failed.is_empty(), silent.is_empty()) {
        (false, _) => Some(failed.join("; ")),
        (true, false) => Some(format!("rank {} is gone or does not answer", silent.join(", "))),
        (true, true) => None,
    }
}

/// Keeps rank 0 alive until the readers are done: the store ends with it, unless the launcher hosts
/// it.
fn stay_for_readers(group: &ProcessGroup, readers: &[usize]) {
    if group.rank() != 0 || group.launch().agent_store {
        return;
    }
    let until = Instant::now() + GRACE;
    for &reader in readers {
        // A dead rank reads nothing; the timeout ends the wait.
        let _ = group
            .store()
            .get(&read_by(reader), until.saturating_duration_since(Instant::now()).max(POLL));
    }
}
