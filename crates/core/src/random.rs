//! Randomness as a function of what it is for: a run repeats, and resumes, without saved state.

use rand::{SeedableRng, rngs::StdRng};

/// What a stream of random numbers is for; two purposes never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights.
    Weights = 1,
    /// Order of the examples of an epoch.
    Order = 2,
    /// Loading one example: crops, augmentation.
    Example = 3,
    /// Putting a batch together.
    Collate = 4,
    /// Masks, layer drop and the seed of dropout, of one micro-batch.
    Step = 5,
    /// Masks of the held-out split.
    HeldOut = 6,
    /// Which examples are held out.
    Split = 7,
    /// Which of a step's tokens are looked at for figures of health.
    Health = 8,
}

/// A number that depends on all its inputs, for seeding.
pub fn seed_for(seed: u64, purpose: Purpose, at: &[u64]) -> u64 {
    // splitmix64's finaliser after each input: neighbouring steps get unrelated streams.
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let step = |acc: u64, value: u64| mix(acc.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(value));
    at.iter().fold(step(mix(seed), purpose as u64), |acc, &value| step(acc, value.wrapping_add(1)))
}

/// FNV-1a: the same on every machine and in every version, for what follows a name or a text.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The random stream of `purpose` at a place: `(step, micro-batch)`, `(epoch, example)`, ….
pub fn stream(seed: u64, purpose: Purpose, at: &[u64]) -> StdRng {
    StdRng::seed_from_u64(seed_for(seed, purpose, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_seed_purpose_and_place() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..4 {
            for purpose in [Purpose::Order, Purpose::Step] {
                for step in 0..50 {
                    assert!(seen.insert(seed_for(seed, purpose, &[step])));
                    assert!(seen.insert(seed_for(seed, purpose, &[step, 0])));
                }
            }
        }
        assert_eq!(seed_for(1, Purpose::Step, &[7, 2]), seed_for(1, Purpose::Step, &[7, 2]));
    }
}
