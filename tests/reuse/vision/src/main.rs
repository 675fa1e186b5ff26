//! Features of an image: `reuse-vision ENCODER_FOLDER IMAGE` prints a line for each patch.

use anyhow::{Context, Result};
use data2vec_vision::{Pixels, VisionEncoder};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (folder, file) = args.next().zip(args.next()).context("usage: ENCODER_FOLDER IMAGE")?;
    let encoder = VisionEncoder::load(folder, tch::Device::Cpu)?;
    let features = encoder.features(&Pixels::read(file)?)?; // (T, D)
    for vector in features.rows() {
        println!("{:?}", vector.to_vec());
    }
    Ok(())
}
