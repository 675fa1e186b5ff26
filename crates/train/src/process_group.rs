//! Several processes that train one model: how they meet, what each may write, and how all end when one fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};
use data2vec_core::random::hash;
use data2vec_core::{Dataset, Ranks};
use data2vec_torch_ext::dist::{self, Backend, Launch, ProcessGroup};
use tch::Device;

use crate::device;
use crate::recipe::TrainConfig;
use crate::report::{describe, message, speak_for, tell};
use crate::run::RunFolder;
use crate::training::feed::Units;

/// Seconds after which a process that does not answer is given up, unless the user says otherwise.
pub const TIMEOUT: u64 = 300;

/// How long a process that was left alone asks the others what has happened.
const GRACE: Duration = Duration::from_secs(5);

/// Between two questions.
const SHORT: Duration = Duration::from_millis(20);

/// Meets the other processes that a launcher has started, if it has, and chooses where this one computes.
pub fn meet(device: Option<&str>, timeout: u64) -> Result<(Ranks, Device)> {
    if timeout == 0 {
        bail!("--dist-timeout: must be at least 1 second");
    }
    let Some(launch) = Launch::from_env()? else {
        return Ok((Ranks::default(), device::choose(device)?));
    };
    if launch.size > 1 {
        speak_for(launch.rank, launch.size);
    }
    let device = device::choose_for(device, launch.local_rank)?;
    let backend = match device {
        Device::Cuda(_) => Backend::Nccl,
        _ => Backend::Gloo,
    };
    let group = ProcessGroup::new(launch, backend, Duration::from_secs(timeout))?;
    Ok((Ranks::from(group), device))
}

/// The run's folder, which rank 0 alone locks, checks and writes to.
pub fn folder(
    ranks: &Ranks,
    path: &Path,
    check: impl FnOnce(&RunFolder) -> Result<()>,
) -> Result<RunFolder> {
    let first = ranks.first_alone(|| {
        let folder = RunFolder::open(path)?;
        check(&folder)?;
        Ok::<_, Error>(folder)
    })?;
    Ok(first.unwrap_or_else(|| RunFolder::look_at(path)))
}

/// Whether all ranks see the same examples.
pub fn same_data(ranks: &Ranks, dataset: &impl Dataset) -> Result<()> {
    if ranks.count() == 1 {
        return Ok(());
    }
    let mut seen = 0;
    for index in 0..dataset.len() {
        let example = (seen, dataset.size(index), file_name(&dataset.name(index)).to_owned());
        seen = hash(format!("{example:?}").as_bytes());
    }
    Ok(ranks.agree("the data", &format!("{} {seen:x}", dataset.len()))?)
}

/// Folders may be mounted elsewhere on another machine.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Tells how a step's batches are divided.
pub fn tell_division(ranks: &Ranks, train: &TrainConfig, units: Units) {
    let (count, accumulate) = (ranks.count(), train.accumulate);
    if count > 1 {
        tell!(
            "processes: {count}; a step is {:.0} {}: {accumulate} batches of up to {:.0}, {} on each process",
            train.batch * accumulate as f64,
            units.name,
            train.batch,
            accumulate / count
        );
    }
}

/// Does `work` as one of several processes. Where it fails, the others are told why, or asked what has
/// happened to them.
pub fn settle<T>(ranks: &Ranks, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(group) = ranks.group().filter(|group| group.size() > 1) else { return work() };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => {
            // Rank 0 keeps the store: the others may still be reading.
            group.barrier()?;
            Ok(done)
        }
        Ok(Err(error)) if is_of_others(&error) => Err(match ask_the_others(group) {
            Some(told) => error.context(told),
            None => error,
        }),
        Ok(Err(error)) => {
            tell_the_others(group, &describe(&error));
            Err(error)
        }
        Err(panic) => {
            tell_the_others(group, &message(panic.as_ref()));
            resume_unwind(panic)
        }
    }
}

/// Whether an exchange with the others has failed, rather than something of one's own.
fn is_of_others(error: &Error) -> bool {
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

/// Leaves with a reason, and waits for those who ask if the store is kept here.
fn tell_the_others(group: &ProcessGroup, reason: &str) {
    // Whatever fails here, the reason is told to the user by this process.
    let _ = group.leave();
    let _ = group.store().set(&end_of(group.rank()), reason);
    stay_for_readers(group, &(1..group.size()).collect::<Vec<_>>());
}

/// What has happened, as far as it can be found out.
fn ask_the_others(group: &ProcessGroup) -> Option<String> {
    let (rank, store, until) = (group.rank(), group.store(), Instant::now() + GRACE);
    // Those who still wait for this one fail at once, and report.
    let _ = group.leave();
    if store.set(&end_of(rank), "").is_err() {
        return Some("rank 0, which keeps the store, is gone".into());
    }
    let mut silent: Vec<usize> = (0..group.size()).filter(|&other| other != rank).collect();
    let (mut failed, mut ended) = (Vec::new(), Vec::new());
    while !silent.is_empty() && failed.is_empty() && Instant::now() < until {
        silent.retain(|&other| match store.has(&end_of(other)) {
            Ok(true) => {
                ended.push(other);
                let reason = store.get(&end_of(other), SHORT).unwrap_or_default();
                if !reason.is_empty() {
                    failed.push(format!("rank {other} failed: {reason}"));
                }
                false
            }
            _ => true,
        });
        std::thread::sleep(SHORT);
    }
    if rank != 0 && store.set(&read_by(rank), "").is_err() {
        return Some("rank 0, which keeps the store, is gone".into());
    }
    stay_for_readers(group, &ended);
    let silent: Vec<String> = silent.iter().map(usize::to_string).collect();
    match (failed.is_empty(), silent.is_empty()) {
        (false, _) => Some(failed.join("; ")),
        (true, false) => Some(format!("rank {} is gone or does not answer", silent.join(", "))),
        (true, true) => None,
    }
}

/// Rank 0 ends last: with it goes the store, unless the launcher keeps it.
fn stay_for_readers(group: &ProcessGroup, readers: &[usize]) {
    if group.rank() != 0 || group.launch().served {
        return;
    }
    let until = Instant::now() + GRACE;
    for &reader in readers {
        // Who has died reads nothing.
        let _ = group
            .store()
            .get(&read_by(reader), until.saturating_duration_since(Instant::now()).max(SHORT));
    }
}
