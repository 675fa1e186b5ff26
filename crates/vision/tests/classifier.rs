//! A fine-tuned model from its folder to classes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::{
    EncoderConfig, HeadConfig, NormPlacement, TransformerConfig, Tuned, write_model,
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
            dim: 16,
            depth: 2,
            heads: 2,
            mlp_ratio: 2.0,
            norm: NormPlacement::Pre,
            norm_eps: 1e-6,
            input_norm: false,
            init: Default::default(),
            layer_scale: None,
            input_dropout: 0.0,
            dropout: 0.0,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            layer_drop: 0.0,
            drop_path: 0.0,
        },
    }
}

/// A model of three classes with random weights.
fn model(dir: &Path, head: &str) {
    tch::manual_seed(3);
    let head: HeadConfig = toml::from_str(head).unwrap();
    let vars = nn::VarStore::new(Device::Cpu);
    Tuned::<PatchEncoder>::new(&vars.root(), config(), head.clone()).unwrap();
    let vars: HashMap<_, _> = vars.variables();
    write_model(dir, &vars, &config(), Some(&head), None).unwrap();
}

const HEAD: &str = r#"
    task = "classification"
    pool = "mean"
    dropout = 0.0
    labels = ["cat", "dog", "bird"]
"#;

#[test]
fn classes_are_those_of_the_scores() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), HEAD);
    let classifier = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!(classifier.labels(), ["cat", "dog", "bird"]);
    let [colour, grey] =
        ["source.png", "grey.jpg"].map(|name| Pixels::read(fixture(name)).unwrap());
    let scores = classifier.logits(&[colour.clone(), grey]).unwrap();
    assert_eq!(scores.dim(), (2, 3));
    let classes = classifier.classify(&colour).unwrap();
    assert!(classes.is_sorted_by(|a, b| a.1 >= b.1), "{classes:?}");
    let total: f64 = scores.row(0).iter().map(|&score| f64::from(score).exp()).sum();
    for (label, share) in classes {
        let place = classifier.labels().iter().position(|other| *other == label).unwrap();
        let expected = f64::from(scores[[0, place]]).exp() / total;
        assert!((share - expected).abs() < 1e-5, "{label}: {share}, {expected}");
    }
    assert!(classifier.logits(&[]).is_err());
}

#[test]
fn images_are_seen_as_they_are_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), HEAD);
    let picture = Pixels::read(fixture("source.png")).unwrap();
    let seen = || {
        let classifier = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
        classifier.logits(std::slice::from_ref(&picture)).unwrap()
    };
    let whole = seen();
    let data = dir.path().join("data");
    for class in ["a", "b"] {
        fs::create_dir_all(data.join(class)).unwrap();
        fs::copy(fixture("source.png"), data.join(class).join("1.png")).unwrap();
    }
    let close = AugmentConfig { eval_crop: 0.5, ..AugmentConfig::default() };
    let (data, _) = LabelledImages::open(&data, &close, &config().features, None).unwrap();
    data.export(dir.path()).unwrap();
    let part = seen();
    assert_ne!(whole, part);
    let middle = picture.centre(0.5, 8, 8);
    let classifier = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
    fs::write(dir.path().join("preprocess.toml"), "crop = 1.0").unwrap();
    let expected = ImageClassifier::load(dir.path(), Device::Cpu).unwrap();
    let expected = expected.logits(std::slice::from_ref(&middle)).unwrap();
    assert_eq!(classifier.logits(std::slice::from_ref(&picture)).unwrap(), expected);
}

#[test]
fn folders_of_no_use_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let load = || ImageClassifier::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(load().contains("encoder.toml"));
    model(dir.path(), HEAD);
    for (text, said) in [("crop = 3.0", "no share"), ("crap = 1.0", "unknown field `crap`")] {
        fs::write(dir.path().join("preprocess.toml"), text).unwrap();
        let error = load();
        assert!(error.contains(said) && error.contains("preprocess.toml"), "{error}");
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
