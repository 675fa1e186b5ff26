//! Resampling.

use rubato::{
    Fft, FixedSync, Resampler, WindowFunction, audioadapter_buffers::direct::InterleavedSlice,
};

/// Minimum number of frames per Fourier transform. Longer blocks give the low-pass filter a sharper
/// edge below the Nyquist frequency; this one keeps 93 % of the band.
const BLOCK: usize = 1024;

/// Returns the length at `to` Hz of a signal of `len` samples at `from` Hz, rounded to the nearest.
pub(crate) fn resampled_len(len: usize, from: u32, to: u32) -> usize {
    let (len, from) = (len as u64, u64::from(from));
    ((len * u64::from(to) + from / 2) / from) as usize
}

/// Resamples `wave` from `from` Hz to `to` Hz without a phase shift.
pub(crate) fn resample(wave: &[f32], from: u32, to: u32) -> Result<Vec<f32>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot resample from {from} Hz: {error}");
    let (rate_in, rate_out) = (from as usize, to as usize);
    // A multiple of the smallest integer ratio of the two rates, and even: `process_all` removes the
    // delay of half a block, which must be a whole number of samples at both rates.
    let ratio = 2 * rate_in / gcd(rate_in, rate_out);
    let block = BLOCK.next_multiple_of(ratio);
    let window = WindowFunction::BlackmanHarris2;
    let mut resampler =
        Fft::<f32>::new_custom(rate_in, rate_out, block, 1, 1, window, FixedSync::Both)
            .map_err(|error| failed(&error))?;
    let input = InterleavedSlice::new(wave, 1, wave.len()).map_err(|error| failed(&error))?;
    let output = resampler.process_all(&input, wave.len(), None).map_err(|error| failed(&error))?;
    let mut output = output.take_data();
    output.resize(resampled_len(wave.len(), from, to), 0.0);
    Ok(output)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
