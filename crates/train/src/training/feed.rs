//! From a data set to the batches of a run.

use std::sync::Arc;

use anyhow::{Result, bail};
use data2vec_core::loader::{Plan, TOLERANCE};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Dataset, Loaded, Loader, LoaderConfig, Ranks};

use crate::recipe::TrainConfig;
use crate::report::note;

/// In what examples are counted.
#[derive(Clone, Copy)]
pub struct Units {
    /// As people call it.
    pub name: &'static str,
    /// [`Dataset::size`] of one.
    pub size: f64,
}

/// How the data of a run become batches.
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

/// This process's part of the stream of batches. The batches of a step have consecutive numbers; rank r of R
/// takes every Rth of them, from the rth on.
pub struct Feed<B> {
    /// What was loaded, waited for and found unusable.
    pub loader: Loader<B>,
    rank: u64,
    ranks: u64,
    accumulate: u64,
    /// Of a later step: in between, no batch had a usable example.
    ahead: Option<Loaded<B>>,
}

impl<B: Send + 'static> Feed<B> {
    /// From the batch `next` on, which a step begins with.
    pub fn new<D: Dataset<Batch = B>>(
        dataset: Arc<D>,
        config: LoaderConfig,
        next: u64,
        accumulate: usize,
        ranks: &Ranks,
    ) -> data2vec_core::Result<Self> {
        let (rank, ranks) = (ranks.rank() as u64, ranks.count() as u64);
        let loader = Loader::every(dataset, config, next + rank, ranks)?;
        Ok(Self { loader, rank, ranks, accumulate: accumulate as u64, ahead: None })
    }

    /// This process's batches of the step that begins with the batch `first`, each with its place in the step.
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
            next = loaded.number + self.ranks;
            batches.push((loaded.number - first, loaded));
        }
        Ok(batches)
    }

    /// The names of all examples that were to be in `batches`, unusable ones too.
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

/// Whether the batches of a step can be divided over the ranks.
pub fn check_ranks(train: &TrainConfig, ranks: usize) -> Result<()> {
    let (batch, accumulate) = (train.batch, train.accumulate);
    if !accumulate.is_multiple_of(ranks) {
        let total = batch * accumulate as f64;
        bail!(
            "train.accumulate = {accumulate} batches a step cannot be divided over {ranks} processes: set it to a multiple of {ranks}; with train.accumulate={ranks} and train.batch={} a step is as large as now",
            total / ranks as f64
        );
    }
    Ok(())
}

/// How the examples of `dataset` are put together.
pub fn plan(dataset: &impl Dataset, config: &LoaderConfig) -> data2vec_core::Result<Plan> {
    let max_examples = config.max_examples.unwrap_or(usize::MAX);
    Plan::new(dataset, config.budget, max_examples, config.tolerance)
}

/// Whether so many unusable examples are allowed.
pub fn check_bad(train: &TrainConfig, count: usize, last: &str) -> Result<()> {
    let limit = train.max_bad_examples;
    if count > limit {
        bail!(
            "{count} unusable examples, train.max_bad_examples = {limit} are allowed; the last one: {last}"
        );
    }
    Ok(())
}

/// Says which examples could not be used, and whether so many are allowed.
pub fn tell_skipped(train: &TrainConfig, skipped: &[String]) -> Result<()> {
    for reason in skipped.iter().take(10) {
        note(format!("skipped {reason}"));
    }
    if skipped.len() > 10 {
        note(format!("and {} more", skipped.len() - 10));
    }
    skipped.last().map_or(Ok(()), |last| check_bad(train, skipped.len(), last))
}

/// Whether each example fits a batch.
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

/// The batches of all evaluations: the same examples, cut the same way. Unusable ones go to `bad`.
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
    for place in 0..plan.batches().min(train.eval_batches as u64) {
        let mut rng = stream(seed, Purpose::HeldOut, &[place]);
        let mut examples = Vec::new();
        for &index in epoch.batch(place) {
            match held_out.load(index as usize, &mut rng) {
                Ok(example) => examples.push(example),
                Err(error) => {
                    note(format!("skipped {error}"));
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
