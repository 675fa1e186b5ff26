//! The published pretraining recipes with small sizes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{corpus, program, repository, texts};

/// The recipes: all modalities, both versions.
pub const RECIPES: [&str; 6] = ["speech-v1", "speech", "vision-v1", "vision", "nlp-v1", "nlp"];

/// Overrides for all recipes.
const SMALL: [&str; 17] = [
    "train.steps=24",
    "train.accumulate=2",
    "train.held_out=0.2",
    "train.eval_batches=1",
    "train.eval_every=8",
    "train.log_every=3",
    "train.save_every=50",
    "train.workers=3",
    "transformer.dim=32",
    "transformer.depth=4",
    "transformer.heads=2",
    "target.top_k=2",
    "ema.decay=0.9",
    "ema.end_decay=0.99",
    "ema.anneal_steps=18",
    "optimizer.weight_decay=0.05",
    "schedule.lr=2e-3",
];

const SPEECH: [&str; 6] = [
    "data.min_seconds=0.5",
    "features.conv_layers=[[16,10,5],[16,3,2],[16,3,2],[16,3,2],[16,3,2],[16,2,2],[16,2,2]]",
    "features.pos_layers=2",
    "features.pos_kernel=5",
    "features.pos_groups=4",
    "train.batch=3",
];

const VISION: [&str; 6] = [
    "features.image_size=[16,16]",
    "features.channels=1",
    "features.mean=[0.4]",
    "features.std=[0.3]",
    "features.patch_size=4",
    "train.batch=5",
];

const TEXT: [&str; 6] = [
    "data.tokenizer={train=300}",
    "data.block=32",
    "features.vocabulary=300",
    "features.mask=299",
    "features.max_tokens=32",
    "train.batch=512",
];

/// Overrides for data2vec 2.0: a decoder of several layers, several masks of each input.
const V2: [&str; 4] = ["decoder.dim=16", "decoder.groups=4", "decoder.layers=2", "model.copies=3"];

/// Overrides for the cosine schedule.
const WARMUP: [&str; 1] = ["schedule.warmup_steps=5"];

/// Returns a `pretrain` command of one of [`RECIPES`] on the CPU, with further overrides.
pub fn pretrain(recipe: &str, more: &[&str], data: &Path, out: &Path) -> Command {
    let mut command = program(&["pretrain"]);
    command.arg(repository().join(format!("recipes/{recipe}.toml")));
    command.arg("--data").arg(data).arg("--out").arg(out).args(["--device", "cpu"]);
    let sets: Vec<&[&str]> = match recipe {
        "speech-v1" => vec![&SPEECH],
        "speech" => vec![&SPEECH, &V2, &WARMUP],
        "vision-v1" => {
            vec![&VISION, &["mask.patches=7", "mask.min_block=2", "mask.max_block=8"], &WARMUP]
        }
        "vision" => vec![&VISION, &V2, &WARMUP, &["mask.length=2"]],
        "nlp-v1" => vec![&TEXT, &WARMUP],
        "nlp" => vec![&TEXT, &V2, &WARMUP],
        other => panic!("unknown recipe {other}"),
    };
    for set in SMALL.iter().chain(sets.into_iter().flatten()).chain(more) {
        command.args(["--set", set]);
    }
    command
}

/// Writes training data for a recipe to `dir`.
pub fn data(recipe: &str, dir: &Path) -> PathBuf {
    match recipe.split('-').next() {
        Some("speech") => corpus(dir),
        Some("vision") => images(dir),
        _ => texts(dir),
    }
}

/// Writes 30 images of noise to an IDX file.
fn images(dir: &Path) -> PathBuf {
    let data = dir.join("train-images-idx3-ubyte");
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 30, 0, 0, 0, 20, 0, 0, 0, 20];
    let mut state = 1_u32;
    bytes.extend((0..30 * 400).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    fs::write(&data, bytes).unwrap();
    data
}
