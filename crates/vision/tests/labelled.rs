//! Labelled images: sources of classes, splits and subsets, mixing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::data::split::Amount;
use data2vec_core::modality::finetune::Splittable;
use data2vec_core::{Dataset, Error, LabelledBatch, Targets};
use data2vec_vision::{AugmentConfig, LabelledImages, Mix, PatchEncoderConfig, Positions};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use tch::{Kind, Tensor};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The published settings of ImageNet fine-tuning, with another label smoothing.
fn config() -> AugmentConfig {
    AugmentConfig {
        crop_scale: [0.08, 1.0],
        crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
        flip: 0.5,
        rand_augment: Some("rand-m9-mstd0.5-inc1".parse().unwrap()),
        erasing: 0.25,
        mixup: 0.8,
        cutmix: 1.0,
        mixup_prob: 1.0,
        switch_prob: 0.5,
        label_smoothing: 0.1,
        eval_crop: 0.875,
    }
}

fn features(channels: i64) -> PatchEncoderConfig {
    PatchEncoderConfig {
        image_size: [8, 8],
        channels,
        mean: vec![0.5; channels as usize],
        std: vec![0.25; channels as usize],
        patch_size: 4,
        positions: Positions::SinCos,
    }
}

fn open(path: &Path) -> data2vec_core::Result<(LabelledImages, Option<LabelledImages>)> {
    LabelledImages::open(path, &config(), &features(3), None)
}

fn images(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(fixture("small.png"), path).unwrap();
    }
}

fn idx(path: &Path, size: &[u32], values: &[u8]) {
    let mut bytes = vec![0, 0, 8, size.len() as u8];
    size.iter().for_each(|n| bytes.extend(n.to_be_bytes()));
    bytes.extend(values);
    fs::write(path, bytes).unwrap();
}

/// Writes `count` uniform images of 8 × 8 pixels of value 60 · class; classes cycle from 0 to 3.
fn write_uniform(folder: &Path, count: u32, prefix: &str) {
    let labels: Vec<u8> = (0..count).map(|i| (i % 4) as u8).collect();
    let values: Vec<u8> = labels.iter().flat_map(|label| [60 * label; 64]).collect();
    idx(&folder.join(format!("{prefix}-images-idx3-ubyte")), &[count, 8, 8], &values);
    idx(&folder.join(format!("{prefix}-labels-idx1-ubyte")), &[count], &labels);
}

fn counts(data: &LabelledImages) -> Vec<usize> {
    let mut counts = vec![0; data.classes().len()];
    (0..data.len()).for_each(|i| counts[data.class(i)] += 1);
    counts
}

fn names(data: &LabelledImages) -> Vec<String> {
    (0..data.len()).map(|i| data.name(i)).collect()
}

#[test]
fn directories_are_classes() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), &["cats/1.png", "cats/old/2.png", "dogs/1.png"]);
    let (data, validation) = open(dir.path()).unwrap();
    assert!(validation.is_none() && data.skipped().is_empty());
    assert_eq!(data.classes(), ["cats", "dogs"]);
    assert_eq!(counts(&data), [2, 1]);
    assert!(data.name(2).ends_with("dogs/1.png") && data.size(2) == 1);
    // Next to other directories, `train` and `test` are classes.
    images(dir.path(), &["train/1.png", "test/1.png"]);
    let (data, validation) = open(dir.path()).unwrap();
    assert!(validation.is_none());
    assert_eq!(data.classes(), ["cats", "dogs", "test", "train"]);
}

#[test]
fn opens_train_and_val_directories() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), &["train/n1/1.png", "train/n2/1.png", "train/n3/1.png", "val/n3/2.png"]);
    let (data, validation) = open(dir.path()).unwrap();
    let validation = validation.unwrap();
    assert_eq!((data.len(), validation.len()), (3, 1));
    // Class indices are those of the training images.
    assert_eq!((validation.classes(), validation.class(0)), (data.classes(), 2));
    images(dir.path(), &["val/n9/1.png"]);
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("val") && error.contains("`n9` is not one of the 3"), "{error}");
}

