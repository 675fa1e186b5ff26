//! Mel filters, and log-mel spectrograms for reports.

use data2vec_core::{Raster, Result};
use tch::{Device, Kind, Tensor};

use crate::audio;
use crate::config::WaveEncoderConfig;

/// Window in samples (25 ms).
const WINDOW: i64 = 400;
/// FFT size, which the window is padded to.
const FFT: i64 = 512;
/// Number of mel bands.
const BANDS: usize = 80;
/// Dynamic range in units of log10 power: 65 dB.
const RANGE: f64 = 6.5;
/// Number of tokens above which each token gets one column instead of two.
const MANY: i64 = 400;

/// Smallest power of a band whose logarithm is taken.
const MIN_POWER: f64 = 1e-5;

/// Computes natural logarithms of the mel power spectrum of `samples` `(B, S)` in Hann windows of
/// `window` samples, `hop` apart: `(B, (S − window) / hop + 1, bands)` f32.
///
/// # Errors
/// [`Error::Torch`](data2vec_core::Error::Torch) if there are fewer samples than a window has.
pub fn log_mel(samples: &Tensor, [window, hop]: [i64; 2], bands: i64) -> Result<Tensor> {
    let fft = (window as u64).next_power_of_two() as i64;
    let frames = (samples.size()[1] - window) / hop + 1;
    // LibTorch centres the window in the FFT's samples: zeros before and after make a frame begin
    // with its window.
    let before = (fft - window) / 2;
    let samples = samples.f_constant_pad_nd([before, fft - window - before])?;
    let hann = Tensor::f_hann_window(window, (Kind::Float, samples.device()))?;
    let spectrum = samples.f_stft(fft, hop, window, Some(hann), false, true, true, false)?; // (B, fft/2+1, frames)
    let power = spectrum.f_abs()?.f_square()?.f_transpose(1, 2)?; // (B, frames, fft/2+1)
    let filters = mel_filters(bands as usize, fft as usize).to_device(samples.device());
    let mel = power.f_matmul(&filters.tr())?.f_clamp_min(MIN_POWER)?.f_log()?;
    Ok(mel.f_narrow(1, 0, frames)?)
}

/// Renders the log-mel spectrogram of `samples` `(S)`, which become `tokens` tokens.
pub(crate) fn spectrogram(
    samples: &Tensor,
    features: &WaveEncoderConfig,
    tokens: i64,
) -> Result<Raster> {
    let columns = if tokens > MANY { tokens } else { 2 * tokens };
    let hop = features.hop() * tokens / columns;
    let needed = (columns - 1) * hop + FFT;
    let samples = samples.to_device(Device::Cpu).to_kind(Kind::Float);
    let missing = (needed - samples.size()[0]).max(0);
    let samples = samples.f_constant_pad_nd([0, missing])?.f_narrow(0, 0, needed)?;
    let window = Tensor::f_hann_window(WINDOW, (Kind::Float, Device::Cpu))?;
    let spectrum = samples.f_stft(FFT, hop, WINDOW, Some(window), false, true, true, false)?; // (FFT/2+1, columns)
    let power = spectrum.f_abs()?.f_square()?;
    let loudness =
        mel_filters(BANDS, FFT as usize).f_matmul(&power)?.f_clamp_min(1e-10)?.f_log10()?; // (BANDS, columns)
    let loudest = loudness.max().f_double_value(&[])?;
    let grey = (loudness - loudest) * (-255.0 / RANGE);
    let grey = grey.f_clamp(0.0, 255.0)?.f_flip([0])?.f_to_kind(Kind::Uint8)?;
    let values: Vec<u8> = grey.f_contiguous()?.f_flatten(0, 1)?.try_into()?;
    Ok(Raster { width: columns as usize, height: BANDS, channels: 1, values, is_drawing: true })
}

/// Returns triangular mel filters for spectra of `fft` samples at 16 kHz: `(bands, fft/2+1)` f32.
pub fn mel_filters(bands: usize, fft: usize) -> Tensor {
    let top = f64::from(audio::SAMPLE_RATE) / 2.0;
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let edges: Vec<f64> = (0..bands + 2)
        .map(|i| mel(top) * i as f64 / (bands + 1) as f64)
        .map(|mel| 700.0 * (10_f64.powf(mel / 2595.0) - 1.0))
        .collect();
    let bins = fft / 2 + 1;
    let mut weights = Vec::with_capacity(bands * bins);
    for band in edges.windows(3) {
        for bin in 0..bins {
            let at = top * bin as f64 / (bins - 1) as f64;
            let (rising, falling) =
                ((at - band[0]) / (band[1] - band[0]), (band[2] - at) / (band[2] - band[1]));
            weights.push(rising.min(falling).max(0.0) as f32);
        }
        // The lowest bands are narrower than a bin and take the nearest one.
        let row = weights.len() - bins;
        if weights[row..].iter().sum::<f32>() < 0.5 {
            weights[row + (band[1] / top * (bins - 1) as f64).round() as usize] = 1.0;
        }
    }
    Tensor::from_slice(&weights).reshape([bands as i64, bins as i64])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tone_is_dark_at_its_frequency() {
        let features = WaveEncoderConfig {
            normalize: false,
            conv_layers: vec![[8, 10, 5], [8, 8, 64]],
            conv_norm: crate::config::ConvNorm::Layer,
            pos_layers: 0,
            pos_kernel: 1,
            pos_groups: 1,
            alibi: false,
            compat: Vec::new(),
        };
        let tone = |hertz: f64| {
            let at = Tensor::arange(16_000, (Kind::Double, Device::Cpu)) / 16_000.0;
            (at * (std::f64::consts::TAU * hertz)).sin()
        };
        let darkest = |hertz: f64| {
            let raster = spectrogram(&tone(hertz), &features, 49).expect("a picture");
            assert_eq!((raster.width, raster.height, raster.values.len()), (98, BANDS, 98 * BANDS));
            (0..BANDS).min_by_key(|row| raster.values[row * 98 + 40]).expect("rows")
        };
        let (low, high) = (darkest(200.0), darkest(4_000.0));
        // 2595 log10(1 + f / 700) of 8 kHz is 2840; bands are from the bottom.
        assert!(low.abs_diff(79 - 8) <= 1, "{low}");
        assert!(high.abs_diff(79 - 60) <= 1, "{high}");
    }
}
