//! Datasets from directories and IDX files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use data2vec_core::{Dataset, Error};
use data2vec_vision::{PatchEncoderConfig, Pixels, Positions, VisionDataConfig, VisionDataset};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn config() -> VisionDataConfig {
    VisionDataConfig {
        crop_scale: [0.2, 1.0],
        crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
        flip: 0.5,
        jitter: Some([0.4; 3]),
    }
}

fn features(channels: i64) -> PatchEncoderConfig {
    PatchEncoderConfig {
        image_size: [8, 12],
        channels,
        mean: vec![0.5; channels as usize],
        std: vec![0.25; channels as usize],
        patch_size: 4,
        positions: Positions::SinCos,
    }
}

/// Creates 20 images in two classes, and files that are not images.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for class in ["cats", "dogs/young"] {
        let class = dir.path().join(class);
        fs::create_dir_all(&class).unwrap();
        for i in 0..10 {
            fs::copy(fixture("small.png"), class.join(format!("{i}.PNG"))).unwrap();
        }
        fs::write(class.join("notes.txt"), "not an image").unwrap();
        fs::write(class.join("._0.png"), "resource fork of macOS").unwrap();
    }
    fs::create_dir(dir.path().join("empty")).unwrap();
    dir
}

#[test]
fn lists_directory_with_classes() {
    let dir = tree();
    let data = VisionDataset::open(dir.path(), &config(), &features(3), None).unwrap();
    assert_eq!(data.len(), 20);
    assert_eq!(data.classes().unwrap(), ["cats", "dogs"]);
    let labels: Vec<_> = (0..20).map(|i| data.label(i).unwrap()).collect();
    assert_eq!(labels, [[Some(0); 10], [Some(1); 10]].concat());
    assert!(data.name(19).ends_with("9.PNG") && data.size(0) == 1);
    assert!(data.skipped().is_empty());
}

#[cfg(unix)]
#[test]
fn follows_links_once_and_reports_dangling_ones() {
    let dir = tree();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("cats/back")).unwrap();
    std::os::unix::fs::symlink("/nowhere", dir.path().join("cats/lost.jpg")).unwrap();
    let data = VisionDataset::open(dir.path(), &config(), &features(3), None).unwrap();
    assert_eq!(data.len(), 20);
    let [skipped] = data.skipped().try_into().unwrap();
    assert!(skipped.contains("cats/lost.jpg: No such file"), "{skipped}");
}

#[test]
fn opens_single_file_without_classes() {
    let data = VisionDataset::open(fixture("source.png"), &config(), &features(3), None).unwrap();
    assert_eq!((data.len(), data.label(0).unwrap(), data.classes().unwrap().len()), (1, None, 0));
}

#[test]
fn splits_are_disjoint_complete_and_stable() {
    let dir = tree();
    let open = || VisionDataset::open(dir.path(), &config(), &features(3), None).unwrap();
    let names = |data: &VisionDataset| -> BTreeSet<String> {
        (0..data.len()).map(|i| data.name(i)).collect()
    };
    let all = open();
    let (train, held) = all.split(0.3, 5).unwrap();
    let (train, held) = (names(&train), names(&held));
    assert!(train.is_disjoint(&held));
    assert_eq!(train.union(&held).cloned().collect::<BTreeSet<_>>(), names(&all));
    // New images do not move existing ones to the other side.
    fs::copy(fixture("small.png"), dir.path().join("cats/00.png")).unwrap();
    let (more_train, more_held) = open().split(0.3, 5).unwrap();
    assert!(names(&more_train).is_superset(&train) && names(&more_held).is_superset(&held));
    for share in [0.0, 1.0, f64::NAN] {
        let error = all.split(share, 5).unwrap_err();
        assert!(matches!(error, Error::Config { key, .. } if key == "train.held_out"));
    }
}

