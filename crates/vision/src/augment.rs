//! Random resized crops.

use rand::{Rng, RngExt};

use crate::config::VisionDataConfig;
use crate::resample::Crop;

/// Number of random crops tried before the center crop is used.
const ATTEMPTS: usize = 10;

impl VisionDataConfig {
    /// Samples a crop of an image of `height` × `width` pixels, as torchvision's
    /// `RandomResizedCrop` does.
    ///
    /// If ten samples do not fit into the image, returns the largest center crop whose aspect ratio
    /// is within `crop_ratio`.
    pub fn sample_crop(&self, height: usize, width: usize, rng: &mut impl Rng) -> Crop {
        let between = |[a, b]: [f64; 2], rng: &mut _| a + (b - a) * RngExt::random::<f64>(rng);
        for _ in 0..ATTEMPTS {
            let area = (height * width) as f64 * between(self.crop_scale, rng);
            let ratio = between(self.crop_ratio.map(f64::ln), rng).exp();
            let w = (area * ratio).sqrt().round_ties_even() as usize;
            let h = (area / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = rng.random_range(0..=height - h);
                let left = rng.random_range(0..=width - w);
                return Crop { top, left, height: h, width: w };
            }
        }
        let [low, high] = self.crop_ratio;
        Crop::center((width as f64 / height as f64).clamp(low, high), height, width)
    }
}
