//! Audio made by hand.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::PathBuf;

/// A WAV file of 16-bit samples, channels interleaved.
pub fn wav(rate: u32, channels: u16, samples: &[i16]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    wav_of(1, 16, rate, channels, &data)
}

/// A WAV file of format `tag` (1: integers, 3: floats).
pub fn wav_of(tag: u16, bits: u16, rate: u32, channels: u16, data: &[u8]) -> Vec<u8> {
    let frame = channels * bits / 8;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend(36_u32.wrapping_add(data.len() as u32).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0");
    bytes.extend(tag.to_le_bytes());
    bytes.extend(channels.to_le_bytes());
    bytes.extend(rate.to_le_bytes());
    bytes.extend(rate.wrapping_mul(u32::from(frame)).to_le_bytes());
    bytes.extend(frame.to_le_bytes());
    bytes.extend(bits.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes
}

/// `len` samples of a tone of half the full scale.
pub fn tone(hz: f64, rate: u32, len: usize) -> Vec<i16> {
    let radians = std::f64::consts::TAU * hz / f64::from(rate);
    (0..len).map(|at| (16_384.0 * (radians * at as f64).sin()).round() as i16).collect()
}

/// `len` samples of noise that is the same each time.
pub fn noise(seed: u32, len: usize) -> Vec<i16> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as i16 / 4
    };
    (0..len).map(|_| next()).collect()
}

/// A file of the repository's `data/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/fixtures")).join(name)
}