#[test]
fn batches_have_encoder_shape_and_are_reproducible() {
    let dir = tree();
    for channels in [1, 3] {
        let data = VisionDataset::open(dir.path(), &config(), &features(channels), None).unwrap();
        let load = |data: &VisionDataset, seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            data.load(3, &mut rng).unwrap()
        };
        assert_eq!(load(&data, 1), load(&data, 1));
        assert_ne!(load(&data, 1), load(&data, 2));
        let plain = data.without_augmentation();
        assert_eq!(load(&plain, 1), load(&plain, 2));
        let mut rng = StdRng::seed_from_u64(1);
        let examples = vec![load(&data, 1), load(&data, 2)];
        let batch = data.collate(examples, &mut rng).unwrap();
        assert_eq!(batch.inputs.size(), [2, channels, 8, 12]);
        assert!(data.collate(vec![vec![0.0; 5]], &mut rng).is_err());
    }
}

#[test]
fn values_are_normalized() {
    // A white image: (1 − 0.5) / 0.25 everywhere.
    let dir = tempfile::tempdir().unwrap();
    write_idx(&dir.path().join("images-idx3-ubyte"), &[1, 5, 9], &[255; 45], false);
    let mut even = config();
    (even.jitter, even.flip) = (None, 1.0);
    let data = VisionDataset::open(dir.path(), &even, &features(3), None).unwrap();
    let example = data.load(0, &mut StdRng::seed_from_u64(1)).unwrap();
    assert_eq!(example, vec![2.0; 3 * 8 * 12]);
}

#[test]
fn flip_mirrors_left_to_right() {
    let dir = tempfile::tempdir().unwrap();
    let ramp: Vec<u8> = (0..96_u8).map(|i| i % 12 * 20).collect();
    write_idx(&dir.path().join("images-idx3-ubyte"), &[1, 8, 12], &ramp, false);
    let config = |flip| VisionDataConfig {
        crop_scale: [1.0, 1.0],
        crop_ratio: [1.5, 1.5],
        flip,
        jitter: None,
    };
    let load = |flip| {
        let data = VisionDataset::open(dir.path(), &config(flip), &features(1), None).unwrap();
        data.load(0, &mut StdRng::seed_from_u64(1)).unwrap()
    };
    let (plain, mut flipped) = (load(0.0), load(1.0));
    assert_eq!(plain[1], (20.0 / 255.0 - 0.5) / 0.25);
    flipped.chunks_mut(12).for_each(<[f32]>::reverse);
    assert_eq!(plain, flipped);
}

fn write_idx(path: &Path, size: &[u32], values: &[u8], gzip: bool) {
    let mut bytes = vec![0, 0, 8, size.len() as u8];
    size.iter().for_each(|n| bytes.extend(n.to_be_bytes()));
    bytes.extend(values);
    let file = File::create(path).unwrap();
    if gzip {
        let mut file = GzEncoder::new(file, Compression::fast());
        file.write_all(&bytes).unwrap();
        file.finish().unwrap();
    } else {
        (&file).write_all(&bytes).unwrap();
    }
}

#[test]
fn reads_idx_files_with_labels() {
    for gzip in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| dir.path().join(format!("{name}{}", if gzip { ".gz" } else { "" }));
        let values: Vec<u8> = (0..24).collect();
        write_idx(&name("train-images-idx3-ubyte"), &[2, 3, 4], &values, gzip);
        write_idx(&name("train-labels-idx1-ubyte"), &[2], &[7, 3], gzip);
        write_idx(&name("t10k-images-idx3-ubyte"), &[1, 3, 4], &values[..12], gzip);
        let data = VisionDataset::open(dir.path(), &config(), &features(1), None).unwrap();
        assert_eq!(data.len(), 2);
        assert_eq!((data.label(0).unwrap(), data.label(1).unwrap()), (Some(7), Some(3)));
        assert_eq!(data.classes().unwrap().len(), 8);
        assert_eq!(data.read(1).unwrap(), Pixels::new(4, 3, 1, values[12..].to_vec()).unwrap());
        assert!(data.name(1).ends_with("image 1"));
        let test = name("t10k-images-idx3-ubyte");
        let data = VisionDataset::open(test, &config(), &features(3), None).unwrap();
        assert_eq!((data.len(), data.label(0).unwrap()), (1, None));
    }
}

