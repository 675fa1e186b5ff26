//! Random distributions that `rand` does not provide.

use std::f64::consts::TAU;

use rand::{Rng, RngExt};

/// Samples from N(0, 1) (Box and Muller 1958).
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    let length = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt(); // avoids ln(0)
    length * (TAU * rng.random::<f64>()).cos()
}

/// Samples from Beta(`alpha`, `alpha`); `alpha` must be at least 0.1.
pub(crate) fn symmetric_beta(alpha: f64, rng: &mut impl Rng) -> f64 {
    if alpha > 0.5 {
        // A coordinate of a random point in a disc (Ulrich 1984).
        let square = 1.0 - rng.random::<f64>().powf(2.0 / (2.0 * alpha - 1.0));
        return 0.5 + 0.5 * square.sqrt() * (TAU * rng.random::<f64>()).cos();
    }
    // Rejection sampling (Jöhnk 1964) accepts more than three of four pairs.
    loop {
        let a = (1.0 - rng.random::<f64>()).powf(1.0 / alpha);
        let b = (1.0 - rng.random::<f64>()).powf(1.0 / alpha);
        if a + b <= 1.0 {
            return a / (a + b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    /// Returns mean, variance and fourth central moment of 100,000 samples.
    fn moments(draw: impl FnMut() -> f64) -> [f64; 3] {
        let draws: Vec<f64> = std::iter::repeat_with(draw).take(100_000).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let central = |power| draws.iter().map(|x| (x - mean).powi(power)).sum::<f64>() / 1e5;
        [mean, central(2), central(4)]
    }

    #[test]
    fn samples_have_the_moments_of_their_distribution() {
        let mut rng = StdRng::seed_from_u64(1);
        // Tolerances are five standard errors.
        let [mean, variance, fourth] = moments(|| normal(&mut rng));
        assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023, "{mean} {variance}");
        assert!((fourth - 3.0).abs() < 0.16, "{fourth}");
        for alpha in [0.1, 0.3, 0.5, 0.8, 1.0, 4.0] {
            let [mean, variance, fourth] = moments(|| symmetric_beta(alpha, &mut rng));
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            let kurtosis = 3.0 * (2.0 * alpha + 1.0) / (2.0 * alpha + 3.0);
            assert!((mean - 0.5).abs() < 0.008, "{alpha}: {mean}");
            assert!((variance - expected).abs() < 0.02 * expected, "{alpha}: {variance}");
            let ratio = fourth / expected.powi(2) / kurtosis;
            assert!((ratio - 1.0).abs() < 0.06, "{alpha}: {ratio}");
        }
    }
}
