//! Features of a recording by a pretrained encoder:
//!
//! ```text
//! cargo run --release -p data2vec-speech --example extract_features -- runs/speech/encoder a.wav
//! ```

#![allow(clippy::print_stdout, reason = "a program talks to its user")]

use anyhow::{Context, Result};
use data2vec_speech::{SpeechEncoder, audio};
use tch::Device;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(encoder), Some(file)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: extract_features ENCODER_FOLDER AUDIO_FILE");
    };
    let encoder = SpeechEncoder::load(&encoder, Device::cuda_if_available())?;
    let samples = audio::read(&file)?; // mono, 16 kHz, whatever the file is
    let features = encoder.features(&samples)?; // (T, D)
    let (frames, dim) = features.dim();
    println!("{frames} vectors of {dim} numbers");

    let first = features.rows().into_iter().next().context("a recording without features")?;
    println!("the first one: {:.3} …", first.iter().take(8).collect::<ndarray::Array1<_>>());
    Ok(())
}
