//! Synthetic audio and tiny models.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

use data2vec_core::model::head::{HeadConfig, HeadInit, HeadTask, Pool};
use data2vec_core::{EncoderConfig, FinetunedModel, TransformerConfig, save_model};
use data2vec_speech::{WaveCompat, WaveEncoder, WaveEncoderConfig};
use tch::{Device, nn};

/// Returns tiny settings with one frame every 320 samples, the first after 400.
pub fn tiny_features() -> WaveEncoderConfig {
    let mut conv_layers = vec![[8, 10, 5]];
    conv_layers.extend([[8, 3, 2]; 4]);
    conv_layers.extend([[8, 2, 2]; 2]);
    WaveEncoderConfig {
        conv_layers,
        pos_layers: 1,
        pos_kernel: 3,
        pos_groups: 2,
        alibi: false,
        ..WaveEncoderConfig::default()
    }
}

/// Writes a tiny model with random weights.
pub fn save_tiny_model(dir: &Path, task: HeadTask, labels: &[&str], compat: Vec<WaveCompat>) {
    let config = EncoderConfig {
        encoder: "wave".into(),
        features: WaveEncoderConfig { pos_layers: 2, compat, ..tiny_features() },
        transformer: TransformerConfig {
            input_norm: true,
            ..TransformerConfig::without_dropout(16, 1, 2, 32)
        },
    };
    let head = HeadConfig {
        task,
        pool: if task == HeadTask::Ctc { Pool::None } else { Pool::Mean },
        norm_eps: None,
        dropout: 0.0,
        init: HeadInit::Torch,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        dense: None,
    };
    tch::manual_seed(3);
    let vars = nn::VarStore::new(Device::Cpu);
    FinetunedModel::<WaveEncoder>::new(&vars.root(), config.clone(), head.clone())
        .expect("valid settings");
    let mut tensors = vars.variables();
    // Larger weights make the model confident enough to decode to words.
    let larger = &tensors["head.out.weight"] * 8.0;
    tensors.insert("head.out.weight".into(), larger);
    save_model(dir, &tensors, &config, Some(&head), None).expect("a writable directory");
}

/// Returns `seconds` of noise, loud and soft by turns, so that parts have another variance than the
/// recording.
pub fn uneven_noise(seconds: usize) -> Vec<f32> {
    let scale = |at: usize| if at / 16_000 % 7 < 3 { 1.0 } else { 0.1 };
    let noise = noise(5, seconds * 16_000).into_iter().enumerate();
    noise.map(|(at, x)| scale(at) * f32::from(x) / 32_768.0).collect()
}

/// Encodes a WAV file of 16-bit samples with interleaved channels.
pub fn wav(rate: u32, channels: u16, samples: &[i16]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    wav_of(1, 16, rate, channels, &data)
}

/// Encodes a WAV file of format `tag` (1: integers, 3: floats).
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

/// Returns `len` samples of a tone at half of full scale.
pub fn tone(hz: f64, rate: u32, len: usize) -> Vec<i16> {
    let radians = std::f64::consts::TAU * hz / f64::from(rate);
    (0..len).map(|at| (16_384.0 * (radians * at as f64).sin()).round() as i16).collect()
}

/// Returns `len` samples of deterministic noise.
pub fn noise(seed: u32, len: usize) -> Vec<i16> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as i16 / 4
    };
    (0..len).map(|_| next()).collect()
}

/// Returns the path of a file in the repository's `data/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/fixtures")).join(name)
}
