//! Labelled examples in batches, outside of training: for evaluations and probes.

use anyhow::{Result, ensure};
use data2vec_core::data::loader::{Plan, TOLERANCE};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Dataset, LabelledBatch, OnProgress, Progress};
use tracing::warn;

/// Examples of usual size in a batch, unless a size is given.
const EXAMPLES: u64 = 64;
/// Largest number of unreadable examples to print.
const MAX_SKIPPED: usize = 10;

/// Which examples to load, and how many at a time.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// Size of a batch in units of [`Dataset::size`]; `None`: 64 examples of the median size, and at
    /// least the largest. A multiple of the largest would need the memory of that many.
    pub budget: Option<u64>,
    /// Maximum number of examples, chosen at random.
    pub limit: usize,
    /// Seed of the order.
    pub seed: u64,
}

/// Calls `take` with the indices of examples and their batch, for all or `limit` examples. Returns
/// the unreadable ones, `name: reason` each; the first are logged.
///
/// # Errors
/// If no example is readable, and what `take` returns.
pub fn for_each_batch<D: Dataset<Batch = LabelledBatch>>(
    dataset: &D,
    options: BatchOptions,
    progress: OnProgress,
    mut take: impl FnMut(&[usize], LabelledBatch) -> Result<()>,
) -> Result<Vec<String>> {
    let BatchOptions { budget, limit, seed } = options;
    let total = dataset.len().min(limit);
    ensure!(total > 0, "there are no examples");
    let plan = Plan::new(dataset, budget_for(dataset, budget), usize::MAX, TOLERANCE)?;
    let epoch = plan.epoch(seed, 0);
    let (mut skipped, mut done, mut taken) = (Vec::new(), 0, 0);
    for number in 0..plan.batches() {
        if done >= total {
            break;
        }
        let mut rng = stream(seed, Purpose::HeldOut, &[number]);
        let (mut examples, mut indices) = (Vec::new(), Vec::new());
        for &index in epoch.batch(number).iter().take(total - done) {
            match dataset.load(index as usize, &mut rng) {
                Ok(example) => {
                    examples.push(example);
                    indices.push(index as usize);
                }
                Err(error) => skipped.push(error.to_string()),
            }
            done += 1;
        }
        progress(Progress { what: "examples", done: done as u64, total: total as u64 });
        if !examples.is_empty() {
            taken += examples.len();
            take(&indices, dataset.collate(examples, &mut rng)?)?;
        }
    }
    for reason in skipped.iter().take(MAX_SKIPPED) {
        warn!("skipped {reason}");
    }
    ensure!(taken > 0, "no example is usable");
    Ok(skipped)
}

/// Returns the size of a batch; see [`BatchOptions::budget`].
fn budget_for<D: Dataset>(dataset: &D, wanted: Option<u64>) -> u64 {
    let mut sizes: Vec<u64> = (0..dataset.len()).map(|index| dataset.size(index)).collect();
    sizes.sort_unstable();
    let (median, largest) = (sizes[sizes.len() / 2], sizes[sizes.len() - 1]);
    wanted.unwrap_or_else(|| median.saturating_mul(EXAMPLES)).max(largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use data2vec_core::{Batch, Targets};
    use rand::rngs::StdRng;
    use tch::{Device, Kind, Tensor};

    /// Examples of these sizes; those of size 7 are unreadable.
    struct Sizes(Vec<u64>);

    impl Dataset for Sizes {
        type Example = i64;
        type Batch = LabelledBatch;

        fn len(&self) -> usize {
            self.0.len()
        }

        fn size(&self, index: usize) -> u64 {
            self.0[index]
        }

        fn name(&self, index: usize) -> String {
            index.to_string()
        }

        fn load(&self, index: usize, _: &mut StdRng) -> data2vec_core::Result<i64> {
            match self.0[index] {
                7 => Err(data2vec_core::Error::Input(format!("{index}: broken"))),
                _ => Ok(index as i64),
            }
        }

        fn collate(
            &self,
            examples: Vec<i64>,
            _: &mut StdRng,
        ) -> data2vec_core::Result<LabelledBatch> {
            let inputs = Tensor::zeros([examples.len() as i64, 1], (Kind::Float, Device::Cpu));
            let targets = Targets::Classes(Tensor::from_slice(&examples));
            Ok(LabelledBatch { batch: Batch::new(inputs)?, targets })
        }
    }

    /// Returns the indices of each batch.
    fn batches(sizes: &[u64], limit: usize) -> (Vec<Vec<usize>>, Vec<String>) {
        let mut batches = Vec::new();
        let options = BatchOptions { budget: None, limit, seed: 1 };
        let skipped =
            for_each_batch(&Sizes(sizes.to_vec()), options, &mut |_| {}, |indices, batch| {
                assert_eq!(batch.batch.rows(), indices.len() as i64);
                batches.push(indices.to_vec());
                Ok(())
            });
        (batches, skipped.expect("examples"))
    }

    #[test]
    fn one_long_example_does_not_make_all_batches_large() {
        let mut sizes = vec![2; 1_000];
        sizes[3] = 73;
        let (batches, _) = batches(&sizes, usize::MAX);
        let size = |batch: &Vec<usize>| {
            batch.len() as u64 * batch.iter().map(|&i| sizes[i]).max().unwrap_or(0)
        };
        assert!(batches.iter().all(|batch| size(batch) <= 128), "{batches:?}");
        let mut all: Vec<usize> = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn limits_and_skips() {
        let (batches, skipped) = batches(&[7, 5, 5, 7, 5, 5], 4);
        assert_eq!(batches.concat().len() + skipped.len(), 4);
        let none = for_each_batch(
            &Sizes(vec![7, 7]),
            BatchOptions { budget: None, limit: 9, seed: 1 },
            &mut |_| {},
            |_, _| Ok(()),
        );
        assert!(none.is_err());
    }
}
