//! Features of text files by an exported encoder, and which of them are alike.
//!
//! cargo run --release -p data2vec-nlp --example extract_text_features -- runs/nlp-tiny/encoder FILES…

use anyhow::{Context, Result};
use data2vec_nlp::{TextEncoder, read_text};
use ndarray::{Array1, Axis};

#[expect(clippy::print_stdout, reason = "a program talks to its user")]
fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().context("the folder of an exported encoder comes first")?;
    let encoder = TextEncoder::load(folder, tch::Device::Cpu)?;

    let mut texts: Vec<(String, Array1<f32>)> = Vec::new();
    for path in args {
        let features = encoder.features(&read_text(&path)?)?; // (T, D)
        println!("{path}: {} tokens, {} numbers each", features.nrows(), features.ncols());
        let mean = features.mean_axis(Axis(0)).context("no token")?; // (D)
        let norm = mean.dot(&mean).sqrt();
        texts.push((path, mean / norm));
    }
    for (i, (path, text)) in texts.iter().enumerate() {
        let others = texts.iter().enumerate().filter(|(j, _)| *j != i);
        let nearest = others.max_by(|a, b| text.dot(&a.1.1).total_cmp(&text.dot(&b.1.1)));
        if let Some((_, (other, features))) = nearest {
            println!("{path} is most like {other}: {:.3}", text.dot(features));
        }
    }
    Ok(())
}
