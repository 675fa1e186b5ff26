//! Sides of a labelled data set: by what its examples are, not by the order they came in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::random::{Purpose, seed_for};

/// How much of each class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amount {
    /// This share of it, but one example at least, and all but one at most.
    Share(f64),
    /// So many examples, or all if there are fewer.
    Each(usize),
}

/// Places of the examples that are left, and of those that are taken, both sorted.
///
/// An example is given by its class and a key, a hash of its content. Which ones are taken depends on keys
/// and `seed` alone; more of them include fewer. Examples of a class with one key stay together where a
/// share is taken, so that none is on both sides.
pub fn stratified(examples: &[(u64, u64)], amount: Amount, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut classes: BTreeMap<u64, Vec<(u64, usize)>> = BTreeMap::new();
    for (place, &(class, key)) in examples.iter().enumerate() {
        let rank = seed_for(seed, Purpose::Split, &[key]);
        classes.entry(class).or_default().push((rank, place));
    }
    let (mut left, mut taken) = (Vec::new(), Vec::new());
    for (_, mut all) in classes {
        all.sort_unstable();
        let cut = match amount {
            Amount::Each(count) => count.min(all.len()),
            Amount::Share(share) => {
                let count = (share * all.len() as f64).round() as usize;
                let mut cut = count.clamp(1.min(all.len() - 1), all.len() - 1);
                while cut > 0 && cut < all.len() && all[cut].0 == all[cut - 1].0 {
                    cut += 1;
                }
                cut
            }
        };
        taken.extend(all[..cut].iter().map(|&(_, place)| place));
        left.extend(all[cut..].iter().map(|&(_, place)| place));
    }
    left.sort_unstable();
    taken.sort_unstable();
    (left, taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 examples of class 0, 20 of class 1, one of class 2; keys are their places.
    fn examples() -> Vec<(u64, u64)> {
        (0..121).map(|i| (u64::from(i >= 100) + u64::from(i >= 120), i)).collect()
    }

    fn of_class(places: &[usize], class: u64) -> usize {
        places.iter().filter(|&&place| examples()[place].0 == class).count()
    }

    #[test]
    fn every_class_has_its_share() {
        let (left, taken) = stratified(&examples(), Amount::Share(0.1), 1);
        assert_eq!([0, 1, 2].map(|class| of_class(&taken, class)), [10, 2, 0]);
        assert_eq!(left.len() + taken.len(), 121);
        assert!(left.iter().all(|place| !taken.contains(place)));
        let (_, few) = stratified(&examples(), Amount::Share(0.001), 1);
        assert_eq!([0, 1, 2].map(|class| of_class(&few, class)), [1, 1, 0]); // one at least
        assert!(few.iter().all(|place| taken.contains(place)));
        let (left, each) = stratified(&examples(), Amount::Each(5), 1);
        assert_eq!([0, 1, 2].map(|class| of_class(&each, class)), [5, 5, 1]);
        assert_eq!(of_class(&left, 2), 0);
        assert_ne!(stratified(&examples(), Amount::Share(0.1), 2).1, taken);
    }

    #[test]
    fn order_does_not_matter_and_doubles_stay_together() {
        let all: Vec<(u64, u64)> = (0..200).map(|i| (0, i / 2)).collect(); // each key twice
        let (left, taken) = stratified(&all, Amount::Share(0.25), 3);
        let keys = |places: &[usize]| places.iter().map(|&p| all[p].1).collect::<Vec<_>>();
        let (left, taken) = (keys(&left), keys(&taken));
        assert!(taken.iter().all(|key| !left.contains(key)));
        assert!((50..=51).contains(&taken.len()), "{}", taken.len());
        let backwards: Vec<(u64, u64)> = all.iter().rev().copied().collect();
        let (_, again) = stratified(&backwards, Amount::Share(0.25), 3);
        let mut again: Vec<u64> = again.iter().map(|&p| backwards[p].1).collect();
        again.reverse();
        assert_eq!(again, taken);
    }
}
