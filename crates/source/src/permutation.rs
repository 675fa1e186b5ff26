//! Orders that need no memory: the place of each number is computed when it is asked for.

/// The numbers below `len` in an order of their own, by a cipher of four rounds over pairs of halves; what falls
/// outside goes through it again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    len: u64,
    /// Bits of a half.
    half: u32,
    seed: u64,
}

impl Permutation {
    /// The order of `seed`. `len` is at least 1 and below 2^62.
    pub fn new(len: u64, seed: u64) -> Self {
        let bits = (u64::BITS - (len - 1).leading_zeros()).max(2);
        Self { len, half: bits.div_ceil(2), seed }
    }

    /// The number at place `at`, which is below `len`.
    pub fn at(&self, at: u64) -> u64 {
        let mut number = at;
        loop {
            number = self.encipher(number);
            if number < self.len {
                return number;
            }
        }
    }

    fn encipher(&self, number: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(self.seed, &[round, right]) & mask));
        }
        left << self.half | right
    }
}

/// A number that depends on all of these: splitmix64's steps.
pub(crate) fn mix(seed: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(seed, |state, &part| {
        let mut z = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_number_comes_once(len in 1_u64..3000, seed: u64) {
            let order = Permutation::new(len, seed);
            let mut seen: Vec<u64> = (0..len).map(|at| order.at(at)).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..len));
        }
    }

    #[test]
    fn orders_are_mixed_and_differ() {
        let of = |seed| -> Vec<u64> {
            let order = Permutation::new(1000, seed);
            (0..1000).map(|at| order.at(at)).collect()
        };
        let same = |a: &[u64], b: &[u64]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        let plain: Vec<u64> = (0..1000).collect();
        assert!(same(&of(1), &of(2)) < 10 && same(&of(1), &plain) < 10);
        // In a random order a number and the next are a third of all apart.
        let steps = of(7).windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum::<u64>();
        assert!((280..390).contains(&(steps / 1000)), "{steps}");
    }
}
