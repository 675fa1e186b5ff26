//! Feeds a run with batches.

use std::sync::Arc;

use anyhow::{Result, bail};
use data2vec_core::data::loader::{Plan, TOLERANCE};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Dataset, Loaded, Loader, LoaderConfig, Units, World};
use tracing::warn;

use crate::recipe::TrainConfig;

/// Returns the loader settings of a run.
pub fn loader_config(train: &TrainConfig, seed: u64, units: Units) -> LoaderConfig {
    LoaderConfig {
        budget: (train.batch * units.size).round() as u64,
        max_examples: train.max_examples,
        workers: train.workers,
        queue: 4,
        seed,
        max_bad: train.max_bad_examples,
        tolerance: TOLERANCE,
    }
}

/// This rank's share of the batches. The batches of a step have consecutive indices; rank r of R
/// takes every Rth one, starting with the rth.
pub struct Feed<B> {
    /// The loader of this rank's batches.
    pub loader: Loader<B>,
    rank: u64,
    world_size: u64,
    accumulate: u64,
    /// A batch of a later step: no batch before it had a usable example.
    ahead: Option<Loaded<B>>,
}

impl<B: Send + 'static> Feed<B> {
    /// Starts with the batch `next`, the first one of a step.
    ///
    /// # Errors
    /// If the batches cannot be planned, or a loader thread cannot start.
    pub fn new<D: Dataset<Batch = B>>(
        dataset: Arc<D>,
        config: LoaderConfig,
        next: u64,
        accumulate: usize,
        world: &World,
    ) -> data2vec_core::Result<Self> {
        let (rank, world_size) = (world.rank() as u64, world.size() as u64);
        let loader = Loader::strided(dataset, config, next + rank, world_size)?;
        Ok(Self { loader, rank, world_size, accumulate: accumulate as u64, ahead: None })
    }

    /// Returns this rank's batches of the step that begins with batch `first`, each with its index
    /// in the step.
    ///
    /// # Errors
    /// If too many examples are unusable.
    pub fn step(&mut self, first: u64) -> data2vec_core::Result<Vec<(u64, Loaded<B>)>> {
        let (end, mut next) = (first + self.accumulate, first + self.rank);
        let mut batches = Vec::new();
        while next < end {
            let loaded = match self.ahead.take() {
                Some(loaded) => loaded,
                None => self.loader.next()?,
            };
            if loaded.number >= end {
                self.ahead = Some(loaded);
                break;
            }
            next = loaded.number + self.world_size;
            batches.push((loaded.number - first, loaded));
        }
        Ok(batches)
    }

    /// Returns the names of all examples planned for `batches`, including unusable ones.
    pub fn examples<D: Dataset<Batch = B>>(
        &self,
        dataset: &D,
        seed: u64,
        batches: &[(u64, Loaded<B>)],
    ) -> Vec<String> {
        let plan = self.loader.plan();
        let of = |(_, loaded): &(u64, Loaded<B>)| {
            let epoch = plan.epoch(seed, loaded.epoch);
            let examples = epoch.batch(loaded.number % plan.batches());
            examples.iter().map(|&index| dataset.name(index as usize)).collect::<Vec<_>>()
        };
        batches.iter().flat_map(of).collect()
    }
}

/// Checks that the batches of a step can be divided over the ranks.
///
/// # Errors
/// If `train.accumulate` is not a multiple of the world size.
pub fn check_world_size(train: &TrainConfig, world_size: usize) -> Result<()> {
    let (batch, accumulate) = (train.batch, train.accumulate);
    if !accumulate.is_multiple_of(world_size) {
        let total = batch * accumulate as f64;
        bail!(
            "train.accumulate = {accumulate} cannot be divided over {world_size} ranks; set it to a multiple of {world_size}, e.g. train.accumulate={world_size} with train.batch={} for the same batch size per step",
            total / world_size as f64
        );
    }
    Ok(())
}

/// Plans the batches of `dataset`.
///
/// # Errors
/// If there are no examples, or one is larger than a batch.
pub fn plan(dataset: &impl Dataset, config: &LoaderConfig) -> data2vec_core::Result<Plan> {
    let max_examples = config.max_examples.unwrap_or(usize::MAX);
    Plan::new(dataset, config.budget, max_examples, config.tolerance)
}

/// Checks that so many unusable examples are allowed.
///
/// # Errors
/// If they are more than `train.max_bad_examples`.
pub fn check_bad(train: &TrainConfig, count: usize, last: &str) -> Result<()> {
    let limit = train.max_bad_examples;
    if count > limit {
        bail!(
            "{count} unusable examples, but train.max_bad_examples = {limit}; the last one: {last}"
        );
    }
    Ok(())
}

/// Warns of unreadable examples, and checks that so many are allowed.
///
/// # Errors
/// As [`check_bad`].
pub fn warn_skipped(train: &TrainConfig, skipped: &[String]) -> Result<()> {
    for reason in skipped.iter().take(10) {
        warn!("skipped {reason}");
    }
    if skipped.len() > 10 {
        warn!("and {} more", skipped.len() - 10);
    }
    skipped.last().map_or(Ok(()), |last| check_bad(train, skipped.len(), last))
}

/// Checks that each example fits a batch.
///
/// # Errors
/// If the largest does not.
pub fn check_sizes(train: &TrainConfig, dataset: &impl Dataset, units: Units) -> Result<()> {
    let largest = (0..dataset.len()).max_by_key(|&index| dataset.size(index));
    let Some(index) = largest else { return Ok(()) };
    if dataset.size(index) > loader_config(train, 0, units).budget {
        let size = dataset.size(index) as f64 / units.size;
        let (batch, unit, name) = (train.batch, units.name, dataset.name(index));
        bail!(
            "train.batch = {batch} is too small for one example: {name} is {size:.2} {unit}; raise it, or allow only smaller ones in [data]"
        );
    }
    Ok(())
}

/// Returns the batches of all evaluations: the same examples, cropped the same way. Reasons of
/// unusable ones go to `bad`.
///
/// # Errors
/// As [`check_bad`].
pub fn held_out_batches<D: Dataset>(
    held_out: Option<&D>,
    (train, seed, units): (&TrainConfig, u64, Units),
    bad: &mut Vec<String>,
) -> Result<Vec<D::Batch>> {
    let Some(held_out) = held_out else { return Ok(Vec::new()) };
    let config = loader_config(train, seed, units);
    let plan = plan(held_out, &config)?;
    let epoch = plan.epoch(seed, 0);
    let mut batches = Vec::new();
    for index in 0..plan.batches().min(train.eval_batches as u64) {
        let mut rng = stream(seed, Purpose::HeldOut, &[index]);
        let mut examples = Vec::new();
        for &example in epoch.batch(index) {
            match held_out.load(example as usize, &mut rng) {
                Ok(example) => examples.push(example),
                Err(error) => {
                    warn!("skipped {error}");
                    bad.push(error.to_string());
                    check_bad(train, bad.len(), &error.to_string())?;
                }
            }
        }
        if !examples.is_empty() {
            batches.push(held_out.collate(examples, &mut rng)?);
        }
    }
    Ok(batches)
}
