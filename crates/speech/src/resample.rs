//! To 16 kHz from any other rate.

use rubato::{
    Fft, FixedSync, Resampler, WindowFunction, audioadapter_buffers::direct::InterleavedSlice,
};

use crate::audio::SAMPLE_RATE;

/// Frames, at least, that go through one Fourier transform. The longer, the sharper the edge of the
/// filter below the Nyquist frequency; this one keeps 93% of the band.
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
    // A block is a multiple of the smallest whole ratio of the two rates. An even one: the delay,
    // which `process_all` takes away again, is half a block, and must be whole samples on both sides.
    let pair = 2 * from / gcd(from, to);
    let block = BLOCK.next_multiple_of(pair);
    let window = WindowFunction::BlackmanHarris2;
    let mut resampler = Fft::<f32>::new_custom(from, to, block, 1, 1, window, FixedSync::Both)
        .map_err(|error| wrong(&error))?;
    let input = InterleavedSlice::new(wave, 1, wave.len()).map_err(|error| wrong(&error))?;
    let output = resampler.process_all(&input, wave.len(), None).map_err(|error| wrong(&error))?;
    let mut output = output.take_data();
    output.resize(resampled_len(wave.len(), rate), 0.0);
    Ok(output)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
