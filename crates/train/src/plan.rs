//! Measures whether the largest batch fits in memory, before training starts.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use data2vec_core::data::loader::Plan;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::train::chunks::{forward_in_chunks, tokens_per_chunk};
use data2vec_core::{Dataset, Modality, Objective, TrainState};
use data2vec_torch_ext::{memory, release_freed_memory, reset_peak_memory};
use tch::Device;

use crate::recipe::Recipe;

/// Cost of a forward and backward pass over a random batch.
pub struct Trial {
    /// Number of examples.
    rows: i64,
    /// Size of each, in the modality's unit.
    size: f64,
    /// Time of both passes.
    took: Duration,
    /// Peak memory in bytes; `None` if the system does not report it.
    peak: Option<u64>,
}

/// Runs forward and backward passes over a random batch as large as the heaviest one of the data.
/// Changes neither weights nor later random numbers.
///
/// # Errors
/// If memory does not suffice, or the loss is not finite.
pub fn heaviest<M: Modality>(
    recipe: &Recipe<M>,
    state: &mut TrainState<M::Encoder>,
    dataset: &impl Dataset,
    plan: &Plan,
) -> Result<Trial> {
    let (rows, size) = plan.heaviest(dataset);
    trial(recipe, state, rows as i64, size as f64 / M::UNITS.size)
}

fn trial<M: Modality>(
    recipe: &Recipe<M>,
    state: &mut TrainState<M::Encoder>,
    rows: i64,
    size: f64,
) -> Result<Trial> {
    let device = state.model.device();
    release_freed_memory();
    // Systems other than Linux have no peak to reset or read.
    let has_peak = reset_peak_memory(device).is_ok();
    let start = Instant::now();
    let batch = M::random_batch(&recipe.features, rows, size)?.to_device(device);
    let mut rng = stream(recipe.seed, Purpose::HeldOut, &[u64::MAX]);
    state.model.stochastic_depth(false);
    let model = &state.model;
    let backward = |chunk: Objective| Ok(chunk.loss.f_backward()?);
    let objective = forward_in_chunks(model, &batch, &mut rng, tokens_per_chunk(model), backward)?;
    objective.loss.f_backward()?;
    let loss = objective.loss.double_value(&[]); // waits for the device
    let took = start.elapsed();
    state.model.stochastic_depth(true);
    state.optim.optimizer.zero_grad()?;
    if !loss.is_finite() {
        bail!("the loss of random inputs is {loss}: are the recipe's numbers right?");
    }
    let peak = if has_peak { memory(device).ok().map(|m| m.peak) } else { None };
    release_freed_memory();
    Ok(Trial { rows, size, took, peak })
}

impl Trial {
    /// Describes it in one line.
    pub fn describe<M: Modality>(&self) -> String {
        let peak = self.peak.map_or("unknown".into(), gib);
        let each = match M::UNITS.name {
            unit if self.size == 1.0 => format!("{} {unit}", self.rows),
            unit => format!("{} × {:.1} {unit}", self.rows, self.size),
        };
        format!(
            "a trial pass of the largest batch ({each}) took {:.1} s; memory peaked at {peak}, without optimizer, checkpoints and evaluations",
            self.took.as_secs_f64()
        )
    }
}

/// Describes what fits in memory: the heaviest batch and, extrapolated from it and half of it, the
/// largest `train.batch`.
///
/// # Errors
/// As [`heaviest`].
pub fn describe<M: Modality>(
    recipe: &Recipe<M>,
    state: &mut TrainState<M::Encoder>,
    dataset: &impl Dataset,
    plan: &Plan,
) -> Result<Vec<String>> {
    let full = heaviest(recipe, state, dataset, plan)?;
    let mut lines = vec![full.describe::<M>()];
    let device = state.model.device();
    let Some((peak, now)) = full.peak.zip(memory(device).ok()) else {
        lines.push("this system does not report how much memory is in use".into());
        return Ok(lines);
    };
    // All that this process could use.
    let total = now.current + now.available;
    lines.push(format!("{} are available on {}", gib(total), crate::device::name(device)));
    let half = match full.rows {
        1 => None,
        rows => trial(recipe, state, rows / 2, full.size)?.peak.map(|peak| (rows / 2, peak)),
    };
    if let Some((rows, half)) = half.filter(|&(_, half)| half < peak) {
        let per_row = (peak - half) as f64 / (full.rows - rows) as f64;
        let fixed = peak as f64 - per_row * full.rows as f64;
        // A tenth is left to other programs.
        let fit = ((0.9 * total as f64 - fixed) / per_row).floor().max(0.0);
        lines.push(format!(
            "about {} per batch and {} per {}: train.batch = {:.0} should fit, {} is set",
            gib(fixed as u64),
            gib((per_row / full.size) as u64),
            unit::<M>(),
            fit * full.size,
            recipe.train.batch
        ));
    }
    Ok(lines)
}

fn unit<M: Modality>() -> &'static str {
    M::UNITS.name.strip_suffix('s').filter(|unit| !unit.is_empty()).unwrap_or(M::UNITS.name)
}

fn gib(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 30) {
        small if small < 0.1 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        gib => format!("{gib:.1} GiB"),
    }
}

/// Returns a warning if the batch needs nearly all memory.
pub fn warning(trial: &Trial, device: Device) -> Option<String> {
    let now = memory(device).ok()?;
    let (peak, total) = (trial.peak?, now.current + now.available);
    (peak as f64 > 0.9 * total as f64).then(|| {
        format!(
            "that is more than 90 % of the available {}: lower train.batch, or --set model.activation_checkpointing=true",
            gib(total)
        )
    })
}
