//! The data loader: complete, within budget, reproducible from any position with any number of
//! workers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use data2vec_core::{Batch, Dataset, Error, Loader, LoaderConfig, Result, data::loader::Plan};
use proptest::prelude::*;
use rand::{Rng, rngs::StdRng};
use tch::Tensor;

/// A data set whose examples have only a size.
#[derive(Default)]
struct Toy {
    sizes: Vec<u64>,
    /// Examples that fail to load.
    bad: BTreeSet<usize>,
    /// Example whose loading panics.
    panics: Option<usize>,
    /// Duration of loading an example.
    pause: Duration,
    loads: AtomicUsize,
}

impl Toy {
    fn new(sizes: &[u64]) -> Self {
        Self { sizes: sizes.to_vec(), ..Self::default() }
    }
}

impl Dataset for Toy {
    /// Index of the example, and a number drawn from its random stream.
    type Example = (usize, i64);
    type Batch = Batch;

    fn len(&self) -> usize {
        self.sizes.len()
    }

    fn size(&self, index: usize) -> u64 {
        self.sizes[index]
    }

    fn name(&self, index: usize) -> String {
        format!("toy {index}")
    }

    fn load(&self, index: usize, rng: &mut StdRng) -> Result<(usize, i64)> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.pause);
        assert_ne!(self.panics, Some(index), "toy {index} panics");
        match self.bad.contains(&index) {
            true => Err(Error::file(self.name(index), "broken")),
            false => Ok((index, i64::from(rng.next_u32()))),
        }
    }

    fn collate(&self, examples: Vec<(usize, i64)>, rng: &mut StdRng) -> Result<Batch> {
        let mut flat: Vec<i64> = examples.iter().flat_map(|&(at, x)| [at as i64, x]).collect();
        flat.extend([-1, i64::from(rng.next_u32())]);
        Batch::new(Tensor::from_slice(&flat).reshape([-1, 2]))
    }
}

fn config(budget: u64, workers: usize) -> LoaderConfig {
    let (max_examples, tolerance) = (Some(7), 0.05);
    LoaderConfig { budget, max_examples, workers, queue: 2, seed: 5, max_bad: 0, tolerance }
}

/// Number, epoch and content of a batch.
type BatchContent = (u64, u64, Vec<i64>);

fn take(dataset: &Arc<Toy>, config: LoaderConfig, start: u64, count: usize) -> Vec<BatchContent> {
    let mut loader = Loader::new(Arc::clone(dataset), config, start).unwrap();
    let next = |_| {
        let loaded = loader.next().unwrap();
        let flat: Vec<i64> = Vec::try_from(loaded.batch.inputs.flatten(0, 1)).unwrap();
        assert_eq!(loaded.examples, flat.len() / 2 - 1);
        (loaded.number, loaded.epoch, flat)
    };
    (0..count).map(next).collect()
}

fn sizes() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(1_u64..5_000, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn epoch_has_every_example_once_and_a_fixed_number_of_batches(
        sizes in sizes(), room in 0_u64..40_000, most in 1_usize..40, tolerance in 0.0_f64..0.5,
        seed in any::<u64>(),
    ) {
        let largest = *sizes.iter().max().unwrap();
        let budget = largest + room;
        let plan = Plan::new(&Toy::new(&sizes), budget, most, tolerance).unwrap();
        for epoch in 0..3 {
            // The number of batches depends only on the sizes.
            let planned = plan.epoch(seed, epoch);
            let mut seen = vec![0; sizes.len()];
            for index in 0..plan.batches() {
                let batch = planned.batch(index);
                let longest = batch.iter().map(|&at| sizes[at as usize]).max().unwrap();
                prop_assert!(batch.len() <= most);
                prop_assert!(batch.len() as u64 * longest <= budget);
                batch.iter().for_each(|&at| seen[at as usize] += 1);
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
        }
        let other: Vec<u64> = sizes.iter().rev().copied().collect(); // the same sizes
        let other = Plan::new(&Toy::new(&other), budget, most, tolerance).unwrap();
        prop_assert_eq!(other.batches(), plan.batches());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25))]

    #[test]
    fn stream_does_not_depend_on_start_or_number_of_workers(
        sizes in prop::collection::vec(1_u64..500, 1..40), start in 0_u64..30, workers in 1_usize..4,
    ) {
        let dataset = Arc::new(Toy::new(&sizes));
        let whole = take(&dataset, config(1_000, 1), 0, 40);
        let part = take(&dataset, config(1_000, workers), start, 40 - start as usize);
        prop_assert_eq!(&whole[start as usize..], &part[..]);
        prop_assert!(whole.iter().zip(0..).all(|((number, ..), expected)| *number == expected));
    }
}

