//! Audio files: decoding, resampling, normalization, errors.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::f64::consts::TAU;
use std::fs;
use std::io::Cursor;

use data2vec_speech::audio::{SAMPLE_RATE, normalize, probe, read, read_from};
use proptest::prelude::*;

mod support;
use support::{fixture, noise, tone, wav, wav_of};

const LOSSLESS: [&str; 2] = ["sweep.flac", "sweep-alac.m4a"];
const LOSSY: [&str; 7] = [
    "sweep.mp3",
    "sweep-noxing.mp3",
    "sweep.ogg",
    "sweep.m4a",
    "sweep.aac",
    "sweep-adpcm.wav",
    "sweep-ima.wav",
];

/// Returns the signal of the fixtures: 0.5 s from 200 to 3000 Hz.
fn sweep() -> Vec<f32> {
    let phase = |t: f64| TAU * (200.0 * t + 2800.0 * t * t);
    (0..8000).map(|at| (0.5 * phase(f64::from(at) / 16_000.0).sin()) as f32).collect()
}

fn bytes(content: Vec<u8>) -> data2vec_core::Result<Vec<f32>> {
    read_from(Cursor::new(content), "x.wav")
}

fn error(content: Vec<u8>) -> String {
    bytes(content).unwrap_err().to_string()
}

#[test]
fn decodes_lossless_files_exactly() {
    for name in LOSSLESS {
        let wave = read(fixture(name)).unwrap();
        assert_eq!(wave.len(), 8000, "{name}");
        let off = wave.iter().zip(sweep()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1.0 / 32_768.0, "{name}: off by {off}");
    }
}

#[test]
fn decodes_lossy_files_closely() {
    let sweep = sweep();
    for name in LOSSY {
        let wave = read(fixture(name)).unwrap();
        // Some containers lack the delay of the encoder, up to 1024 + 1105 samples.
        let correlation = |lag: usize| {
            let pairs = || wave.iter().skip(lag).zip(&sweep).map(|(&a, &b)| (a as f64, b as f64));
            let dot: f64 = pairs().map(|(a, b)| a * b).sum();
            let (aa, bb) = pairs().fold((0.0, 0.0), |(aa, bb), (a, b)| (aa + a * a, bb + b * b));
            dot / (aa * bb).sqrt()
        };
        let best = (0..2200).map(correlation).fold(0.0, f64::max);
        assert!(best > 0.97, "{name}: correlation {best}");
        assert!((8000..8000 + 2048).contains(&wave.len()), "{name}: {} samples", wave.len());
    }
}

