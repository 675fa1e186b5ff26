//! Seeded random streams: every stream is a function of seed, purpose and position.
//!
//! A run is reproducible and resumes without saved generator state.

use rand::{SeedableRng, rngs::StdRng};

/// Purpose of a random stream; different purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights.
    Weights = 1,
    /// Order of the examples of an epoch.
    Order = 2,
    /// Loading of one example: crops, augmentation.
    Example = 3,
    /// Collation of a batch.
    Collate = 4,
    /// Masks, LayerDrop and the dropout seed of one micro-batch.
    Step = 5,
    /// Masks of the held-out split.
    HeldOut = 6,
    /// Choice of the held-out examples.
    Split = 7,
    /// Choice of the tokens on which health metrics are measured.
    Health = 8,
}

/// Derives a seed from `seed`, `purpose` and the position `at`.
pub fn seed_for(seed: u64, purpose: Purpose, at: &[u64]) -> u64 {
    // splitmix64's finaliser after each input: neighbouring steps get uncorrelated streams.
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let step = |acc: u64, value: u64| mix(acc.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(value));
    at.iter().fold(step(mix(seed), purpose as u64), |acc, &value| step(acc, value.wrapping_add(1)))
}

/// Computes the 64-bit FNV-1a hash, which is stable across machines and versions.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Returns the random stream of `purpose` at a position: `(step, micro-batch)`, `(epoch, example)`,
/// ….
pub fn stream(seed: u64, purpose: Purpose, at: &[u64]) -> StdRng {
    StdRng::seed_from_u64(seed_for(seed, purpose, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_seed_purpose_and_position() {
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
