//! Inference with a fine-tuned classifier.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::{
    EncoderConfig, FinetunedModel, HeadConfig, NormPlacement, TransformerConfig, save_model,
};
use data2vec_vision::{
    AugmentConfig, ImageClassifier, LabelledImages, PatchEncoder, PatchEncoderConfig, Pixels,
    Positions,
};
use tch::{Device, nn};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn config() -> EncoderConfig<PatchEncoderConfig> {
    EncoderConfig {
        encoder: "patch".into(),
        features: PatchEncoderConfig {
            image_size: [8, 8],
            channels: 3,
            mean: vec![0.5; 3],
            std: vec![0.25; 3],
            patch_size: 4,
            positions: Positions::SinCos,
        },
        transformer: TransformerConfig {
            norm: NormPlacement::Pre,
            norm_eps: 1e-6,
            ..TransformerConfig::without_dropout(16, 2, 2, 32)
        },
    }
}

/// Writes a model with random weights.
fn model(dir: &Path, head: &str) {
    tch::manual_seed(3);
    let head: HeadConfig = toml::from_str(head).unwrap();
    let vars = nn::VarStore::new(Device::Cpu);
    FinetunedModel::<PatchEncoder>::new(&vars.root(), config(), head.clone()).unwrap();
    let vars: HashMap<_, _> = vars.variables();
    save_model(dir, &vars, &config(), Some(&head), None).unwrap();
}

const HEAD: &str = r#"
    task = "classification"
    pool = "mean"
    dropout = 0.0
    labels = ["cat", "dog", "bird"]
"#;

#[test]
fn classify_returns_softmax_of_logits() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), HEAD);
    let classifier = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!(classifier.labels(), ["cat", "dog", "bird"]);
    let [color, gray] = ["source.png", "grey.jpg"].map(|name| Pixels::read(fixture(name)).unwrap());
    let scores = classifier.logits(&[color.clone(), gray]).unwrap();
    assert_eq!(scores.dim(), (2, 3));
    let classes = classifier.classify(&color).unwrap();
    assert!(classes.is_sorted_by(|a, b| a.1 >= b.1), "{classes:?}");
    let total: f64 = scores.row(0).iter().map(|&score| f64::from(score).exp()).sum();
    for (label, probability) in classes {
        let index = classifier.labels().iter().position(|other| *other == label).unwrap();
        let expected = f64::from(scores[[0, index]]).exp() / total;
        assert!((probability - expected).abs() < 1e-5, "{label}: {probability}, {expected}");
    }
    assert!(classifier.logits(&[]).is_err());
}

#[test]
fn classify_batch_matches_single_calls() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), HEAD);
    let classifier = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
    let images =
        ["source.png", "grey.jpg", "one.png"].map(|name| Pixels::read(fixture(name)).unwrap());
    let batch = classifier.classify_batch(&images).unwrap();
    assert_eq!(batch.len(), images.len());
    for (image, classes) in images.iter().zip(batch) {
        let single = classifier.classify(image).unwrap();
        assert_eq!(classes.len(), single.len());
        for (a, b) in classes.iter().zip(&single) {
            assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-5, "{a:?}, {b:?}");
        }
    }
    assert!(classifier.classify_batch(&[]).unwrap().is_empty());
}

#[test]
fn load_applies_exported_center_crop() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), HEAD);
    let image = Pixels::read(fixture("source.png")).unwrap();
    let logits = || {
        let classifier = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
        classifier.logits(std::slice::from_ref(&image)).unwrap()
    };
    let full = logits();
    let data = dir.path().join("data");
    for class in ["a", "b"] {
        fs::create_dir_all(data.join(class)).unwrap();
        fs::copy(fixture("source.png"), data.join(class).join("1.png")).unwrap();
    }
    let augment = AugmentConfig { eval_crop: 0.5, ..AugmentConfig::default() };
    let (data, _) = LabelledImages::open(&data, &augment, &config().features, None).unwrap();
    data.export(dir.path()).unwrap();
    let cropped = logits();
    assert_ne!(full, cropped);
    let center = image.center_crop(0.5, 8, 8);
    let classifier = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
    fs::write(dir.path().join("preprocess.toml"), "crop = 1.0").unwrap();
    let expected = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
    let expected = expected.logits(std::slice::from_ref(&center)).unwrap();
    assert_eq!(classifier.logits(std::slice::from_ref(&image)).unwrap(), expected);
}

#[test]
fn rejects_invalid_model_directory() {
    let dir = tempfile::tempdir().unwrap();
    let load = || ImageClassifier::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(load().contains("encoder.toml"));
    model(dir.path(), HEAD);
    for (text, cause) in [("crop = 3.0", "from 0.1 to 1"), ("crap = 1.0", "unknown field `crap`")] {
        fs::write(dir.path().join("preprocess.toml"), text).unwrap();
        let error = load();
        assert!(error.contains(cause) && error.contains("preprocess.toml"), "{error}");
    }
    fs::remove_file(dir.path().join("preprocess.toml")).unwrap();
    model(
        dir.path(),
        "task = \"regression\"\npool = \"mean\"\ndropout = 0.0\nlabels = [\"size\"]\n",
    );
    assert!(load().contains("Regression, not for classification"));
    fs::remove_file(dir.path().join("head.toml")).unwrap();
    assert!(load().contains("without a head"));
}
