//! A weighted mixture of data sets.

use rand::rngs::StdRng;

use crate::{Dataset, Error, Result};

/// A concatenation or weighted mixture of data sets of one type.
///
/// An epoch contains every example at least once. A data set that is too small for its weight is
/// repeated, with different augmentation each time.
#[derive(Debug)]
pub struct MixtureDataset<D> {
    parts: Vec<Part<D>>,
}

#[derive(Debug)]
struct Part<D> {
    dataset: D,
    /// Index of its first example in the mixture.
    start: usize,
    /// Number of its examples in an epoch, repetitions included.
    count: usize,
}

impl<D: Dataset> MixtureDataset<D> {
    /// Concatenates `datasets`: an epoch contains every example once.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if there is no data set.
    pub fn concat(datasets: Vec<D>) -> Result<Self> {
        let counts = datasets.iter().map(Dataset::len).collect();
        Self::with_counts(datasets, counts)
    }

    /// Mixes `datasets` by weight: with weights 3 and 1, three of four examples of an epoch are
    /// from the first.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if there is no data set, one is empty, or a weight is not above 0.
    pub fn weighted(datasets: Vec<(D, f64)>) -> Result<Self> {
        for (number, (dataset, weight)) in datasets.iter().enumerate() {
            if !(*weight > 0.0 && weight.is_finite()) {
                let reason = format!("source {number}: weight must be above 0, not {weight}");
                return Err(Error::config("weight", reason));
            }
            if dataset.is_empty() {
                return Err(Error::config("data", format!("source {number} has no examples")));
            }
        }
        // Examples per unit of weight, such that the largest data set for its weight is not
        // repeated.
        let density = datasets.iter().map(|(dataset, weight)| dataset.len() as f64 / weight);
        let density = density.fold(0.0, f64::max);
        let count =
            |(dataset, weight): &(D, f64)| ((density * weight).round() as usize).max(dataset.len());
        let counts = datasets.iter().map(count).collect();
        Self::with_counts(datasets.into_iter().map(|(dataset, _)| dataset).collect(), counts)
    }

    fn with_counts(datasets: Vec<D>, counts: Vec<usize>) -> Result<Self> {
        if datasets.is_empty() {
            return Err(Error::config("data", "names no source"));
        }
        let mut start = 0;
        let part = |(dataset, count)| {
            let part = Part { dataset, start, count };
            start += count;
            part
        };
        Ok(Self { parts: datasets.into_iter().zip(counts).map(part).collect() })
    }

    /// Returns the first data set.
    pub fn first(&self) -> &D {
        &self.parts[0].dataset
    }

    /// Maps `index` to a data set and the index of the example in it.
    fn at(&self, index: usize) -> (&D, usize) {
        let part = self.parts.partition_point(|part| part.start <= index) - 1;
        let part = &self.parts[part];
        (&part.dataset, (index - part.start) % part.dataset.len())
    }
}

impl<D: Dataset> Dataset for MixtureDataset<D> {
    type Example = D::Example;
    type Batch = D::Batch;

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.count).sum()
    }

    fn size(&self, index: usize) -> u64 {
        let (dataset, index) = self.at(index);
        dataset.size(index)
    }

    fn name(&self, index: usize) -> String {
        let (dataset, index) = self.at(index);
        dataset.name(index)
    }

    fn prefetch(&self, indices: &[u32]) {
        for part in &self.parts {
            let range = part.start..part.start + part.count;
            let own = indices.iter().filter(|&&index| range.contains(&(index as usize)));
            let own: Vec<u32> = own
                .map(|&index| ((index as usize - part.start) % part.dataset.len()) as u32)
                .collect();
            part.dataset.prefetch(&own);
        }
    }

    fn load(&self, index: usize, rng: &mut StdRng) -> Result<Self::Example> {
        let (dataset, index) = self.at(index);
        dataset.load(index, rng)
    }

    fn collate(&self, examples: Vec<Self::Example>, rng: &mut StdRng) -> Result<Self::Batch> {
        self.first().collate(examples, rng)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    /// A data set whose examples are the letters of a string.
    #[derive(Debug)]
    struct Letters(&'static str, Mutex<Vec<u32>>);

    fn letters(all: &'static str) -> Letters {
        Letters(all, Mutex::default())
    }

    impl Dataset for Letters {
        type Example = String;
        type Batch = Vec<String>;

        fn len(&self) -> usize {
            self.0.len()
        }

        fn size(&self, index: usize) -> u64 {
            index as u64 + 1
        }

        fn name(&self, index: usize) -> String {
            self.0[index..=index].to_owned()
        }

        fn prefetch(&self, indices: &[u32]) {
            self.1.lock().expect("no panic").extend(indices);
        }

        fn load(&self, index: usize, _rng: &mut StdRng) -> Result<String> {
            Ok(self.name(index))
        }

        fn collate(&self, examples: Vec<String>, _rng: &mut StdRng) -> Result<Vec<String>> {
            Ok(examples)
        }
    }

    fn names(mixed: &MixtureDataset<Letters>) -> String {
        (0..mixed.len()).map(|index| mixed.name(index)).collect()
    }

    #[test]
    fn single_data_set_is_unchanged() {
        let alone = MixtureDataset::concat(vec![letters("abcd")]).expect("one");
        assert_eq!((names(&alone).as_str(), alone.size(3)), ("abcd", 4));
        let weighted = MixtureDataset::weighted(vec![(letters("abcd"), 0.1)]).expect("one");
        assert_eq!(names(&weighted), "abcd");
    }

    #[test]
    fn mixes_by_weight_and_contains_every_example() {
        let both = MixtureDataset::concat(vec![letters("abc"), letters("xy")]).expect("two");
        assert_eq!(names(&both), "abcxy");
        // Equal weights of 6 and 2 examples: the small data set is repeated three times.
        let half = MixtureDataset::weighted(vec![(letters("abcdef"), 1.0), (letters("xy"), 1.0)]);
        assert_eq!(names(&half.expect("two")), "abcdefxyxyxy");
        // Weights 1:3 of 6 and 2 examples: 18 examples of the small data set.
        let most = MixtureDataset::weighted(vec![(letters("abcdef"), 0.25), (letters("xy"), 0.75)]);
        let most = most.expect("two");
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for index in 0..most.len() {
            *counts.entry(most.name(index)).or_default() += 1;
        }
        assert_eq!((most.len(), counts["a"], counts["x"], counts["y"]), (24, 1, 9, 9));
        assert_eq!((most.size(6), most.size(7), most.size(8)), (1, 2, 1));
    }

    #[test]
    fn prefetch_maps_indices_to_data_sets() {
        let mixed = MixtureDataset::weighted(vec![(letters("abc"), 1.0), (letters("xy"), 1.0)]);
        let mixed = mixed.expect("two");
        mixed.prefetch(&[0, 3, 5, 2, 4]);
        let fetched = |part: usize| mixed.parts[part].dataset.1.lock().expect("no panic").clone();
        assert_eq!((fetched(0), fetched(1)), (vec![0, 2], vec![0, 0, 1]));
    }

    #[test]
    fn rejects_empty_data_sets_and_invalid_weights() {
        assert!(MixtureDataset::<Letters>::concat(Vec::new()).is_err());
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = MixtureDataset::weighted(vec![(letters("a"), 1.0), (letters("b"), weight)]);
            assert!(error.unwrap_err().to_string().contains("source 1"), "{weight}");
        }
        let empty = MixtureDataset::weighted(vec![(letters(""), 1.0)]);
        assert!(empty.unwrap_err().to_string().contains("no examples"));
    }
}