#[test]
fn reads_labels_tsv() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), &["a.png", "b/c.png", "d.png"]);
    let table = dir.path().join("labels.tsv");
    let lines = "a.png\t10\r\nb/c.png\t9\n\nd.png\t9\n";
    for (path, head) in [(dir.path(), ""), (table.as_path(), "path\tlabel\n")] {
        fs::write(&table, format!("{head}{lines}")).unwrap();
        let (data, _) = open(path).unwrap();
        assert_eq!(data.classes(), ["9", "10"]); // by value
        assert_eq!(counts(&data), [2, 1]);
        assert!(data.name(0).ends_with("a.png") && data.class(0) == 1);
        assert!(data.load(1, &mut StdRng::seed_from_u64(1)).is_ok());
    }
    for (text, cause) in [
        ("a.png\tx\nb/c.png y\n", "line 2: is not `path<TAB>label`"),
        ("a.png\tx\tz\n", "line 1: is not"),
        ("a.png\t \n", "line 1: has no"),
        ("a.png\tx\nd.png\ty\na.png\ty\n", "line 3: a.png has another label"),
        ("\n", "lists no images"),
        ("a.png\tx\n", "all images are of one class, x"),
    ] {
        fs::write(&table, text).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(cause) && error.contains(dir.path().to_str().unwrap()), "{error}");
    }
    fs::write(&table, [0xff, 0xfe]).unwrap();
    assert!(open(dir.path()).unwrap_err().to_string().contains("is not UTF-8"));
}

#[test]
fn opens_idx_files_with_labels() {
    let dir = tempfile::tempdir().unwrap();
    write_uniform(dir.path(), 12, "train");
    assert!(open(dir.path()).unwrap().1.is_none());
    write_uniform(dir.path(), 8, "t10k");
    let (data, validation) = open(dir.path()).unwrap();
    assert_eq!((data.len(), validation.unwrap().len()), (12, 8));
    assert_eq!(data.classes(), ["0", "1", "2", "3"]);
    let (test, validation) = open(&dir.path().join("t10k-images-idx3-ubyte")).unwrap();
    assert!(test.len() == 8 && validation.is_none());
}

#[test]
fn rejects_images_without_classes() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), &["cats/1.png", "lost.png"]);
    for (path, cause) in [
        (dir.path().to_owned(), "lost.png has no label; expected a directory per class"),
        (dir.path().join("cats"), "1.png has no label"),
        (dir.path().join("gone"), "No such file"),
    ] {
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(cause) && error.contains(path.to_str().unwrap()), "{error}");
    }
    fs::remove_file(dir.path().join("lost.png")).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("all images are of one class, cats"), "{error}");
}

#[test]
fn with_classes_uses_indices_of_model() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), &["cats/1.png", "dogs/1.png"]);
    let (data, _) = open(dir.path()).unwrap();
    let model = ["dogs", "birds", "cats"].map(str::to_owned);
    let data = data.with_classes(&model).unwrap();
    assert_eq!((data.class(0), data.class(1)), (2, 0));
    assert_eq!(data.classes(), model);
    let error = data.with_classes(&model[..2]).unwrap_err().to_string();
    assert!(error.contains("`cats` is not one of the 2 known classes: dogs, birds"), "{error}");
}

#[test]
fn split_and_subsample_are_stratified() {
    let dir = tempfile::tempdir().unwrap();
    write_uniform(dir.path(), 400, "train");
    let (data, _) = open(dir.path()).unwrap();
    let (train, held) = data.split(0.1, 3).unwrap();
    assert_eq!((counts(&train), counts(&held)), (vec![90; 4], vec![10; 4]));
    let (train, held) = (names(&train), names(&held));
    assert!(held.iter().all(|name| !train.contains(name)));
    assert_eq!(names(&data.split(0.1, 3).unwrap().1), held);
    assert_ne!(names(&data.split(0.1, 4).unwrap().1), held);
    for share in [0.0, 1.0, -1.0, f64::NAN] {
        let error = data.split(share, 3).unwrap_err();
        assert!(matches!(error, Error::Config { key, .. } if key == "train.held_out"));
    }

    let percent = data.subsample(Amount::Share(0.01), 3).unwrap();
    assert_eq!(counts(&percent), [1; 4]);
    let five = data.subsample(Amount::Each(5), 3).unwrap();
    assert_eq!(counts(&five), [5; 4]);
    assert!(names(&percent).iter().all(|name| names(&five).contains(name)));
    assert_eq!(data.subsample(Amount::Share(1.0), 3).unwrap().len(), 400);
    for amount in [Amount::Share(0.0), Amount::Share(f64::NAN), Amount::Each(0)] {
        assert!(matches!(data.subsample(amount, 3), Err(Error::Config { .. })));
    }
}