#[test]
fn probed_length_matches_decoded_length() {
    for name in LOSSLESS.iter().chain(&LOSSY) {
        let info = probe(fixture(name)).unwrap();
        let len = read(fixture(name)).unwrap().len() as u64;
        assert_eq!((info.samples, info.rate, info.channels), (len, 16_000, 1), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stereo.wav");
    for (rate, frames) in [(8_000, 4_001), (22_050, 9_999), (44_100, 12_345), (48_000, 2)] {
        fs::write(&path, wav(rate, 2, &noise(1, 2 * frames))).unwrap();
        let info = probe(&path).unwrap();
        let exact = (frames as f64 * 16_000.0 / f64::from(rate)).round() as u64;
        assert_eq!((info.samples, info.rate, info.channels), (exact, rate, 2));
        assert_eq!(read(&path).unwrap().len() as u64, exact);
    }
}

#[test]
fn resampling_keeps_phase_of_tones() {
    for rate in [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 15_999] {
        let len = rate as usize * 3 / 4;
        let wave = bytes(wav(rate, 1, &tone(440.0, rate, len))).unwrap();
        assert_eq!(wave.len(), (len as f64 * 16_000.0 / f64::from(rate)).round() as usize);
        let expected = |at: usize| 0.5 * (TAU * 440.0 * at as f64 / 16_000.0).sin();
        let inner = 800..wave.len() - 800; // the filter mixes silence into the ends
        let off = inner.map(|at| (f64::from(wave[at]) - expected(at)).abs()).fold(0.0, f64::max);
        assert!(off < 1e-3, "{rate} Hz: off by {off}");
    }
}

#[test]
fn resampling_removes_frequencies_above_nyquist() {
    let wave = bytes(wav(48_000, 1, &tone(11_000.0, 48_000, 48_000))).unwrap();
    let loudest = wave[800..wave.len() - 800].iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    assert!(loudest < 1e-3, "an alias of {loudest}");
}

#[test]
fn averages_channels() {
    let (left, right) = (noise(1, 500), noise(2, 500));
    let both: Vec<i16> = left.iter().zip(&right).flat_map(|(&l, &r)| [l, r]).collect();
    let wave = bytes(wav(16_000, 2, &both)).unwrap();
    for ((x, l), r) in wave.iter().zip(left).zip(right) {
        assert_eq!(*x, (f32::from(l) / 32_768.0 + f32::from(r) / 32_768.0) / 2.0);
    }
}

#[test]
fn normalizes_to_mean_0_and_variance_1() {
    let mut wave = bytes(wav(16_000, 1, &tone(300.0, 16_000, 16_000))).unwrap();
    let before = wave.clone();
    normalize(&mut wave);
    let n = wave.len() as f64;
    let mean = wave.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let var = wave.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n - mean * mean;
    assert!(mean.abs() < 1e-6 && (var - 0.125 / (0.125 + 1e-5)).abs() < 1e-5, "{mean} {var}");
    assert!((wave[100] / before[100] - 1.0 / 0.125_01_f32.sqrt()).abs() < 1e-3);
    // The epsilon limits the gain of nearly silent recordings.
    let mut quiet = [1e-6, -1e-6];
    normalize(&mut quiet);
    assert!((quiet[0] - 1e-6 / 1e-5_f32.sqrt()).abs() < 1e-6);
    normalize(&mut []);
}

#[test]
fn rejects_invalid_audio() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    assert!(read(&path).unwrap_err().to_string().contains("a.wav: No such file"));
    fs::write(&path, "").unwrap();
    assert!(read(&path).unwrap_err().to_string().ends_with("a.wav: is empty (0 bytes)"));
    assert!(read(folder.path()).unwrap_err().to_string().ends_with("is not a file"));

    let words = "It was the best of times, it was the worst of times. ".repeat(50);
    assert!(error(words.into_bytes()).contains("not audio of a known format"));
    assert!(error(wav(16_000, 1, &[])).contains("no samples"));
    assert!(error(wav(16_000, 1, &[0; 900])).contains("silent"));
    assert!(error(wav(16_000, 1, &[7; 900])).contains("silent"));
    let opposite: Vec<i16> = noise(1, 500).iter().flat_map(|&x| [x, -x]).collect();
    assert!(error(wav(16_000, 2, &opposite)).contains("silent"));
    assert!(error(wav(0, 1, &noise(1, 500))).contains("Hz"));
    assert!(error(wav(2_000_000_000, 1, &noise(1, 500))).contains("Hz"));

    let mut floats: Vec<f32> = noise(1, 16_000).iter().map(|&x| f32::from(x) / 32_768.0).collect();
    let float_wav = |samples: &[f32]| {
        let data: Vec<u8> = samples.iter().flat_map(|x| x.to_le_bytes()).collect();
        wav_of(3, 32, 16_000, 1, &data)
    };
    assert_eq!(bytes(float_wav(&floats)).unwrap(), floats);
    floats[8_000] = f32::NAN;
    assert!(error(float_wav(&floats)).contains("sample at 0.500 s is NaN or infinite"));
    floats[8_000] = f32::INFINITY;
    assert!(error(float_wav(&floats)).contains("NaN or infinite"));
}

#[test]
fn rejects_truncated_files() {
    let mut whole = wav(16_000, 1, &noise(3, 32_000));
    whole.truncate(44 + 32_000);
    let error = error(whole);
    assert!(error.contains("truncated after"), "{error}");
    for name in LOSSLESS.iter().chain(&LOSSY) {
        let whole = fs::read(fixture(name)).unwrap();
        let cut = whole[..whole.len() * 6 / 10].to_vec();
        match read_from(Cursor::new(cut), name) {
            Err(error) => {
                let error = error.to_string();
                let expected = ["truncated after", "cut off", "damaged"];
                assert!(expected.iter().any(|words| error.contains(words)), "{error}");
            }
            // These formats do not contain their length.
            Ok(wave) => assert!(
                ["sweep-noxing.mp3", "sweep.aac"].contains(name),
                "{name}: {} samples of a part",
                wave.len()
            ),
        }
    }
}

#[test]
fn rejects_damaged_flac() {
    let whole = fs::read(fixture("sweep.flac")).unwrap();
    // The first frame, behind 8 kB of padding, begins with its sync code.
    let first = whole.windows(2).rposition(|pair| pair == [0, 0]).unwrap() + 2;
    for at in (first..whole.len()).step_by(97) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        let mut cut = whole.clone();
        cut.drain(at..(at + 1500).min(whole.len()));
        for (damaged, damage) in [(flipped, "a wrong byte"), (cut, "a gap")] {
            let result = read_from(Cursor::new(damaged), "x.flac");
            assert!(result.is_err(), "{damage} at {at} was not detected");
        }
    }
}

#[test]
fn decoding_is_deterministic() {
    let content = wav(44_100, 2, &noise(5, 44_100));
    assert_eq!(bytes(content.clone()).unwrap(), bytes(content).unwrap());
    let path = fixture("sweep.ogg");
    let memory = read_from(Cursor::new(fs::read(&path).unwrap()), &path).unwrap();
    assert_eq!(memory, read(&path).unwrap());
    assert_eq!(SAMPLE_RATE, 16_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn damaged_files_never_panic(
        which in 0_usize..9,
        flips in prop::collection::vec((0.0_f64..1.0, any::<u8>()), 0..12),
        early in any::<bool>(),
        keep in 0.1_f64..1.0,
    ) {
        let name = LOSSLESS.iter().chain(&LOSSY).nth(which).unwrap();
        let mut content = fs::read(fixture(name)).unwrap();
        content.truncate((content.len() as f64 * keep) as usize);
        let reach = if early { content.len().min(300) } else { content.len() };
        for (place, value) in flips {
            content[(place * reach as f64) as usize] = value;
        }
        if let Ok(wave) = read_from(Cursor::new(content), name) {
            prop_assert!(wave.iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn random_bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..600)) {
        for name in ["x.wav", "x.mp3", "x.ogg", "x.m4a", "x.flac", "x.aac", "x"] {
            let _ = read_from(Cursor::new(content.clone()), name);
        }
    }
}
