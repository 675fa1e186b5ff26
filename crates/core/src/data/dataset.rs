//! What a data set is to the trainer: examples with a size, loaded one by one, collated to batches.

use rand::rngs::StdRng;

use crate::Result;

/// Examples of one kind that can be put into batches.
///
/// # For implementors
/// [`Dataset::load`] runs on several worker threads at once. All randomness comes from the `rng`
/// that is handed in, so that an epoch can be repeated and resumed.
pub trait Dataset: Send + Sync + 'static {
    /// One loaded example, before collation.
    type Example: Send;

    /// What collated examples are: [`Batch`](crate::Batch) for pretraining,
    /// [`LabelledBatch`](crate::LabelledBatch) for fine-tuning.
    type Batch: Send + 'static;

    /// How many examples there are.
    fn len(&self) -> usize;

    /// Whether there is no example at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The example's size in the unit of the batch budget (speech: samples, images: 1, text:
    /// tokens), as it will be after cropping; at least 1.
    fn size(&self, index: usize) -> u64;

    /// What to call the example in a message: its path, its line.
    fn name(&self, index: usize) -> String;

    /// Told before the examples of a batch are loaded: what lies far away can be fetched at once.
    fn prefetch(&self, _indices: &[u32]) {}

    /// Reads and prepares one example.
    ///
    /// # Errors
    /// One that names the example and what is wrong with it. The loader counts it and goes on
    /// without the example, up to its limit.
    fn load(&self, index: usize, rng: &mut StdRng) -> Result<Self::Example>;

    /// Puts loaded examples, at least one, into a batch.
    ///
    /// # Errors
    /// If the examples do not go together.
    fn collate(&self, examples: Vec<Self::Example>, rng: &mut StdRng) -> Result<Self::Batch>;
}
