//! The data loader: an endless, reproducible stream of batches, prefetched by worker threads.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{
    Dataset, Error, Result,
    error::panic_message,
    random::{Purpose, stream},
};

mod plan;

pub use plan::{Epoch, Plan};

/// Default [`LoaderConfig::tolerance`]: crops or pads less than 5 % and still shuffles well.
pub const TOLERANCE: f64 = 0.05;

/// Settings of a [`Loader`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Largest batch in units of [`Dataset::size`]: number of examples × largest size.
    pub budget: u64,
    /// Largest number of examples in a batch.
    pub max_examples: Option<usize>,
    /// Number of worker threads, at least 1.
    pub workers: usize,
    /// Number of batches that each worker prefetches, at least 1.
    pub queue: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Largest number of distinct examples that may fail to load.
    pub max_bad: usize,
    /// How much smaller an example may be than the largest of its bucket, as a fraction in `[0,
    /// 1)`. Bounds the waste by cropping or padding, except in batches that span two buckets.
    pub tolerance: f64,
}

impl LoaderConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if self.workers == 0 {
            return Err(Error::config("workers", "must be at least 1"));
        }
        if self.queue == 0 {
            return Err(Error::config("queue", "must be at least 1"));
        }
        if self.max_examples == Some(0) {
            return Err(Error::config("max_examples", "must be at least 1"));
        }
        if !(0.0..1.0).contains(&self.tolerance) {
            return Err(Error::config("tolerance", "must be at least 0 and below 1"));
        }
        Ok(())
    }
}

/// A batch of the stream.
#[derive(Debug)]
pub struct Loaded<B> {
    /// Number of the batch in the stream; resume after it at `number + 1`.
    pub number: u64,
    /// Epoch of the batch, from 0.
    pub epoch: u64,
    /// The collated batch.
    pub batch: B,
    /// Number of examples in the batch.
    pub examples: usize,
    /// Sum of the sizes of the examples, in units of [`Dataset::size`].
    pub size: u64,
}

/// An endless stream of batches, numbered from 0 on.
///
/// Batch `n` depends only on the data set, the settings and `n`, not on the number of workers, the
/// start of the stream or earlier failures.
#[derive(Debug)]
pub struct Loader<B> {
    workers: Vec<Worker<B>>,
    stop: Arc<AtomicBool>,
    /// Index of the worker that prepares the next batch.
    turn: usize,
    plan: Arc<Plan>,
    /// Difference of the numbers of consecutive batches.
    stride: u64,
    /// Number of consecutive batches without a usable example.
    empty_in_a_row: u64,
    max_bad: usize,
    bad: BTreeMap<usize, (String, String)>,
    waited: Duration,
}

#[derive(Debug)]
struct Worker<B> {
    /// `None` once the loader is being dropped.
    results: Option<Receiver<WorkerResult<B>>>,
    thread: Option<JoinHandle<()>>,
}

/// Result of a worker: a batch, unless all of its examples failed to load, and the failures.
struct WorkerResult<B> {
    number: u64,
    batch: Result<Option<Loaded<B>>>,
    bad: Vec<(usize, String, String)>,
}

