//! Prints the features of one image: `cargo run --release -p data2vec-vision --example
//! extract_image_features -- ENCODER_DIR IMAGE`.

#![allow(clippy::print_stdout, reason = "a command-line program")]

use anyhow::{Context, Result};
use data2vec_vision::{Pixels, VisionEncoder};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (dir, file) =
        args.next().zip(args.next()).context("usage: extract_image_features ENCODER_DIR IMAGE")?;
    let encoder = VisionEncoder::load(dir, tch::Device::Cpu)?;
    let features = encoder.features(&Pixels::read(file)?)?; // (T, D)
    let [rows, columns] = encoder.config().features.grid();
    println!("{rows} × {columns} patches, {} features each", features.ncols());
    for (patch, vector) in features.rows().into_iter().enumerate() {
        let norm = vector.dot(&vector).sqrt();
        println!(
            "row {}, column {}: norm {norm:.3}",
            patch as i64 / columns,
            patch as i64 % columns
        );
    }
    Ok(())
}
