//! Several data sets as one, each with its share of what is trained on.

use rand::rngs::StdRng;

use crate::{Dataset, Error, Result};

/// One or more data sets of a kind. An epoch meets every example at least once; of a data set that is too small for
/// its share, all examples again and again, with other random choices each time, until the share is full.
#[derive(Debug)]
pub struct MixtureDataset<D> {
    parts: Vec<Part<D>>,
}

#[derive(Debug)]
struct Part<D> {
    dataset: D,
    /// Places before its first.
    start: usize,
    /// Places that are its own, at least as many as it has examples.
    share: usize,
}

impl<D: Dataset> MixtureDataset<D> {
    /// All examples of all of `datasets`, once an epoch.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no data set.
    pub fn whole(datasets: Vec<D>) -> Result<Self> {
        let shares = datasets.iter().map(Dataset::len).collect();
        Self::of(datasets, shares)
    }

    /// Data sets with weights, by which an epoch's examples are theirs: with 3 and 1, three of four are of the
    /// first.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no data set, one is empty, or a weight is no number above 0.
    pub fn weighted(datasets: Vec<(D, f64)>) -> Result<Self> {
        for (number, (dataset, weight)) in datasets.iter().enumerate() {
            if !(*weight > 0.0 && weight.is_finite()) {
                let reason = format!("source {number} has weight {weight}, which is not above 0");
                return Err(Error::config("weight", reason));
            }
            if dataset.is_empty() {
                return Err(Error::config("data", format!("source {number} has no examples")));
            }
        }
        // Examples for each unit of weight, so that the largest for its weight is met just once.
        let density = datasets.iter().map(|(dataset, weight)| dataset.len() as f64 / weight);
        let density = density.fold(0.0, f64::max);
        let share =
            |(dataset, weight): &(D, f64)| ((density * weight).round() as usize).max(dataset.len());
        let shares = datasets.iter().map(share).collect();
        Self::of(datasets.into_iter().map(|(dataset, _)| dataset).collect(), shares)
    }

    fn of(datasets: Vec<D>, shares: Vec<usize>) -> Result<Self> {
        if datasets.is_empty() {
            return Err(Error::config("data", "names no source"));
        }
        let mut start = 0;
        let part = |(dataset, share)| {
            let part = Part { dataset, start, share };
            start += share;
            part
        };
        Ok(Self { parts: datasets.into_iter().zip(shares).map(part).collect() })
    }

    /// The first of the data sets.
    pub fn first(&self) -> &D {
        &self.parts[0].dataset
    }

    /// The data set whose example stands at `index`, and the example's number there.
    fn at(&self, index: usize) -> (&D, usize) {
        let number = self.parts.partition_point(|part| part.start <= index) - 1;
        let part = &self.parts[number];
        (&part.dataset, (index - part.start) % part.dataset.len())
    }
}

impl<D: Dataset> Dataset for MixtureDataset<D> {
    type Example = D::Example;
    type Batch = D::Batch;

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.share).sum()
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
            let places = part.start..part.start + part.share;
            let own = indices.iter().filter(|&&index| places.contains(&(index as usize)));
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

    /// Examples that are their names.
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
    fn one_data_set_is_as_it_was() {
        let alone = MixtureDataset::whole(vec![letters("abcd")]).expect("one");
        assert_eq!((names(&alone).as_str(), alone.size(3)), ("abcd", 4));
        let weighted = MixtureDataset::weighted(vec![(letters("abcd"), 0.1)]).expect("one");
        assert_eq!(names(&weighted), "abcd");
    }

    #[test]
    fn shares_follow_weights_and_everything_is_met() {
        let both = MixtureDataset::whole(vec![letters("abc"), letters("xy")]).expect("two");
        assert_eq!(names(&both), "abcxy");
        // Half and half of 6 and 2: the small one three times.
        let half = MixtureDataset::weighted(vec![(letters("abcdef"), 1.0), (letters("xy"), 1.0)]);
        assert_eq!(names(&half.expect("two")), "abcdefxyxyxy");
        // Three of four of the small one: 18 for 6.
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
    fn each_fetches_its_own() {
        let mixed = MixtureDataset::weighted(vec![(letters("abc"), 1.0), (letters("xy"), 1.0)]);
        let mixed = mixed.expect("two");
        mixed.prefetch(&[0, 3, 5, 2, 4]);
        let fetched = |part: usize| mixed.parts[part].dataset.1.lock().expect("no panic").clone();
        assert_eq!((fetched(0), fetched(1)), (vec![0, 2], vec![0, 0, 1]));
    }

    #[test]
    fn what_cannot_be_mixed_is_refused() {
        assert!(MixtureDataset::<Letters>::whole(Vec::new()).is_err());
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = MixtureDataset::weighted(vec![(letters("a"), 1.0), (letters("b"), weight)]);
            assert!(error.unwrap_err().to_string().contains("source 1"), "{weight}");
        }
        let empty = MixtureDataset::weighted(vec![(letters(""), 1.0)]);
        assert!(empty.unwrap_err().to_string().contains("no examples"));
    }
}