impl<B: Send + 'static> Loader<B> {
    /// Starts the workers at batch number `start`.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if a setting is invalid, the data set is empty or an example is
    /// larger than the budget, and [`Error::Io`] if a thread cannot be started.
    pub fn new<D: Dataset<Batch = B>>(
        dataset: Arc<D>,
        config: LoaderConfig,
        start: u64,
    ) -> Result<Self> {
        Self::strided(dataset, config, start, 1)
    }

    /// Starts the workers at batch number `start` and loads only every `stride`th batch, as each
    /// rank of a process group does.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn strided<D: Dataset<Batch = B>>(
        dataset: Arc<D>,
        config: LoaderConfig,
        start: u64,
        stride: u64,
    ) -> Result<Self> {
        config.validate()?;
        let max_examples = config.max_examples.unwrap_or(usize::MAX);
        let plan = Plan::new(dataset.as_ref(), config.budget, max_examples, config.tolerance)?;
        let plan = Arc::new(plan);
        let stop = Arc::new(AtomicBool::new(false));
        let mut loader = Self {
            workers: Vec::new(),
            stop: Arc::clone(&stop),
            turn: 0,
            plan: Arc::clone(&plan),
            stride,
            empty_in_a_row: 0,
            max_bad: config.max_bad,
            bad: BTreeMap::new(),
            waited: Duration::ZERO,
        };
        for first in 0..config.workers {
            let (sender, results) = bounded(config.queue);
            let state = WorkerState {
                dataset: Arc::clone(&dataset),
                plan: Arc::clone(&plan),
                seed: config.seed,
                stop: Arc::clone(&stop),
            };
            let (from, step) = (start + first as u64 * stride, config.workers * stride as usize);
            let thread = std::thread::Builder::new()
                .name(format!("loader-{first}"))
                .spawn(move || {
                    data2vec_torch_ext::set_thread_num_threads(1);
                    state.run(from, step, &sender)
                })
                .map_err(|source| Error::io("loader thread", source))?;
            loader.workers.push(Worker { results: Some(results), thread: Some(thread) });
        }
        Ok(loader)
    }

    /// Returns the division of the data into batches.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the number of batches of an epoch, including those without a usable example.
    pub fn batches_per_epoch(&self) -> u64 {
        self.plan.batches()
    }

    /// Waits for the next batch and returns it.
    ///
    /// Skips batches of which no example could be loaded, so batch numbers may have gaps.
    ///
    /// # Errors
    /// Returns [`Error::TooManyBad`] if more examples failed than allowed, [`Error::Loader`] if a
    /// worker died or an epoch has no usable example, and errors of [`Dataset::collate`].
    #[expect(
        clippy::should_implement_trait,
        reason = "the stream is endless, so there is no Option"
    )]
    pub fn next(&mut self) -> Result<Loaded<B>> {
        let asked = Instant::now();
        let loaded = self.wait();
        self.waited += asked.elapsed();
        loaded
    }

    fn wait(&mut self) -> Result<Loaded<B>> {
        loop {
            let turn = self.turn;
            let result = self.workers[turn].results.as_ref().map(Receiver::recv);
            let Some(Ok(result)) = result else {
                return Err(Error::Loader(format!("worker {turn} has stopped")));
            };
            self.turn = (turn + 1) % self.workers.len();
            for (index, name, reason) in result.bad {
                self.bad.insert(index, (name, reason.clone()));
                if self.bad.len() > self.max_bad {
                    let (count, limit) = (self.bad.len(), self.max_bad);
                    return Err(Error::TooManyBad { count, limit, last: reason });
                }
            }
            if let Some(loaded) = result.batch? {
                self.empty_in_a_row = 0;
                return Ok(loaded);
            }
            self.empty_in_a_row += self.stride;
            if self.empty_in_a_row >= self.plan.batches() {
                let last = self.bad.values().last().map_or("", |(_, reason)| reason);
                let number = result.number;
                let reason = format!("no usable example in a whole epoch up to batch {number}");
                return Err(Error::Loader(format!("{reason}; the last error: {last}")));
            }
        }
    }

    /// Returns name and error of each example that failed to load so far.
    pub fn bad(&self) -> Vec<(String, String)> {
        self.bad.values().cloned().collect()
    }

    /// Returns the total time that [`next`](Self::next) has waited.
    ///
    /// If it is more than a small fraction of the run time, use more workers.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl<B> Drop for Loader<B> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in &mut self.workers {
            worker.results = None; // unblocks a worker that waits to send
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A panic was already returned as an error of its batch.
                let _ = thread.join();
            }
        }
    }
}

/// State of a worker thread.
struct WorkerState<D> {
    dataset: Arc<D>,
    plan: Arc<Plan>,
    seed: u64,
    stop: Arc<AtomicBool>,
}

impl<D: Dataset> WorkerState<D> {
    fn run(&self, from: u64, step: usize, sender: &Sender<WorkerResult<D::Batch>>) {
        let mut planned: Option<(u64, Epoch)> = None;
        for number in (from..).step_by(step) {
            let (epoch, index) = (number / self.plan.batches(), number % self.plan.batches());
            let order = match planned.take() {
                Some((ready, order)) if ready == epoch => order,
                _ => self.plan.epoch(self.seed, epoch),
            };
            let mut bad = Vec::new();
            let load = || self.load(number, epoch, order.batch(index), &mut bad);
            let batch = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| {
                let message = panic_message(panic.as_ref());
                Err(Error::Loader(format!("a worker panicked at batch {number}: {message}")))
            });
            planned = Some((epoch, order));
            if self.stopped() || sender.send(WorkerResult { number, batch, bad }).is_err() {
                return;
            }
        }
    }

    /// Loads and collates one batch; `None` if no example could be loaded.
    fn load(
        &self,
        number: u64,
        epoch: u64,
        indices: &[u32],
        bad: &mut Vec<(usize, String, String)>,
    ) -> Result<Option<Loaded<D::Batch>>> {
        self.dataset.prefetch(indices);
        let (mut examples, mut size) = (Vec::with_capacity(indices.len()), 0);
        for index in indices.iter().map(|&index| index as usize) {
            if self.stopped() {
                return Ok(None);
            }
            let mut rng = stream(self.seed, Purpose::Example, &[epoch, index as u64]);
            match self.dataset.load(index, &mut rng) {
                Ok(example) => {
                    examples.push(example);
                    size += self.dataset.size(index);
                }
                Err(error) => bad.push((index, self.dataset.name(index), error.to_string())),
            }
        }
        if examples.is_empty() {
            return Ok(None);
        }
        let count = examples.len();
        let mut rng = stream(self.seed, Purpose::Collate, &[number]);
        let batch = self.dataset.collate(examples, &mut rng)?;
        Ok(Some(Loaded { number, epoch, batch, examples: count, size }))
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
