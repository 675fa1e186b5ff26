//! What examples look like, for a report: a picture along whose axes the tokens lie, or the text of each token.

use anyhow::Result;
use data2vec_nlp::Tokenizer;
use data2vec_speech::{WaveEncoderConfig, audio};
use data2vec_vision::PatchEncoderConfig;
use tch::{Device, Kind, Tensor};

/// What is shown of an example.
pub enum Portrait {
    /// Tokens lie on it from left to right, or as a grid from the top left.
    Raster(Raster),
    /// A piece of text for each token.
    Text(Vec<String>),
}

/// A picture: rows from the top, channels side by side.
pub struct Raster {
    pub width: usize,
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    pub values: Vec<u8>,
    /// Dark lines on light ground rather than a photograph: shown inverted where the page is dark.
    pub is_drawing: bool,
}

/// Samples of a window of the spectrogram, 25 ms, and those it is filled up to.
const WINDOW: i64 = 400;
const FFT: i64 = 512;
/// Bands of the spectrogram, equal in mel.
const BANDS: usize = 80;
/// How far below the loudest place white is: 65 dB.
const RANGE: f64 = 6.5;
/// Sequences of more tokens get one column a token instead of two.
const MANY: i64 = 400;

/// The log-mel spectrogram of `samples` `(S)`, which an encoder makes `tokens` tokens of.
pub fn spectrogram(
    samples: &Tensor,
    features: &WaveEncoderConfig,
    tokens: i64,
) -> Result<Portrait> {
    let columns = if tokens > MANY { tokens } else { 2 * tokens };
    let hop = features.hop() * tokens / columns;
    let needed = (columns - 1) * hop + FFT;
    let samples = samples.to_device(Device::Cpu).to_kind(Kind::Float);
    let missing = (needed - samples.size()[0]).max(0);
    let samples = samples.f_constant_pad_nd([0, missing])?.f_narrow(0, 0, needed)?;
    let window = Tensor::f_hann_window(WINDOW, (Kind::Float, Device::Cpu))?;
    let spectrum = samples.f_stft(FFT, hop, WINDOW, Some(window), false, true, true, false)?; // (FFT/2+1, columns)
    let power = spectrum.f_abs()?.f_square()?;
    let loudness = mel_bands().f_matmul(&power)?.f_clamp_min(1e-10)?.f_log10()?; // (BANDS, columns)
    let loudest = loudness.max().f_double_value(&[])?;
    let grey = (loudness - loudest) * (-255.0 / RANGE);
    let grey = grey.f_clamp(0.0, 255.0)?.f_flip([0])?.f_to_kind(Kind::Uint8)?;
    let values: Vec<u8> = grey.f_contiguous()?.f_flatten(0, 1)?.try_into()?;
    Ok(Portrait::Raster(Raster {
        width: columns as usize,
        height: BANDS,
        channels: 1,
        values,
        is_drawing: true,
    }))
}

/// `(BANDS, FFT/2+1)`: triangles between neighbours on the mel scale.
fn mel_bands() -> Tensor {
    let top = f64::from(audio::SAMPLE_RATE) / 2.0;
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let edges: Vec<f64> = (0..BANDS + 2)
        .map(|i| mel(top) * i as f64 / (BANDS + 1) as f64)
        .map(|mel| 700.0 * (10_f64.powf(mel / 2595.0) - 1.0))
        .collect();
    let bins = FFT as usize / 2 + 1;
    let mut weights = Vec::with_capacity(BANDS * bins);
    for band in edges.windows(3) {
        for bin in 0..bins {
            let at = top * bin as f64 / (bins - 1) as f64;
            let (rising, falling) =
                ((at - band[0]) / (band[1] - band[0]), (band[2] - at) / (band[2] - band[1]));
            weights.push(rising.min(falling).max(0.0) as f32);
        }
        // The lowest bands are narrower than a bin: they show the nearest one.
        let row = weights.len() - bins;
        if weights[row..].iter().sum::<f32>() < 0.5 {
            weights[row + (band[1] / top * (bins - 1) as f64).round() as usize] = 1.0;
        }
    }
    Tensor::from_slice(&weights).reshape([BANDS as i64, bins as i64])
}

/// The image whose normalised values `(C, H, W)` an encoder sees.
pub fn image(values: &Tensor, features: &PatchEncoderConfig) -> Result<Portrait> {
    let channel = |values: &[f64]| Tensor::from_slice(values).reshape([-1, 1, 1]); // (C, 1, 1)
    let values = values.to_device(Device::Cpu).to_kind(Kind::Double);
    let light = values * channel(&features.std) + channel(&features.mean);
    let bytes = (light * 255.0).f_round()?.f_clamp(0.0, 255.0)?.f_to_kind(Kind::Uint8)?;
    let size = bytes.size();
    let values = bytes.f_permute([1, 2, 0])?.f_contiguous()?.f_flatten(0, -1)?; // H, W, C
    let [channels, height, width] = [size[0], size[1], size[2]].map(|n| n as usize);
    Ok(Portrait::Raster(Raster {
        width,
        height,
        channels,
        values: values.try_into()?,
        is_drawing: false,
    }))
}

/// What each of the token ids `(T)` stands for; special tokens for a dot.
pub fn text(ids: &Tensor, tokenizer: &Tokenizer) -> Result<Portrait> {
    let ids: Vec<i64> = ids.to_device(Device::Cpu).try_into()?;
    let piece = |id: &i64| {
        let piece = tokenizer.decode(&[*id])?;
        Ok(if piece.is_empty() { "·".to_owned() } else { piece })
    };
    Ok(Portrait::Text(ids.iter().map(piece).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_a_dark_line_at_its_height() {
        let features = WaveEncoderConfig {
            normalize: false,
            conv_layers: vec![[8, 10, 5], [8, 8, 64]],
            conv_norm: data2vec_speech::ConvNorm::Layer,
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
            let portrait = spectrogram(&tone(hertz), &features, 49).expect("a picture");
            let Portrait::Raster(raster) = portrait else { panic!("not a picture") };
            assert_eq!((raster.width, raster.height, raster.values.len()), (98, BANDS, 98 * BANDS));
            (0..BANDS).min_by_key(|row| raster.values[row * 98 + 40]).expect("rows")
        };
        let (low, high) = (darkest(200.0), darkest(4_000.0));
        // 2595 log10(1 + f / 700) of 8 kHz is 2840; bands are from the bottom.
        assert!(low.abs_diff(79 - 8) <= 1, "{low}");
        assert!(high.abs_diff(79 - 60) <= 1, "{high}");
    }

    #[test]
    fn an_image_is_what_it_was_before_it_was_normalised() {
        let features = PatchEncoderConfig {
            image_size: [1, 2],
            channels: 3,
            mean: vec![0.5, 0.4, 0.3],
            std: vec![0.2, 0.1, 0.3],
            patch_size: 1,
            positions: data2vec_vision::Positions::SinCos,
        };
        let bytes = [[10.0, 200.0], [0.0, 255.0], [77.0, 78.0_f64]];
        let normalised: Vec<f64> = bytes
            .iter()
            .zip(features.mean.iter().zip(&features.std))
            .flat_map(|(row, (mean, std))| row.map(|v| (v / 255.0 - mean) / std))
            .collect();
        let values = Tensor::from_slice(&normalised).reshape([3, 1, 2]);
        let Portrait::Raster(raster) = image(&values, &features).expect("a picture") else {
            panic!("not a picture")
        };
        assert_eq!(raster.values, [10, 0, 77, 200, 255, 78]);
    }
}
