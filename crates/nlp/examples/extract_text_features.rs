//! Extracts features of text files and prints the most similar file of each.
//!
//! cargo run --release -p data2vec-nlp --example extract_text_features -- runs/nlp-tiny/encoder FILES…

use anyhow::{Context, Result};
use data2vec_nlp::{TextEncoder, read_text};
use ndarray::{Array1, Axis};

#[expect(clippy::print_stdout, reason = "an example prints its results")]
fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().context("usage: extract_text_features ENCODER_DIR FILES…")?;
    let encoder = TextEncoder::load(dir, tch::Device::Cpu)?;

    let mut texts: Vec<(String, Array1<f32>)> = Vec::new();
    for path in args {
        let features = encoder.features(&read_text(&path)?)?; // (T, D)
        println!("{path}: {} tokens, {} features each", features.nrows(), features.ncols());
        let mean = features.mean_axis(Axis(0)).context("the text has no tokens")?; // (D)
        let norm = mean.dot(&mean).sqrt();
        texts.push((path, mean / norm));
    }
    for (i, (path, text)) in texts.iter().enumerate() {
        let others = texts.iter().enumerate().filter(|(j, _)| *j != i);
        let nearest = others.max_by(|a, b| text.dot(&a.1.1).total_cmp(&text.dot(&b.1.1)));
        if let Some((_, (other, features))) = nearest {
            println!(
                "{path}: most similar to {other}, cosine similarity {:.3}",
                text.dot(features)
            );
        }
    }
    Ok(())
}
