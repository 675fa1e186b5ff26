//! Division of an epoch into batches.

use rand::seq::SliceRandom;

use crate::{
    Dataset, Error, Result,
    random::{Purpose, stream},
};

/// Division of the data into batches.
///
/// Examples are sorted into buckets of similar size. An epoch shuffles the examples within each
/// bucket, then the batches. The budget counts every example at the largest size of its bucket, so
/// the boundaries do not depend on the shuffle and **every epoch has the same number of batches**:
/// one integer is a position in the endless stream of batches.
#[derive(Debug)]
pub struct Plan {
    /// All examples, largest first.
    order: Vec<u32>,
    /// End of each bucket in `order`.
    buckets: Vec<usize>,
    /// End of each batch in `order`.
    cuts: Vec<usize>,
}

impl Plan {
    /// Plans batches of at most `max_examples` examples whose number × largest size is at most
    /// `budget`.
    ///
    /// The smallest size of a bucket is at least `1 − tolerance` of its largest.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if there are no examples or one is larger than the budget.
    pub fn new<D: Dataset>(
        dataset: &D,
        budget: u64,
        max_examples: usize,
        tolerance: f64,
    ) -> Result<Self> {
        let len = u32::try_from(dataset.len())
            .map_err(|_| Error::config("data", "has more than 2^32 examples; split it"))?;
        if len == 0 {
            return Err(Error::config("data", "has no examples"));
        }
        let sizes: Vec<u64> = (0..len as usize).map(|index| dataset.size(index).max(1)).collect();
        let mut order: Vec<u32> = (0..len).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(sizes[index as usize])); // stable
        let largest = order[0] as usize;
        if sizes[largest] > budget {
            let (name, size) = (dataset.name(largest), sizes[largest]);
            let reason = format!("{budget} is smaller than the example {name} of size {size}");
            return Err(Error::config("batch budget", reason));
        }

        let (mut buckets, mut cuts) = (Vec::new(), Vec::new());
        let (mut bucket_size, mut batch_start, mut batch_size) =
            (sizes[largest], 0, sizes[largest]);
        for (at, &index) in order.iter().enumerate() {
            let size = sizes[index as usize];
            if (size as f64) < (1.0 - tolerance) * bucket_size as f64 {
                buckets.push(at);
                bucket_size = size;
            }
            // A batch that began in an earlier bucket keeps the size of that bucket.
            let count = at - batch_start;
            let cost = (count as u64 + 1).saturating_mul(batch_size);
            if count > 0 && (count >= max_examples || cost > budget) {
                cuts.push(at);
                batch_start = at;
            }
            if at == batch_start {
                batch_size = bucket_size;
            }
        }
        buckets.push(order.len());
        cuts.push(order.len());
        Ok(Self { order, buckets, cuts })
    }

    /// Returns the number of batches of an epoch.
    pub fn batches(&self) -> u64 {
        self.cuts.len() as u64
    }

    /// Returns the number of examples and the largest size of the batch that needs most memory.
    ///
    /// That is the batch with the largest number × size, on ties the one with the largest size.
    pub fn heaviest<D: Dataset>(&self, dataset: &D) -> (usize, u64) {
        let starts = std::iter::once(0).chain(self.cuts.iter().copied());
        let batches = starts.zip(&self.cuts).map(|(start, &end)| {
            // Any example of the bucket can be in the batch: assume the largest.
            let bucket = self.buckets.partition_point(|&bucket| bucket <= start);
            let first = if bucket == 0 { 0 } else { self.buckets[bucket - 1] };
            (end - start, dataset.size(self.order[first] as usize).max(1))
        });
        batches.max_by_key(|&(count, size)| (count as u64 * size, size)).unwrap_or_default()
    }

    /// Returns the examples of every batch of `epoch`, in order.
    pub fn epoch(&self, seed: u64, epoch: u64) -> Epoch {
        let mut rng = stream(seed, Purpose::Order, &[epoch]);
        let mut order = self.order.clone();
        let mut start = 0;
        for &end in &self.buckets {
            order[start..end].shuffle(&mut rng);
            start = end;
        }
        let starts = std::iter::once(0).chain(self.cuts.iter().copied());
        let mut batches: Vec<(usize, usize)> = starts.zip(self.cuts.iter().copied()).collect();
        batches.shuffle(&mut rng);
        Epoch { order, batches }
    }
}

/// The batches of one epoch.
#[derive(Debug)]
pub struct Epoch {
    order: Vec<u32>,
    /// Start and end of each batch in `order`.
    batches: Vec<(usize, usize)>,
}

impl Epoch {
    /// Returns the examples of batch `index` of the epoch.
    pub fn batch(&self, index: u64) -> &[u32] {
        let (start, end) = self.batches[index as usize];
        &self.order[start..end]
    }
}