fn batch(data: &LabelledImages, count: usize, seed: u64) -> LabelledBatch {
    let mut rng = StdRng::seed_from_u64(seed);
    let examples = (0..count).map(|i| data.load(i, &mut rng).unwrap()).collect();
    data.collate(examples, &mut rng).unwrap()
}

fn soft_labels(batch: &LabelledBatch) -> &Tensor {
    match &batch.targets {
        Targets::SoftLabels(labels) => labels,
        other => panic!("{other:?}"),
    }
}

#[test]
fn augments_training_images_only() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), &["cats/1.png", "cats/2.png", "dogs/1.png"]);
    for channels in [1, 3] {
        let (data, _) =
            LabelledImages::open(dir.path(), &config(), &features(channels), None).unwrap();
        let (one, same, other) = (batch(&data, 3, 1), batch(&data, 3, 1), batch(&data, 3, 2));
        assert_eq!(one.batch.inputs.size(), [3, channels, 8, 8]);
        assert_eq!(one.batch.inputs, same.batch.inputs);
        assert_ne!(one.batch.inputs, other.batch.inputs);
        assert_eq!(soft_labels(&one).size(), [3, 2]);
        let plain = data.without_augmentation();
        let (one, other) = (batch(&plain, 3, 1), batch(&plain, 3, 2));
        assert_eq!(one.batch.inputs, other.batch.inputs);
        let Targets::Classes(classes) = one.targets else { panic!("classes") };
        assert_eq!(Vec::<i64>::try_from(classes).unwrap(), [0, 0, 1]);
    }
    let (data, _) = open(dir.path()).unwrap();
    let broken = vec![data2vec_vision::LabelledImage { values: vec![0.0; 5], class: 0 }];
    assert!(data.collate(broken, &mut StdRng::seed_from_u64(1)).is_err());
}

#[test]
fn hard_labels_without_mixing_and_smoothing() {
    let dir = tempfile::tempdir().unwrap();
    write_uniform(dir.path(), 8, "train");
    let hard = AugmentConfig { mixup_prob: 0.0, label_smoothing: 0.0, ..config() };
    let (data, _) = LabelledImages::open(dir.path(), &hard, &features(1), None).unwrap();
    assert!(matches!(batch(&data, 8, 1).targets, Targets::Classes(_)));
    let smooth = AugmentConfig { mixup_prob: 0.0, label_smoothing: 0.2, ..config() };
    let (data, _) = LabelledImages::open(dir.path(), &smooth, &features(1), None).unwrap();
    let batch = batch(&data, 2, 1);
    let rows = Vec::<f32>::try_from(soft_labels(&batch).flatten(0, 1)).unwrap();
    for (share, expected) in rows.iter().zip([0.85, 0.05, 0.05, 0.05, 0.05, 0.85, 0.05, 0.05]) {
        assert!((share - expected).abs() < 1e-6, "{rows:?}");
    }
}

#[test]
fn labels_are_mixed_like_images() {
    let dir = tempfile::tempdir().unwrap();
    write_uniform(dir.path(), 7, "train"); // odd: the middle image has no partner
    let values: Vec<f32> = (0..4).map(|class| (60.0 * class as f32 / 255.0 - 0.5) / 0.25).collect();
    let values = Tensor::from_slice(&values).reshape([4, 1]);
    for (mixup, cutmix) in [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)] {
        let mix = AugmentConfig {
            mixup,
            cutmix,
            mixup_prob: 1.0,
            switch_prob: 0.5,
            ..AugmentConfig::default()
        };
        let (data, _) = LabelledImages::open(dir.path(), &mix, &features(1), None).unwrap();
        let mut mixed = 0;
        for seed in 0..20 {
            let batch = batch(&data, 7, seed);
            // Images are uniform, so the mean of a mixed image determines its composition.
            let mean = batch.batch.inputs.flatten(1, -1).mean_dim(&[1_i64][..], true, Kind::Float);
            let expected = soft_labels(&batch).matmul(&values);
            let far = (mean - expected).abs().max().double_value(&[]);
            assert!(far < 1e-5, "{mixup} {cutmix}: {far}");
            let most = soft_labels(&batch).max().double_value(&[]);
            assert!(most == 1.0, "middle image: {most}");
            mixed += i64::from(soft_labels(&batch).get(0).max().double_value(&[]) < 0.999);
        }
        assert!(mixed > 12, "{mixed}");
    }
}

