//! Features of a text: `reuse-nlp ENCODER_FOLDER TEXT_FILE` prints a line for each token.

use anyhow::{Context, Result};
use data2vec_nlp::{TextEncoder, read_text};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (folder, file) = args.next().zip(args.next()).context("usage: ENCODER_FOLDER TEXT_FILE")?;
    let encoder = TextEncoder::load(folder, tch::Device::Cpu)?;
    let features = encoder.features(&read_text(file)?)?; // (T, D)
    for vector in features.rows() {
        println!("{:?}", vector.to_vec());
    }
    Ok(())
}
