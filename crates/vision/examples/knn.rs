//! How well features tell classes apart: `cargo run --release -p data2vec-vision --example knn --
//! ENCODER_FOLDER DATA [IMAGES]`. DATA is an IDX data set or a folder with a folder for each class.
//!
//! The class of each image is guessed from the most similar other ones, by a weighted vote.
//! An untrained encoder of the same sizes shows what pixels alone give.

#![allow(clippy::print_stdout, reason = "a program talks to its user")]

use anyhow::{Context, Result, ensure};
use data2vec_core::{Batch, Dataset, Encoder, EncoderConfig};
use data2vec_vision::{PatchEncoder, PatchEncoderConfig, VisionDataConfig, VisionDataset};
use rand::{SeedableRng, rngs::StdRng};
use tch::{Device, Kind, Tensor, nn};

/// Images that vote.
const NEIGHBOURS: i64 = 10;
/// Images that go through an encoder at once.
const BATCH: usize = 100;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, data, rest @ ..] = args.as_slice() else {
        anyhow::bail!("usage: ENCODER_FOLDER DATA [IMAGES]");
    };
    let images: usize = rest.first().map_or(Ok(4000), |n| n.parse()).context("IMAGES")?;

    let (trained, config) = Encoder::<PatchEncoder>::load(folder, Device::Cpu)?;
    let as_it_is = VisionDataConfig {
        crop_scale: [1.0, 1.0],
        crop_ratio: [1.0, 1.0],
        flip: 0.0,
        jitter: None,
    };
    let data = VisionDataset::open(data, &as_it_is, &config.features)?.without_augmentation();
    let classes = data.classes().len() as i64;
    ensure!(classes > 1 && images >= 20, "classes: {classes}, images: {images}; too few to tell");
    // Spread over the data set, which may be sorted by class.
    let step = (data.len() / images).max(1);
    let chosen: Vec<usize> = (0..data.len()).step_by(step).take(images).collect();
    let labels: Option<Vec<i64>> =
        chosen.iter().map(|&i| data.label(i).map(|label| label as i64)).collect();
    let labels = Tensor::from_slice(&labels.context("some images have no class")?);

    for (name, encoder) in [("trained", trained), ("untrained", untrained(&config)?)] {
        let features = features(&encoder, &data, &chosen)?; // (N, D)
        println!(
            "{name}: {:.1} % of {} right",
            100.0 * score(&features, &labels, classes),
            chosen.len()
        );
    }
    Ok(())
}

fn untrained(config: &EncoderConfig<PatchEncoderConfig>) -> Result<Encoder<PatchEncoder>> {
    tch::manual_seed(1);
    let vars = nn::VarStore::new(Device::Cpu);
    Ok(Encoder::new(&(vars.root() / "encoder"), &config.features, &config.transformer)?)
}

/// The mean of each image's patches, centred over images and of length 1.
fn features(
    encoder: &Encoder<PatchEncoder>,
    data: &VisionDataset,
    chosen: &[usize],
) -> Result<Tensor> {
    let mut rng = StdRng::seed_from_u64(1); // nothing is random without augmentation
    let mut all = Vec::new();
    for part in chosen.chunks(BATCH) {
        let examples: Result<Vec<_>, _> = part.iter().map(|&i| data.load(i, &mut rng)).collect();
        let batch: Batch = data.collate(examples?, &mut rng)?;
        all.push(encoder.forward(&batch)?.x.mean_dim(&[1_i64][..], false, Kind::Float));
    }
    let all = Tensor::cat(&all, 0);
    let centred = &all - all.mean_dim(&[0_i64][..], true, Kind::Float);
    let length = centred.square().sum_dim_intlist(&[1_i64][..], true, Kind::Float).sqrt();
    Ok(centred / length.clamp_min(1e-12))
}

/// Share of images whose nearest others vote for their class.
fn score(features: &Tensor, labels: &Tensor, classes: i64) -> f64 {
    let similar = features.matmul(&features.tr()); // (N, N)
    let _ = similar.shallow_clone().fill_diagonal_(f64::NEG_INFINITY, false);
    let (weights, nearest) = similar.topk(NEIGHBOURS, 1, true, false); // (N, k)
    let votes =
        labels.index_select(0, &nearest.flatten(0, 1)).reshape_as(&nearest).one_hot(classes);
    let votes = (votes * weights.unsqueeze(-1)).sum_dim_intlist(&[1_i64][..], false, Kind::Float);
    let right = votes.argmax(1, false).eq_tensor(labels);
    right.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}