#[test]
fn mixing_matches_configured_probabilities() {
    let mut rng = StdRng::seed_from_u64(7);
    let config = AugmentConfig { mixup_prob: 0.9, switch_prob: 0.3, ..config() };
    let (mut counts, mut mixup, mut cutmix) = (BTreeMap::new(), Vec::new(), Vec::new());
    let samples = 40_000;
    for _ in 0..samples {
        let mix = config.sample_mix(224, 224, &mut rng);
        let own = mix.own_share(224, 224);
        assert!((0.0..=1.0).contains(&own));
        let name = match mix {
            Mix::None => "none",
            Mix::Mixup(_) => {
                mixup.push(own);
                "mixup"
            }
            Mix::Cutmix(_) => {
                cutmix.push(own);
                "cutmix"
            }
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    let share = |name: &str| f64::from(counts[name]) / f64::from(samples);
    // Tolerances are five standard errors.
    assert!((share("none") - 0.1).abs() < 0.0075, "{counts:?}");
    assert!((share("cutmix") - 0.27).abs() < 0.0112, "{counts:?}");
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let variance =
        |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 - mean(x).powi(2);
    // Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    let within = 5.0 * 0.31 / (mixup.len() as f64).sqrt();
    assert!((mean(&mixup) - 0.5).abs() < within, "{}", mean(&mixup));
    assert!((variance(&mixup) - 1.0 / (4.0 * 2.6)).abs() < within, "{}", variance(&mixup));
    // Rectangles are clipped to the image. timm in 200,000 samples: 0.6825 ± 0.188 (mean ± std).
    let within = 5.0 * 0.188 / (cutmix.len() as f64).sqrt();
    assert!((mean(&cutmix) - 0.6825).abs() < within, "{}", mean(&cutmix));
}

#[test]
fn rejects_invalid_config() {
    let change = |change: fn(&mut AugmentConfig)| {
        let mut config = config();
        change(&mut config);
        config.validate()
    };
    for (result, expected) in [
        (change(|c| c.crop_scale = [0.0, 1.0]), "data.crop_scale"),
        (change(|c| c.flip = f64::NAN), "data.flip"),
        (change(|c| c.rand_augment.as_mut().unwrap().ops = 0), "data.rand_augment.ops"),
        (change(|c| c.erasing = 1.1), "data.erasing"),
        (change(|c| c.mixup = -1.0), "data.mixup"),
        (change(|c| c.cutmix = 1e9), "data.cutmix"),
        (change(|c| c.mixup_prob = 2.0), "data.mixup_prob"),
        (change(|c| c.switch_prob = -0.1), "data.switch_prob"),
        (change(|c| c.label_smoothing = 1.0), "data.label_smoothing"),
        (change(|c| c.eval_crop = 0.0), "data.eval_crop"),
    ] {
        assert!(matches!(result, Err(Error::Config { key, .. }) if key == expected), "{expected}");
    }
    assert!(config().validate().is_ok() && AugmentConfig::default().validate().is_ok());
}

proptest! {
    #[test]
    fn soft_labels_sum_to_one(
        mixup in prop_oneof![Just(0.0), 0.1..5.0_f64],
        cutmix in prop_oneof![Just(0.0), 0.1..5.0_f64],
        label_smoothing in 0.01..0.9_f64,
        count in 1_usize..9,
        seed in any::<u64>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        write_uniform(dir.path(), 9, "train");
        let config = AugmentConfig { mixup, cutmix, label_smoothing, ..config() };
        let (data, _) = LabelledImages::open(dir.path(), &config, &features(1), None).unwrap();
        let batch = batch(&data, count, seed);
        let sums = soft_labels(&batch).sum_dim_intlist(&[1_i64][..], false, Kind::Float);
        prop_assert!((sums - 1.0).abs().max().double_value(&[]) < 1e-5);
        prop_assert!(soft_labels(&batch).min().double_value(&[]) >= 0.0);
        prop_assert!(batch.batch.inputs.isfinite().all().int64_value(&[]) == 1);
    }
}
