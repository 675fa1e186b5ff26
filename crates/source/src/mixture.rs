//! Several sources as one, each with its share.

use crate::permutation::{Permutation, mix};
use crate::{Error, Result};

/// Which example of which source stands where in an epoch.
///
/// Every epoch has the same number of examples, and of each source the same number, its share. A source that is
/// smaller than its share is gone through more than once an epoch, a larger one in several epochs; no example comes
/// again before all others of its source have come. All of this is a function of the seed, the epoch and
/// the place: nothing is stored, and any place can be asked for.
#[derive(Clone, Debug)]
pub struct Mixture {
    seed: u64,
    len: u64,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    /// Its examples.
    len: u64,
    /// How many of an epoch's are its.
    share: u64,
    /// Where its share ends in the list of all.
    end: u64,
}

impl Mixture {
    /// Sources of that many examples, with weights that say how often one is drawn in relation to the others.
    /// An epoch has `len` examples, by default as many as all sources together.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no source, one is empty, a weight is no positive number, or an epoch is
    /// so short that a source has no share.
    pub fn new(sources: &[(usize, f64)], len: Option<usize>, seed: u64) -> Result<Self> {
        let bad = |reason: String| Err(Error::config("weights", reason));
        let weights: f64 = sources.iter().map(|&(_, weight)| weight).sum();
        if !(weights > 0.0 && weights.is_finite()) {
            return bad("name at least one source, with weights above 0".into());
        }
        let all = sources.iter().map(|&(len, _)| len as u64).sum();
        let len = len.map_or(all, |len| len as u64);
        let (mut parts, mut sum, mut end) = (Vec::new(), 0.0, 0);
        for (number, &(examples, weight)) in sources.iter().enumerate() {
            // Rounded sums: shares differ from the exact ones by less than one and add up.
            sum += weight;
            let next = (len as f64 * (sum / weights)).round() as u64;
            let share = next.saturating_sub(end);
            if !(weight > 0.0) || examples == 0 || share == 0 {
                let reason = format!("source {number} has {examples} examples, weight {weight}");
                return bad(format!("{reason}: that gives it no share of {len}"));
            }
            end = next;
            parts.push(Part { len: examples as u64, share, end });
        }
        Ok(Self { seed, len, parts })
    }

    /// Examples of an epoch, at least one.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Number of the source and of its example at place `index` of `epoch`.
    ///
    /// # Panics
    /// If an epoch has not so many.
    pub fn at(&self, epoch: u64, index: usize) -> (usize, usize) {
        assert!(index < self.len(), "place {index} of {}", self.len);
        let slot = Permutation::new(self.len, mix(self.seed, &[0, epoch])).at(index as u64);
        let number = self.parts.partition_point(|part| part.end <= slot);
        let Part { len, share, end } = self.parts[number];
        let drawn = u128::from(epoch) * u128::from(share) + u128::from(slot - (end - share));
        let (pass, place) = ((drawn / u128::from(len)) as u64, (drawn % u128::from(len)) as u64);
        let order = Permutation::new(len, mix(self.seed, &[1, number as u64, pass]));
        (number, order.at(place) as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn epoch(mixture: &Mixture, epoch: u64) -> Vec<(usize, usize)> {
        (0..mixture.len()).map(|index| mixture.at(epoch, index)).collect()
    }

    #[test]
    fn shares_are_exact_and_passes_without_repetition() {
        // 100, 10 and 1000 examples; 80 draws an epoch: 20, 40 and 20.
        let mixture =
            Mixture::new(&[(100, 1.0), (10, 2.0), (1000, 1.0)], Some(80), 3).expect("one");
        let mut drawn: HashMap<usize, Vec<usize>> = HashMap::new();
        for number in 0..50 {
            let all = epoch(&mixture, number);
            for (source, share) in [(0, 20), (1, 40), (2, 20)] {
                let mut of: Vec<usize> =
                    all.iter().filter(|at| at.0 == source).map(|at| at.1).collect();
                assert_eq!(of.len(), share);
                of.sort_unstable();
                drawn.entry(source).or_default().extend(of);
            }
        }
        // The small one four times in each epoch, the large ones in 5 and in 50 epochs.
        for (source, len, draws) in [(0, 100, 100), (1, 10, 40), (2, 1000, 1000)] {
            for pass in drawn[&source].chunks(draws) {
                let mut times = vec![0; len];
                pass.iter().for_each(|&at| times[at] += 1);
                assert!(times.iter().all(|&times| times == draws / len), "{source} {times:?}");
            }
        }
        assert_ne!(epoch(&mixture, 0), epoch(&mixture, 1));
        assert_eq!(epoch(&mixture, 7), epoch(&mixture.clone(), 7));
        let first: Vec<usize> = epoch(&mixture, 0).iter().take(20).map(|at| at.0).collect();
        assert!([0, 1, 2].iter().all(|source| first.contains(source)), "not mixed: {first:?}");
    }

    #[test]
    fn without_a_length_equal_weights_by_size_give_every_example_once() {
        let mixture = Mixture::new(&[(30, 30.0), (70, 70.0)], None, 1).expect("one");
        let mut all = epoch(&mixture, 0);
        all.sort_unstable();
        let whole = (0..30).map(|at| (0, at)).chain((0..70).map(|at| (1, at)));
        assert!(all.into_iter().eq(whole));
    }

    #[test]
    fn what_has_no_share_is_refused() {
        for sources in [
            &[][..],
            &[(1, 0.0)],
            &[(1, 1.0), (1, -0.5)],
            &[(0, 1.0), (1, 1.0)],
            &[(1, f64::NAN)],
            &[(1, f64::INFINITY)],
            &[(1, 1e-9), (1, 1.0)],
        ] {
            assert!(Mixture::new(sources, None, 1).is_err(), "{sources:?}");
        }
    }

    proptest! {
        #[test]
        fn shares_follow_weights(
            sources in prop::collection::vec((1_usize..50, 0.1_f64..10.0), 1..6),
            len in 200_usize..400,
            seed: u64,
        ) {
            let mixture = Mixture::new(&sources, Some(len), seed).expect("one");
            let all = epoch(&mixture, seed % 5);
            prop_assert_eq!(all.len(), len);
            let weights: f64 = sources.iter().map(|source| source.1).sum();
            for (number, &(examples, weight)) in sources.iter().enumerate() {
                let of = all.iter().filter(|at| at.0 == number);
                let share = len as f64 * weight / weights;
                prop_assert!((of.clone().count() as f64 - share).abs() <= 1.0);
                prop_assert!(of.clone().all(|at| at.1 < examples));
            }
        }
    }
}
