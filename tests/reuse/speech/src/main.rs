//! Features of a recording: `reuse-speech ENCODER_FOLDER AUDIO_FILE` prints a line for each 20 ms.

use anyhow::{Context, Result};
use data2vec_speech::{SpeechEncoder, audio};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (folder, file) =
        args.next().zip(args.next()).context("usage: ENCODER_FOLDER AUDIO_FILE")?;
    let encoder = SpeechEncoder::load(folder, tch::Device::Cpu)?;
    let features = encoder.features(&audio::read(file)?)?; // (T, D)
    for vector in features.rows() {
        println!("{:?}", vector.to_vec());
    }
    Ok(())
}
