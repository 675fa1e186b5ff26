//! The trait of data sets: examples with a size, loaded one by one and collated to batches.

use rand::rngs::StdRng;

use crate::Result;

/// A data set whose examples can be collated to batches.
///
/// # For implementors
/// [`Dataset::load`] runs on several worker threads at once. Draw all random numbers from the `rng`
/// argument, so that an epoch is reproducible and can be resumed.
pub trait Dataset: Send + Sync + 'static {
    /// One loaded example, before collation.
    type Example: Send;

    /// Type of a batch: [`Batch`](crate::Batch) for pretraining,
    /// [`LabelledBatch`](crate::LabelledBatch) for fine-tuning.
    type Batch: Send + 'static;

    /// Returns the number of examples.
    fn len(&self) -> usize;

    /// Returns whether there are no examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the size of an example after cropping, at least 1, in units of the batch budget
    /// (speech: samples, images: 1, text: tokens).
    fn size(&self, index: usize) -> u64;

    /// Returns the name of an example for messages, such as its path and line.
    fn name(&self, index: usize) -> String;

    /// Called before the examples of a batch are loaded, so that remote data can be fetched
    /// together.
    fn prefetch(&self, _indices: &[u32]) {}

    /// Reads and prepares one example.
    ///
    /// # Errors
    /// Returns an error naming the example and the cause. The loader counts it and skips the
    /// example, up to its limit.
    fn load(&self, index: usize, rng: &mut StdRng) -> Result<Self::Example>;

    /// Collates one or more loaded examples to a batch.
    ///
    /// # Errors
    /// Returns an error if the examples cannot form a batch.
    fn collate(&self, examples: Vec<Self::Example>, rng: &mut StdRng) -> Result<Self::Batch>;
}
