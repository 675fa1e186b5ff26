//! To 16 kHz from any other rate.

use rubato::{
    Fft, FixedSync, Resampler, WindowFunction, audioadapter_buffers::direct::InterleavedSlice,
};

use crate::audio::SAMPLE_RATE;

/// Frames that go through one Fourier transform. Longer blocks have a sharper edge below the
/// Nyquist frequency; this one passes 93% of the band within 0.1 dB.
const BLOCK: usize = 1024;

/// Samples at [`SAMPLE_RATE`] of a signal with `len` samples at `rate` Hz, rounded to the nearest.
pub(crate) fn resampled_len(len: usize, rate: u32) -> usize {
    let (len, rate) = (len as u64, u64::from(rate));
    ((len * u64::from(SAMPLE_RATE) + rate / 2) / rate) as usize
}

/// `wave` at [`SAMPLE_RATE`], in phase with the input.
pub(crate) fn resample(wave: &[f32], rate: u32) -> Result<Vec<f32>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("cannot resample from {rate} Hz: {error}");
    let (from, to) = (rate as usize, SAMPLE_RATE as usize);
    // The delay is trimmed by `process_all`.
    let window = WindowFunction::BlackmanHarris2;
    let mut resampler = Fft::<f32>::new_custom(from, to, BLOCK, 1, 1, window, FixedSync::Both)
        .map_err(|error| wrong(&error))?;
    let input = InterleavedSlice::new(wave, 1, wave.len()).map_err(|error| wrong(&error))?;
    let output = resampler.process_all(&input, wave.len(), None).map_err(|error| wrong(&error))?;
    let mut output = output.take_data();
    output.resize(resampled_len(wave.len(), rate), 0.0);
    Ok(output)
}
