//! From a data set to an endless, repeatable stream of batches, prepared ahead by worker threads.

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

/// A [`LoaderConfig::tolerance`] that wastes little and still mixes well: under 5 % is cropped or
/// padded.
pub const TOLERANCE: f64 = 0.05;

/// How batches are made.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Most that a batch may hold, in units of [`Dataset::size`]: examples × the largest of them.
    pub budget: u64,
    /// Most examples in a batch.
    pub max_examples: Option<usize>,
    /// Threads that load, at least one.
    pub workers: usize,
    /// Batches that each worker prepares ahead, at least one.
    pub queue: usize,
    /// Of the run.
    pub seed: u64,
    /// How many distinct examples may fail to load.
    pub max_bad: usize,
    /// By which share an example may be smaller than the largest of its bucket, in `[0, 1)`. What
    /// cropping or padding wastes stays below it, but for batches at the edge of two buckets.
    pub tolerance: f64,
}

impl LoaderConfig {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
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

/// One batch of the stream.
#[derive(Debug)]
pub struct Loaded<B> {
    /// Its place in the stream; the next one to ask for after it is `number + 1`.
    pub number: u64,
    /// Which pass over the data it belongs to, from 0.
    pub epoch: u64,
    /// What the model gets.
    pub batch: B,
    /// How many examples it was made of.
    pub examples: usize,
    /// Sum of their sizes, in units of [`Dataset::size`].
    pub size: u64,
}

/// An endless stream of batches, numbered from 0 on.
///
/// Batch `n` is a function of the data set, the configuration and `n` alone: however many workers
/// there are, wherever the stream starts, and whichever examples failed before.
#[derive(Debug)]
pub struct Loader<B> {
    workers: Vec<Worker<B>>,
    stop: Arc<AtomicBool>,
    /// Turn of the worker that has the next batch.
    turn: usize,
    plan: Arc<Plan>,
    /// From one batch to the next.
    stride: u64,
    /// Batches in a row that had no usable example.
    barren: u64,
    max_bad: usize,
    bad: BTreeMap<usize, (String, String)>,
    waited: Duration,
}

#[derive(Debug)]
struct Worker<B> {
    /// `None` once the loader is being dropped.
    made: Option<Receiver<Made<B>>>,
    thread: Option<JoinHandle<()>>,
}

/// What a worker sends: a batch unless none of its examples could be loaded, and the failures.
struct Made<B> {
    number: u64,
    batch: Result<Option<Loaded<B>>>,
    bad: Vec<(usize, String, String)>,
}

impl<B: Send + 'static> Loader<B> {
    /// Starts the workers at batch number `start`.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is impossible, the data set is empty or one of its
    /// examples is larger than the budget; [`Error::Io`] if a thread cannot be started.
    pub fn new<D: Dataset<Batch = B>>(
        dataset: Arc<D>,
        config: LoaderConfig,
        start: u64,
    ) -> Result<Self> {
        Self::every(dataset, config, start, 1)
    }

    /// The same for every `stride`th batch alone, from number `start` on: a rank's share. The others' are not
    /// loaded.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn every<D: Dataset<Batch = B>>(
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
            barren: 0,
            max_bad: config.max_bad,
            bad: BTreeMap::new(),
            waited: Duration::ZERO,
        };
        for first in 0..config.workers {
            let (send, made) = bounded(config.queue);
            let maker = Maker {
                dataset: Arc::clone(&dataset),
                plan: Arc::clone(&plan),
                seed: config.seed,
                stop: Arc::clone(&stop),
            };
            let (from, step) = (start + first as u64 * stride, config.workers * stride as usize);
            let thread = std::thread::Builder::new()
                .name(format!("loader-{first}"))
                .spawn(move || {
                    data2vec_torch_ext::limit_thread_to_one_core();
                    maker.run(from, step, &send)
                })
                .map_err(|source| Error::io("loader thread", source))?;
            loader.workers.push(Worker { made: Some(made), thread: Some(thread) });
        }
        Ok(loader)
    }

    /// How the data is cut into batches.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many batches, usable or not, one pass over the data has.
    pub fn batches_per_epoch(&self) -> u64 {
        self.plan.batches()
    }

    /// The next batch; waits for it. A batch of which no example could be loaded is passed over,
    /// so numbers may leave gaps.
    ///
    /// # Errors
    /// [`Error::TooManyBad`] beyond the configured limit of failing examples, [`Error::Loader`] if
    /// a worker died or a whole epoch has nothing to offer, and what [`Dataset::collate`] returns.
    #[expect(clippy::should_implement_trait, reason = "it never ends: no Option")]
    pub fn next(&mut self) -> Result<Loaded<B>> {
        let asked = Instant::now();
        let loaded = self.wait();
        self.waited += asked.elapsed();
        loaded
    }

    fn wait(&mut self) -> Result<Loaded<B>> {
        loop {
            let turn = self.turn;
            let made = self.workers[turn].made.as_ref().map(Receiver::recv);
            let Some(Ok(made)) = made else {
                return Err(Error::Loader(format!("worker {turn} has stopped")));
            };
            self.turn = (turn + 1) % self.workers.len();
            for (index, name, reason) in made.bad {
                self.bad.insert(index, (name, reason.clone()));
                if self.bad.len() > self.max_bad {
                    let (count, limit) = (self.bad.len(), self.max_bad);
                    return Err(Error::TooManyBad { count, limit, last: reason });
                }
            }
            if let Some(loaded) = made.batch? {
                self.barren = 0;
                return Ok(loaded);
            }
            self.barren += self.stride;
            if self.barren >= self.plan.batches() {
                let last = self.bad.values().last().map_or("", |(_, reason)| reason);
                let number = made.number;
                let reason = format!("no usable example in a whole epoch up to batch {number}");
                return Err(Error::Loader(format!("{reason}; one of them: {last}")));
            }
        }
    }

    /// The examples that failed so far, each once: name and reason.
    pub fn bad(&self) -> Vec<(String, String)> {
        self.bad.values().cloned().collect()
    }

    /// How long [`next`](Self::next) has waited in all. A share of the run's time that is not near
    /// zero asks for more workers.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl<B> Drop for Loader<B> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in &mut self.workers {
            worker.made = None; // a worker that waits to send gives up
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A worker's panic was already told as an error.
                let _ = thread.join();
            }
        }
    }
}

/// What a worker thread needs.
struct Maker<D> {
    dataset: Arc<D>,
    plan: Arc<Plan>,
    seed: u64,
    stop: Arc<AtomicBool>,
}

impl<D: Dataset> Maker<D> {
    fn run(&self, from: u64, step: usize, send: &Sender<Made<D::Batch>>) {
        let mut planned: Option<(u64, Epoch)> = None;
        for number in (from..).step_by(step) {
            let (epoch, place) = (number / self.plan.batches(), number % self.plan.batches());
            let order = match planned.take() {
                Some((ready, order)) if ready == epoch => order,
                _ => self.plan.epoch(self.seed, epoch),
            };
            let mut bad = Vec::new();
            let make = || self.make(number, epoch, order.batch(place), &mut bad);
            let batch = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| {
                let what = panic_message(panic.as_ref());
                Err(Error::Loader(format!("a worker panicked at batch {number}: {what}")))
            });
            planned = Some((epoch, order));
            if self.stopped() || send.send(Made { number, batch, bad }).is_err() {
                return;
            }
        }
    }

    fn make(
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
