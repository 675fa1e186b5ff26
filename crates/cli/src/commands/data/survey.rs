//! Reads all examples of a data set, on all cores.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use data2vec_core::modality::raw::{FileStats, RawDataset};
use indicatif::{ProgressBar, ProgressStyle};

/// Statistics of all examples.
#[derive(Default)]
pub struct Survey {
    /// Number of readable examples.
    pub examples: usize,
    /// Number of examples per kind.
    pub kinds: BTreeMap<String, u64>,
    /// Number of examples per label.
    pub labels: BTreeMap<String, u64>,
    /// Values of each measure, sorted.
    pub sizes: Vec<Vec<f64>>,
    /// Unreadable examples with their reasons, in the order of the files.
    pub broken: Vec<String>,
}

/// Reads all files and collects their statistics.
pub fn survey(raw: &RawDataset) -> Survey {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} {eta} left");
    let bar = ProgressBar::new(raw.files as u64).with_message(raw.noun);
    let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut survey, mut broken) = (Survey::default(), Vec::new());
        survey.sizes = vec![Vec::new(); raw.measures.len()];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= raw.files {
                return (survey, broken);
            }
            match (raw.inspect)(at) {
                Ok(stats) => broken.extend(survey.add(stats).into_iter().map(|why| (at, why))),
                Err(error) => broken.push((at, error.to_string())),
            }
            bar.inc(1);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut all, mut broken) = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let (mut all, mut broken) = work();
        for worker in workers {
            let found = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.merge(found.0);
            broken.extend(found.1);
        }
        (all, broken)
    });
    bar.finish_and_clear();
    all.sizes.iter_mut().for_each(|sizes| sizes.sort_by(f64::total_cmp));
    broken.sort();
    let listed = raw.broken.iter().cloned();
    all.broken = listed.chain(broken.into_iter().map(|(_, why)| why)).collect();
    all
}

impl Survey {
    /// Adds a file. Returns its unreadable examples.
    fn add(&mut self, stats: FileStats) -> Vec<String> {
        let FileStats { kind, sizes, labels, broken } = stats;
        let measures = self.sizes.len();
        for example in sizes.chunks_exact(measures) {
            self.sizes.iter_mut().zip(example).for_each(|(all, &size)| all.push(size));
        }
        let examples = sizes.len() / measures;
        if examples > 0 {
            self.examples += examples;
            *self.kinds.entry(kind).or_default() += examples as u64;
        }
        count(&mut self.labels, labels);
        broken
    }

    fn merge(&mut self, other: Self) {
        self.examples += other.examples;
        count(&mut self.kinds, other.kinds);
        count(&mut self.labels, other.labels);
        self.sizes.iter_mut().zip(other.sizes).for_each(|(all, sizes)| all.extend(sizes));
    }
}

fn count(all: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>) {
    for (name, count) in more {
        *all.entry(name).or_default() += count;
    }
}