#[test]
fn rejects_invalid_idx_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("images-idx3-ubyte");
    let refused = |cause: &str| {
        let error =
            VisionDataset::open(&path, &config(), &features(1), None).unwrap_err().to_string();
        assert!(error.contains(cause) && error.contains("images-idx3-ubyte"), "{error}");
    };
    write_idx(&path, &[2, 2, 2], &[0; 7], false);
    refused("ends early");
    write_idx(&path, &[2, 2, 2], &[0; 9], true);
    refused("too long");
    write_idx(&path, &[u32::MAX, u32::MAX, 1], &[0; 9], false);
    refused("impossible size");
    write_idx(&path, &[0, 2, 2], &[], false);
    refused("is empty");
    write_idx(&path, &[4], &[0; 4], false);
    refused("not an IDX file");
    fs::write(&path, [0x1f, 0x8b, 1, 2, 3]).unwrap();
    refused("");
    fs::write(&path, [0]).unwrap();
    refused("ends early");
    write_idx(&path, &[2, 1, 1], &[0; 2], false);
    write_idx(&dir.path().join("labels-idx1-ubyte"), &[3], &[0; 3], false);
    let error = VisionDataset::open(&path, &config(), &features(1), None).unwrap_err().to_string();
    assert!(error.contains("3 labels for 2 images"), "{error}");
}

#[test]
fn rejects_paths_without_images() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "no image").unwrap();
    let error = VisionDataset::open(dir.path(), &config(), &features(3), None).unwrap_err();
    assert!(error.to_string().contains("no image in it"), "{error}");
    assert!(VisionDataset::open(dir.path().join("gone"), &config(), &features(3), None).is_err());
    let error = VisionDataset::open(fixture("one.png"), &config(), &features(4), None).unwrap_err();
    assert!(error.to_string().contains("features.channels"), "{error}");
}

#[test]
fn rejects_invalid_config() {
    let change = |change: fn(&mut VisionDataConfig)| {
        let mut config = config();
        change(&mut config);
        config.validate()
    };
    for (result, expected) in [
        (change(|c| c.crop_scale = [0.0, 1.0]), "data.crop_scale"),
        (change(|c| c.crop_scale = [0.5, 1.1]), "data.crop_scale"),
        (change(|c| c.crop_ratio = [2.0, 1.0]), "data.crop_ratio"),
        (change(|c| c.crop_ratio = [1.0, f64::INFINITY]), "data.crop_ratio"),
        (change(|c| c.flip = 2.0), "data.flip"),
        (change(|c| c.jitter = Some([0.4, -0.1, 0.4])), "data.jitter"),
    ] {
        assert!(matches!(result, Err(Error::Config { key, .. }) if key == expected));
    }
}

proptest! {
    #[test]
    fn crops_lie_within_image(
        height in 1_usize..300,
        width in 1_usize..300,
        low in 0.001..1.0_f64,
        seed in any::<u64>(),
    ) {
        let config = VisionDataConfig { crop_scale: [low, 1.0], ..config() };
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..20 {
            let crop = config.sample_crop(height, width, &mut rng);
            prop_assert!(crop.height > 0 && crop.width > 0);
            prop_assert!(crop.top + crop.height <= height && crop.left + crop.width <= width);
        }
    }
}

#[test]
fn crops_match_torchvision_statistics() {
    let mut rng = StdRng::seed_from_u64(3);
    let config = config();
    let crops: Vec<_> = (0..20_000).map(|_| config.sample_crop(400, 500, &mut rng)).collect();
    let share = |c: &data2vec_vision::Crop| (c.height * c.width) as f64 / 200_000.0;
    let mean = crops.iter().map(share).sum::<f64>() / crops.len() as f64;
    // torchvision in 200,000 samples: share 0.5156 ± 0.195 (mean ± std), log ratio 0.0337 ± 0.162 (a
    // wide image fits wide crops better). Tolerances are five standard errors.
    assert!((mean - 0.5156).abs() < 0.0072, "{mean}");
    let ratio = |c: &data2vec_vision::Crop| (c.width as f64 / c.height as f64).ln();
    let mean = crops.iter().map(ratio).sum::<f64>() / crops.len() as f64;
    assert!((mean - 0.0337).abs() < 0.006, "{mean}");
}
