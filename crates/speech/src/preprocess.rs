//! From samples to the input of the encoder.

use data2vec_core::{Batch, Error, Result};
use tch::{Device, Tensor};

use crate::audio;
use crate::config::WaveEncoderConfig;

/// Checks that all samples are finite, and normalizes them if the encoder was trained so.
pub(crate) fn prepare(samples: &[f32], features: &WaveEncoderConfig) -> Result<Vec<f32>> {
    if let Some(at) = samples.iter().position(|x| !x.is_finite()) {
        return Err(Error::Input(format!("sample {at} is NaN or infinite")));
    }
    let mut samples = samples.to_vec();
    if features.normalize {
        audio::normalize(&mut samples);
    }
    Ok(samples)
}

/// Pads recordings on the right to a batch `(B, S)`.
pub(crate) fn pad(recordings: &[impl AsRef<[f32]>], device: Device) -> Result<Batch> {
    let lengths: Vec<usize> = recordings.iter().map(|samples| samples.as_ref().len()).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut flat = vec![0.0; recordings.len() * longest];
    for (row, samples) in flat.chunks_exact_mut(longest.max(1)).zip(recordings) {
        let samples = samples.as_ref();
        row[..samples.len()].copy_from_slice(samples);
    }
    let inputs = Tensor::from_slice(&flat).reshape([recordings.len() as i64, longest as i64]);
    Batch::padded(inputs.to_device(device), lengths.into_iter().map(|len| len as i64).collect())
}

/// Returns true if padding these recordings to one batch does not change their features.
pub(crate) fn can_pad(recordings: &[&[f32]], features: &WaveEncoderConfig) -> bool {
    !features.padding_leaks() || recordings.windows(2).all(|pair| pair[0].len() == pair[1].len())
}
