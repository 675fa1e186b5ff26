//! Whether the largest batch fits, before hours were spent on smaller ones.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use data2vec_core::loader::Plan;
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Dataset, TrainState};
use data2vec_torch_ext::{memory, release_freed_memory, reset_peak_memory};
use tch::Device;

use crate::modality::Modality;
use crate::recipe::Recipe;

/// What a pass over a random batch took.
pub struct Trial {
    /// Examples.
    rows: i64,
    /// Size of each, in the modality's unit.
    size: f64,
    /// Forward and backward.
    took: Duration,
    /// Most memory in use at once, in bytes; `None` where the system does not tell.
    peak: Option<u64>,
}

/// Forward and backward passes over the heaviest batch of the data, with random inputs. Nothing is
/// learned, and what training draws later stays the same.
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
    // Off Linux there is no peak to reset, and none to read below.
    let known = reset_peak_memory(device).is_ok();
    let start = Instant::now();
    let batch = M::random(&recipe.features, rows, size)?.to_device(device);
    let mut rng = stream(recipe.seed, Purpose::HeldOut, &[u64::MAX]);
    let tokens = state.model.tokens_at_once();
    state.model.stochastic_depth(false);
    let objective = state
        .model
        .forward_in_parts(&batch, &mut rng, tokens, |part| Ok(part.loss.f_backward()?))?;
    objective.loss.f_backward()?;
    let loss = objective.loss.double_value(&[]); // waits for the device
    let took = start.elapsed();
    state.model.stochastic_depth(true);
    state.optimizer.forget_gradients()?;
    if !loss.is_finite() {
        bail!("the loss of random inputs is {loss}: are the recipe's numbers right?");
    }
    let peak = if known { memory(device).ok().map(|m| m.peak) } else { None };
    release_freed_memory();
    Ok(Trial { rows, size, took, peak })
}

impl Trial {
    /// In one line.
    pub fn describe<M: Modality>(&self) -> String {
        let peak = self.peak.map_or("unknown".into(), gib);
        format!(
            "the largest batch, {} × {:.1} {}, takes {:.1} s and at most {peak} of memory",
            self.rows,
            self.size,
            M::UNITS.name,
            self.took.as_secs_f64()
        )
    }
}

/// What fits: the heaviest batch, and from it and half of it what a unit of `train.batch` needs.
pub fn tell<M: Modality>(
    recipe: &Recipe<M>,
    state: &mut TrainState<M::Encoder>,
    dataset: &impl Dataset,
    plan: &Plan,
) -> Result<Vec<String>> {
    let full = heaviest(recipe, state, dataset, plan)?;
    let mut lines = vec![full.describe::<M>()];
    let device = state.model.device();
    let Some((peak, now)) = full.peak.zip(memory(device).ok()) else {
        lines.push("this system does not tell how much memory is in use".into());
        return Ok(lines);
    };
    // The whole of what this process could have.
    let total = now.current + now.available;
    lines.push(format!("there are {} on {}", gib(total), crate::device::name(device)));
    let half = match full.rows {
        1 => None,
        rows => trial(recipe, state, rows / 2, full.size)?.peak.map(|peak| (rows / 2, peak)),
    };
    if let Some((rows, half)) = half.filter(|&(_, half)| half < peak) {
        let per_row = (peak - half) as f64 / (full.rows - rows) as f64;
        let fixed = peak as f64 - per_row * full.rows as f64;
        // Some is left to other programs and to chance.
        let fit = ((0.9 * total as f64 - fixed) / per_row).floor().max(0.0);
        lines.push(format!(
            "about {} a batch besides {} for each {}: train.batch = {:.0} should fit, {} is set",
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

/// Whether a batch that needs `peak` bytes leaves the system some.
pub fn warn(trial: &Trial, device: Device) -> Option<String> {
    let now = memory(device).ok()?;
    let (peak, total) = (trial.peak?, now.current + now.available);
    (peak as f64 > 0.9 * total as f64).then(|| {
        format!(
            "that is more than 90 % of the {} there are: lower train.batch, or --set model.activation_checkpointing=true",
            gib(total)
        )
    })
}