#[test]
fn pads_and_crops_less_than_5_percent_of_speech_lengths() {
    // 2 to 16 s, most of them long, as in LibriSpeech.
    let sizes: Vec<u64> =
        (0..20_000_u64).map(|at| 256_000 - (at * at % 20_011) * 224_000 / 20_011 / 2).collect();
    let plan = Plan::new(&Toy::new(&sizes), 3_800_000, usize::MAX, 0.05).unwrap();
    let epoch = plan.epoch(1, 0);
    let (mut padded, mut cropped, mut real) = (0, 0, 0);
    for index in 0..plan.batches() {
        let batch: Vec<u64> = epoch.batch(index).iter().map(|&at| sizes[at as usize]).collect();
        padded += batch.iter().max().unwrap() * batch.len() as u64;
        cropped += batch.iter().min().unwrap() * batch.len() as u64;
        real += batch.iter().sum::<u64>();
    }
    assert!((padded - real) as f64 / (padded as f64) < 0.05, "padding {padded} for {real}");
    assert!((real - cropped) as f64 / (real as f64) < 0.05, "cropping {real} to {cropped}");
    let needed = real.div_ceil(3_800_000);
    assert!(plan.batches() < needed * 115 / 100, "{} batches, {needed} needed", plan.batches());
}

#[test]
fn epochs_differ_in_order_and_random_numbers() {
    let dataset = Arc::new(Toy::new(&[10; 30]));
    let seen = take(&dataset, config(70, 2), 0, 15);
    let epochs: Vec<&[BatchContent]> = seen.chunks(5).collect();
    assert!(epochs.iter().zip(0..).all(|(batches, at)| batches.iter().all(|b| b.1 == at)));
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert!(epochs[a].iter().zip(epochs[b]).all(|(a, b)| a.2 != b.2));
    }
    let mut random: Vec<i64> =
        seen.iter().flat_map(|(.., flat)| flat.chunks(2)).map(|pair| pair[1]).collect();
    random.sort_unstable();
    random.dedup();
    assert_eq!(random.len(), 3 * 30 + 15, "a random stream was used twice");
    let other = LoaderConfig { seed: 6, ..config(70, 2) };
    assert_ne!(take(&dataset, other, 0, 5), epochs[0]);
}

#[test]
fn skips_unreadable_examples_and_counts_them_once() {
    let bad = BTreeSet::from([3, 11, 12]);
    let dataset = Arc::new(Toy { sizes: vec![10; 20], bad, ..Toy::default() });
    let whole = Arc::new(Toy::new(&[10; 20]));
    let lenient = |workers| LoaderConfig { max_bad: 3, ..config(30, workers) };
    let readable = |batches: Vec<BatchContent>| -> Vec<Vec<i64>> {
        let row = |row: &&[i64]| !dataset.bad.contains(&(row[0] as usize));
        batches.iter().map(|b| b.2.chunks(2).filter(row).flatten().copied().collect()).collect()
    };
    let expected = readable(take(&whole, lenient(1), 0, 14));
    for workers in 1..4 {
        let seen = take(&dataset, lenient(workers), 0, 14);
        assert_eq!(readable(seen), expected, "the other examples changed");
    }
    let mut loader = Loader::new(Arc::clone(&dataset), lenient(2), 0).unwrap();
    for _ in 0..3 * loader.batches_per_epoch() {
        loader.next().unwrap();
    }
    let names: Vec<String> = loader.bad().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["toy 3", "toy 11", "toy 12"]);
    assert_eq!(loader.bad()[0].1, "toy 3: broken");

    let mut at = BTreeSet::new();
    for workers in 1..4 {
        let config = LoaderConfig { max_bad: 2, ..config(30, workers) };
        let mut loader = Loader::new(Arc::clone(&dataset), config, 0).unwrap();
        let mut count = 0;
        let refused = loop {
            match loader.next() {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, Error::TooManyBad { count: 3, limit: 2, .. }), "{refused}");
        at.insert(count);
    }
    assert_eq!(
        at.len(),
        1,
        "the batch at which the limit is reached depends on the number of workers"
    );
}

