//! Extracts the features of a recording with a pretrained encoder:
//!
//! ```text
//! cargo run --release -p data2vec-speech --example extract_features -- runs/speech/encoder a.wav
//! ```

#![allow(clippy::print_stdout, reason = "a program prints its output")]

use anyhow::{Context, Result};
use data2vec_speech::{SpeechEncoder, audio};
use tch::Device;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(encoder), Some(file)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: extract_features ENCODER_DIR AUDIO_FILE");
    };
    let encoder = SpeechEncoder::load(&encoder, Device::cuda_if_available())?;
    let samples = audio::read(&file)?; // mono, 16 kHz, from any format
    let features = encoder.features(&samples)?; // (T, D)
    let (frames, dim) = features.dim();
    println!("{frames} features of size {dim}");

    let first = features.rows().into_iter().next().context("the recording has no features")?;
    println!("first: {:.3} …", first.iter().take(8).collect::<ndarray::Array1<_>>());
    Ok(())
}
