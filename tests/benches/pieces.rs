//! Benchmarks of the parts of a step that this project implements, at the sizes of the base models.
//!
//! Run with `cargo bench -p data2vec-tests`. `cargo xtask bench` measures complete steps.

use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{
    AdamW, AdamWConfig, Checkpoints, Layer, MaskStrategy, Position, Snapshot, Target, TargetConfig,
    TargetNorm, TargetSource,
};
use data2vec_nlp::TextMaskConfig;
use data2vec_speech::{SpeechMaskConfig, audio};
use data2vec_vision::{Pixels, VisionMaskConfig};
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor, nn};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Reads the mask section of a recipe.
fn mask_of<M: DeserializeOwned>(recipe: &str) -> M {
    let text = std::fs::read_to_string(root().join("recipes").join(recipe)).expect("a recipe");
    let table: toml::Table = text.parse().expect("TOML");
    table["mask"].clone().try_into().expect("a mask section")
}

fn masks(c: &mut Criterion) {
    let mut group = c.benchmark_group("masks");
    let mut bench = |name: &str, mask: &dyn MaskStrategy, rows: usize, tokens: i64| {
        let (lengths, mut rng) = (vec![tokens; rows], stream(1, Purpose::Step, &[0]));
        group.throughput(Throughput::Elements(rows as u64 * tokens as u64));
        group.bench_function(name, |b| {
            b.iter(|| mask.sample(black_box(&lengths), tokens, &mut rng).expect("long enough"));
        });
    };
    for recipe in ["speech", "speech-v1"] {
        bench(recipe, &mask_of::<SpeechMaskConfig>(&format!("{recipe}.toml")), 16, 499);
    }
    for recipe in ["vision", "vision-v1"] {
        let mask = mask_of::<VisionMaskConfig>(&format!("{recipe}.toml"));
        bench(recipe, &mask.on_grid([14, 14]).expect("a grid"), 128, 196);
    }
    for recipe in ["nlp", "nlp-v1"] {
        bench(recipe, &mask_of::<TextMaskConfig>(&format!("{recipe}.toml")), 8, 512);
    }
}

fn targets(c: &mut Criterion) {
    let layer = || Layer { ffn: Tensor::randn([8, 499, 768], F32), out: Tensor::new() };
    let layers: Vec<Layer> = (0..8).map(|_| layer()).collect();
    let config = |layer_norm| TargetConfig {
        top_k: 8,
        source: TargetSource::Ffn,
        layer_norm,
        target_norm: TargetNorm::None,
    };
    for (name, norm) in [("instance", TargetNorm::Instance), ("layer", TargetNorm::Layer)] {
        let config = config(norm);
        c.bench_function(&format!("targets/{name}"), |b| {
            b.iter(|| tch::no_grad(|| config.build(black_box(&layers), None)));
        });
    }
}

/// Creates parameters of the number and sizes of a base model.
fn parameters(vars: &nn::VarStore) -> Vec<Tensor> {
    (0..12)
        .flat_map(|i| {
            [[2304, 768], [768, 768], [3072, 768], [768, 3072]].map(|size| {
                let name = format!("{i}_{}_{}", size[0], size[1]);
                vars.root().var(&name, &size, nn::Init::Const(0.5))
            })
        })
        .collect()
}

fn updates(c: &mut Criterion) {
    let (student, teacher) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
    let (from, to) = (parameters(&student), parameters(&teacher));
    c.bench_function("ema", |b| {
        b.iter(|| data2vec_torch_ext::ema_update(&to, &from, 0.999).expect("equal shapes"));
    });
    let config = AdamWConfig { betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.01, compat: vec![] };
    let mut optimizer = AdamW::new(student.variables(), &config);
    let gradients = optimizer
        .gradients((1, 0), &[(0, &())], |(), _, _| {
            Ok(from.iter().map(|p| p.sum(Kind::Float)).sum())
        })
        .expect("a loss");
    let mut step = 0;
    c.bench_function("adamw", |b| {
        b.iter(|| {
            step += 1;
            optimizer.step(step, 1e-4, &gradients, 1.0).expect("a step");
        });
    });
}

/// Measures the copy of a checkpoint, which blocks training, and its write, which does not.
fn checkpoints(c: &mut Criterion) {
    let vars = nn::VarStore::new(Device::Cpu);
    parameters(&vars);
    let copy = || {
        let mut snapshot = Snapshot::default();
        for name in ["model", "teacher", "exp_avg", "exp_avg_sq"] {
            snapshot.add_tensors(name, &vars.variables()).expect("memory");
        }
        snapshot
    };
    let dir = tempfile::tempdir().expect("a directory");
    let checkpoints = Checkpoints::new(dir.path(), 1, None).expect("a directory");
    let snapshot = copy();
    let mut group = c.benchmark_group("checkpoint");
    group.sample_size(10);
    group.bench_function("copy", |b| b.iter(copy));
    group.bench_function("write", |b| {
        let position = Position { step: 1, next_batch: 1 };
        b.iter(|| checkpoints.save(position, |dir| snapshot.write(dir)).expect("written"));
    });
}

fn layers(c: &mut Criterion) {
    let qkv = Tensor::randn([16, 250, 3 * 768], F32);
    c.bench_function("attention forward, 16 × 250 tokens, 12 heads", |b| {
        b.iter(|| data2vec_torch_ext::attention(black_box(&qkv), None, 12, 0.1).expect("shapes"));
    });
    let x = Tensor::randn([16, 250, 768], F32);
    c.bench_function("dropout", |b| {
        b.iter(|| data2vec_torch_ext::dropout(black_box(&x), 0.1).expect("a probability"));
    });
    c.bench_function("dropout of LibTorch", |b| b.iter(|| black_box(&x).dropout(0.1, true)));
}

fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for name in ["sweep.flac", "sweep.ogg", "sweep.mp3", "sweep-adpcm.wav"] {
        let path = root().join("data/fixtures").join(name);
        let samples = audio::read(&path).expect("a recording").len();
        group.throughput(Throughput::Elements(samples as u64));
        group.bench_function(name, |b| b.iter(|| audio::read(black_box(&path)).expect("audio")));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let pixels = image::RgbImage::from_fn(500, 375, |x, y| {
        image::Rgb([(x % 256) as u8, (y % 256) as u8, ((x * y) % 256) as u8])
    });
    for name in ["photo.jpg", "photo.png", "photo.webp"] {
        let path = dir.path().join(name);
        pixels.save(&path).expect("an image");
        group.throughput(Throughput::Elements(500 * 375));
        group.bench_function(name, |b| b.iter(|| Pixels::read(black_box(&path)).expect("pixels")));
    }
}

criterion_group!(pieces, masks, targets, updates, checkpoints, layers, decoding);
criterion_main!(pieces);
