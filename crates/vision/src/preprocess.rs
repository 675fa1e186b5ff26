//! Images as input of an encoder: resized, normalized, batched.

use data2vec_core::{Batch, Error, Result};
use tch::Tensor;

use crate::config::PatchEncoderConfig;
use crate::pixels::Pixels;
use crate::resample::Crop;

impl PatchEncoderConfig {
    /// Returns the image as `(C, H, W)` values: center crop of the encoder's aspect ratio, resized
    /// and normalized. The image must have the encoder's number of channels.
    pub(crate) fn prepare(&self, pixels: &Pixels) -> Vec<f32> {
        let [height, width] = self.image_size.map(|side| side as usize);
        let crop = Crop::center(width as f64 / height as f64, pixels.height, pixels.width);
        pixels.resized(crop, height, width).normalized(&self.mean, &self.std, false)
    }

    /// Returns a batch `(B, C, H, W)` of the concatenated `values` of B images.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if `values` is not a whole number of images, or empty.
    pub(crate) fn batch(&self, values: &[f32]) -> Result<Batch> {
        let [height, width] = self.image_size;
        let size = self.channels * height * width;
        if values.len() as i64 % size != 0 {
            let reason = format!("{} values are not images of {size} values each", values.len());
            return Err(Error::Input(reason));
        }
        let count = values.len() as i64 / size;
        Batch::new(Tensor::from_slice(values).reshape([count, self.channels, height, width]))
    }

    /// Returns the color that normalization maps to 0, rounded to 8 bits, one value per channel.
    pub(crate) fn mean_color(&self) -> Vec<u8> {
        self.mean.iter().map(|&mean| (255.0 * mean).round_ties_even() as u8).collect()
    }
}

impl Pixels {
    /// Returns `(C, H, W)` values, scaled to 0..=1, minus `mean`, divided by `std`; with `flip`,
    /// mirrored left to right.
    pub(crate) fn normalized(&self, mean: &[f64], std: &[f64], flip: bool) -> Vec<f32> {
        let plane = self.width * self.height;
        let mut values = vec![0.0; plane * self.channels];
        for (channel, plane) in values.chunks_exact_mut(plane).enumerate() {
            let (mean, std) = (mean[channel] as f32, std[channel] as f32);
            let table: Vec<f32> =
                (0..=255_u8).map(|v| (f32::from(v) / 255.0 - mean) / std).collect();
            let stride = self.width * self.channels;
            for (to, from) in
                plane.chunks_exact_mut(self.width).zip(self.values.chunks_exact(stride))
            {
                let row = from.iter().skip(channel).step_by(self.channels);
                to.iter_mut().zip(row).for_each(|(to, &value)| *to = table[usize::from(value)]);
                if flip {
                    to.reverse();
                }
            }
        }
        values
    }
}