#[test]
fn skips_batches_without_readable_examples() {
    let dataset =
        Arc::new(Toy { sizes: vec![10; 6], bad: BTreeSet::from([1, 4]), ..Toy::default() });
    let lenient = |workers| LoaderConfig { max_bad: 6, ..config(10, workers) };
    let numbers: Vec<u64> = take(&dataset, lenient(3), 0, 8).iter().map(|seen| seen.0).collect();
    assert_eq!((numbers.len(), numbers[3] < 6, numbers[4] >= 6), (8, true, true), "{numbers:?}");
    assert_eq!(take(&dataset, lenient(2), 0, 8), take(&dataset, lenient(1), 0, 8));

    let hopeless = Toy { sizes: vec![10; 6], bad: (0..6).collect(), ..Toy::default() };
    let mut loader = Loader::new(Arc::new(hopeless), lenient(2), 0).unwrap();
    let refused = loader.next().unwrap_err().to_string();
    assert!(refused.contains("no usable example in a whole epoch"), "{refused}");
    assert!(refused.ends_with("toy 5: broken"), "{refused}");
}

#[test]
fn worker_panic_is_returned_as_error() {
    let dataset = Arc::new(Toy { sizes: vec![10; 5], panics: Some(2), ..Toy::default() });
    let mut loader = Loader::new(dataset, config(50, 2), 0).unwrap();
    let refused = loader.next().unwrap_err().to_string();
    assert!(refused.starts_with("data loader: a worker panicked at batch 0"), "{refused}");
    assert!(refused.contains("toy 2 panics"), "{refused}");
}

#[test]
fn drop_stops_workers() {
    let pause = Duration::from_millis(30);
    let dataset = Arc::new(Toy { sizes: vec![1; 1000], pause, ..Toy::default() });
    let config = LoaderConfig { max_examples: None, ..config(1000, 3) };
    let loader = Loader::new(Arc::clone(&dataset), config, 0).unwrap();
    std::thread::sleep(pause);
    let asked = Instant::now();
    drop(loader);
    assert!(asked.elapsed() < 20 * pause, "{:?}", asked.elapsed());
    assert_eq!(Arc::strong_count(&dataset), 1, "a worker is still running");

    // A worker that waits for space in its queue stops, too.
    let dataset = Arc::new(Toy::new(&[1; 10]));
    let loader = Loader::new(Arc::clone(&dataset), self::config(10, 2), 0).unwrap();
    while dataset.loads.load(Ordering::Relaxed) < 30 {
        std::thread::yield_now();
    }
    drop(loader);
    assert_eq!(Arc::strong_count(&dataset), 1);
}

#[test]
fn counts_waiting_time() {
    let pause = Duration::from_millis(20);
    let dataset = Arc::new(Toy { sizes: vec![1; 4], pause, ..Toy::default() });
    let mut loader = Loader::new(dataset, config(4, 1), 0).unwrap();
    loader.next().unwrap();
    assert!(loader.waited() >= pause, "{:?}", loader.waited());
}

#[test]
fn rejects_invalid_settings() {
    let refused = |dataset: Toy, config: LoaderConfig| {
        assert!(dataset.len() < 100);
        Loader::new(Arc::new(dataset), config, 0).unwrap_err().to_string()
    };
    let large = refused(Toy::new(&[5, 70, 6]), config(69, 1));
    assert_eq!(large, "batch budget: 69 is smaller than the example toy 1 of size 70");
    assert_eq!(refused(Toy::new(&[]), config(9, 1)), "data: has no examples");
    let toy = || Toy::new(&[1]);
    assert!(refused(toy(), config(9, 0)).starts_with("workers: "));
    assert!(refused(toy(), LoaderConfig { queue: 0, ..config(9, 1) }).starts_with("queue: "));
    let none = LoaderConfig { max_examples: Some(0), ..config(9, 1) };
    assert!(refused(toy(), none).starts_with("max_examples: "));
    let wide = LoaderConfig { tolerance: 1.0, ..config(9, 1) };
    assert!(refused(toy(), wide).starts_with("tolerance: "));
}
