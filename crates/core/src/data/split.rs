//! Stratified splits of labelled data sets that do not depend on the order of examples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::random::{Purpose, seed_for};

/// How many examples of each class to take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amount {
    /// A fraction of the class, but at least one example and at most all but one.
    Share(f64),
    /// A number of examples, or all if there are fewer.
    Each(usize),
}

/// Splits examples by class and returns the indices of the remaining and of the taken ones, both
/// sorted.
///
/// An example is a pair of its class and a key, a hash of its content. The split depends only on
/// the keys and `seed`, and a larger amount includes a smaller one. With [`Amount::Share`],
/// duplicates (same class and key) stay on the same side.
pub fn stratified_split(
    examples: &[(u64, u64)],
    amount: Amount,
    seed: u64,
) -> (Vec<usize>, Vec<usize>) {
    let mut classes: BTreeMap<u64, Vec<(u64, usize)>> = BTreeMap::new();
    for (index, &(class, key)) in examples.iter().enumerate() {
        let rank = seed_for(seed, Purpose::Split, &[key]);
        classes.entry(class).or_default().push((rank, index));
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
        taken.extend(all[..cut].iter().map(|&(_, index)| index));
        left.extend(all[cut..].iter().map(|&(_, index)| index));
    }
    left.sort_unstable();
    taken.sort_unstable();
    (left, taken)
}

/// Returns the error of a split that leaves one side empty. The split holds out the examples whose
/// hash, one of `hashes`, is in the first `share` of all 64-bit values. `what` describes the
/// examples, as in "recordings".
pub fn empty_side(share: f64, hashes: &[u64], what: &str) -> Error {
    let count = |share: f64| {
        let below = (share * 2_f64.powi(64)) as u64;
        hashes.iter().filter(|&&hash| hash < below).count()
    };
    let works = |share: &f64| (1..hashes.len()).contains(&count(*share));
    let shares = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
    let distance = |other: &f64| (other - share).abs();
    let near = shares.into_iter().filter(works).min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let hint = near.map_or(String::new(), |near| format!("try {near}, or "));
    let (held_out, all) = (count(share), hashes.len());
    let reason = format!(
        "{share} holds out {held_out} of {all} {what}; {hint}set it to 0 to turn evaluation off"
    );
    Error::config("train.held_out", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 examples of class 0, 20 of class 1, one of class 2; the key is the index.
    fn examples() -> Vec<(u64, u64)> {
        (0..121).map(|i| (u64::from(i >= 100) + u64::from(i >= 120), i)).collect()
    }

    fn count_class(indices: &[usize], class: u64) -> usize {
        indices.iter().filter(|&&index| examples()[index].0 == class).count()
    }

    #[test]
    fn empty_side_suggests_the_nearest_share_that_works() {
        let hashes = [0.15, 0.4, 0.9].map(|share: f64| (share * 2_f64.powi(64)) as u64);
        let error = |share, hashes: &[u64]| empty_side(share, hashes, "files").to_string();
        assert_eq!(
            error(0.01, &hashes),
            "train.held_out: 0.01 holds out 0 of 3 files; try 0.2, or set it to 0 to turn evaluation off"
        );
        assert!(error(0.99, &hashes).contains("holds out 3 of 3 files; try 0.9, or"));
        assert!(error(0.5, &hashes[..1]).contains("1 of 1 files; set it to 0"));
    }

    #[test]
    fn takes_from_every_class() {
        let (left, taken) = stratified_split(&examples(), Amount::Share(0.1), 1);
        assert_eq!([0, 1, 2].map(|class| count_class(&taken, class)), [10, 2, 0]);
        assert_eq!(left.len() + taken.len(), 121);
        assert!(left.iter().all(|index| !taken.contains(index)));
        let (_, few) = stratified_split(&examples(), Amount::Share(0.001), 1);
        assert_eq!([0, 1, 2].map(|class| count_class(&few, class)), [1, 1, 0]); // at least one
        assert!(few.iter().all(|index| taken.contains(index)));
        let (left, each) = stratified_split(&examples(), Amount::Each(5), 1);
        assert_eq!([0, 1, 2].map(|class| count_class(&each, class)), [5, 5, 1]);
        assert_eq!(count_class(&left, 2), 0);
        assert_ne!(stratified_split(&examples(), Amount::Share(0.1), 2).1, taken);
    }

    #[test]
    fn ignores_order_and_keeps_duplicates_together() {
        let all: Vec<(u64, u64)> = (0..200).map(|i| (0, i / 2)).collect(); // each key twice
        let (left, taken) = stratified_split(&all, Amount::Share(0.25), 3);
        let keys = |indices: &[usize]| indices.iter().map(|&p| all[p].1).collect::<Vec<_>>();
        let (left, taken) = (keys(&left), keys(&taken));
        assert!(taken.iter().all(|key| !left.contains(key)));
        assert!((50..=51).contains(&taken.len()), "{}", taken.len());
        let backwards: Vec<(u64, u64)> = all.iter().rev().copied().collect();
        let (_, again) = stratified_split(&backwards, Amount::Share(0.25), 3);
        let mut again: Vec<u64> = again.iter().map(|&p| backwards[p].1).collect();
        again.reverse();
        assert_eq!(again, taken);
    }
}
