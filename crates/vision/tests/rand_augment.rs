//! RandAugment's operations against Pillow (`fixtures/make_ops.py`), their frequencies and
//! magnitudes; random erasing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::Error;
use data2vec_vision::{
    Crop, Enhancement, ImageOp, Interpolation, Pixels, RandAugment, Resampling, sample_erase_box,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn part(image: &Pixels, [top, left]: [usize; 2], [height, width]: [usize; 2]) -> Pixels {
    image.resized(Crop { top, left, height, width }, height, width)
}

/// Returns the operation of timm's name `name`.
fn op(name: &str, argument: f64) -> ImageOp {
    let integer = argument as u32;
    match name {
        "AutoContrast" => ImageOp::AutoContrast,
        "Equalize" => ImageOp::Equalize,
        "Invert" => ImageOp::Invert,
        "Rotate" => ImageOp::Rotate(argument),
        "Posterize" => ImageOp::Posterize(integer),
        "Solarize" => ImageOp::Solarize(integer),
        "SolarizeAdd" => ImageOp::SolarizeAdd(integer),
        "Color" => ImageOp::Enhance(Enhancement::Saturation, argument),
        "Contrast" => ImageOp::Enhance(Enhancement::Contrast, argument),
        "Brightness" => ImageOp::Enhance(Enhancement::Brightness, argument),
        "Sharpness" => ImageOp::Sharpness(argument),
        "ShearX" => ImageOp::ShearX(argument),
        "ShearY" => ImageOp::ShearY(argument),
        "TranslateXRel" => ImageOp::TranslateX(argument),
        "TranslateYRel" => ImageOp::TranslateY(argument),
        other => panic!("{other}"),
    }
}

#[test]
fn operations_match_pillow() {
    let cases = fs::read_to_string(fixture("ops.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() > 40);
    for (channels, sheet) in [(3, "ops-rgb.png"), (1, "ops-grey.png")] {
        let source = part(&Pixels::read(fixture("source.png")).unwrap(), [4, 10], [24, 28]);
        let dim = source.values().iter().map(|v| v / 2 + 40).collect();
        let dim = Pixels::new(28, 24, 3, dim).unwrap();
        let images = BTreeMap::from([
            ("tiny", part(&source, [0, 0], [9, 28])),
            ("source", source),
            ("dim", dim),
        ]);
        let sheet = Pixels::read(fixture(sheet)).unwrap();
        let mut top = 0;
        for case in &cases {
            let image = &images[case["image"].as_str().unwrap()];
            let resampling = match case["between"].as_str() {
                Some("bicubic") => Resampling::Bicubic,
                _ => Resampling::Bilinear,
            };
            let fill: &[u8] = if channels == 3 { &[124, 116, 104] } else { &[73] };
            let op = op(case["op"].as_str().unwrap(), case["argument"].as_f64().unwrap());
            let ours =
                image.clone().with_channels(channels).unwrap().apply_op(op, resampling, fill);
            let expected = part(&sheet, [top, 0], [image.height(), image.width()]);
            assert_eq!(ours, expected, "{case} in {channels} channels");
            top += image.height();
        }
        assert_eq!(top, sheet.height());
    }
}

#[test]
fn center_crop_matches_torchvision() {
    let source = Pixels::read(fixture("source.png")).unwrap();
    for (name, crop, side) in [("centre-0.875.png", 0.875, 28), ("centre-1.png", 1.0, 24)] {
        assert_eq!(
            source.center_crop(crop, side, side),
            Pixels::read(fixture(name)).unwrap(),
            "{name}"
        );
    }
    // The identity for an image of the target size.
    let square = part(&source, [0, 0], [20, 20]);
    assert_eq!(square.center_crop(1.0, 20, 20), square);
    // The limiting side of an image of another aspect ratio.
    let tall = part(&source, [0, 0], [47, 20]);
    assert_eq!(tall.center_crop(1.0, 10, 20).height(), 10);
}

#[test]
fn posterize_to_zero_and_eight_bits() {
    let image = Pixels::read(fixture("small.png")).unwrap();
    let posterized =
        |bits| image.clone().apply_op(ImageOp::Posterize(bits), Resampling::Bilinear, &[0; 3]);
    assert!(posterized(0).values().iter().all(|&v| v == 0));
    assert_eq!(posterized(8), image);
}

fn published() -> RandAugment {
    "rand-m9-mstd0.5-inc1".parse().unwrap()
}

#[test]
fn parses_timm_names() {
    let named = published();
    assert_eq!((named.magnitude, named.std, named.max), (9.0, 0.5, 10.0));
    assert_eq!((named.ops, named.chance), (2, 0.5));
    assert_eq!(named.interpolation, Interpolation::Bicubic);
    let other: RandAugment = "rand-n3-m12-mmax15-p0.7-inc1".parse().unwrap();
    assert_eq!((other.magnitude, other.std, other.max), (12.0, 0.0, 15.0));
    assert_eq!((other.ops, other.chance), (3, 0.7));
    for (name, cause) in [
        ("augmix-m3", "does not have the form"),
        ("rand-m9-mstd0.5", "has no `inc1`"),
        ("rand-m9-inc1-w0", "unknown key `w0`"),
        ("rand-mx-inc1", "not a key with a number"),
    ] {
        let error = name.parse::<RandAugment>().unwrap_err();
        assert!(error.contains(cause) && error.contains(name), "{error}");
    }
}

#[test]
fn deserializes_name_or_table() {
    let read = |json: &str| serde_json::from_str::<RandAugment>(json);
    assert_eq!(read("\"rand-m9-mstd0.5-inc1\"").unwrap(), published());
    let table = serde_json::to_string(&published()).unwrap();
    assert_eq!(read(&table).unwrap(), published());
    let error = read(&table.replace("\"std\"", "\"spread\"")).unwrap_err().to_string();
    assert!(error.contains("unknown field `spread`"), "{error}");
    assert!(read("\"rand-m9\"").unwrap_err().to_string().contains("inc1"));
    assert!(read("3").unwrap_err().to_string().contains("rand-m9-mstd0.5-inc1"));
}

#[test]
fn rejects_invalid_config() {
    let change = |change: fn(&mut RandAugment)| {
        let mut config = published();
        change(&mut config);
        config.validate("data.rand_augment")
    };
    for (result, key_name) in [
        (change(|c| c.magnitude = f64::NAN), "magnitude"),
        (change(|c| c.std = -1.0), "std"),
        (change(|c| c.max = 1e9), "max"),
        (change(|c| c.ops = 0), "ops"),
        (change(|c| c.chance = 1.5), "chance"),
    ] {
        let expected = format!("data.rand_augment.{key_name}");
        assert!(matches!(result, Err(Error::Config { key, .. }) if key == expected));
    }
    assert!(published().validate("data.rand_augment").is_ok());
}

/// Returns the name of an operation without its argument.
fn kind(op: &ImageOp) -> String {
    let text = format!("{op:?}");
    match op {
        ImageOp::Enhance(enhancement, _) => format!("{enhancement:?}"),
        _ => text.split('(').next().unwrap().to_owned(),
    }
}

#[test]
fn operations_are_equally_frequent() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let images = 60_000;
    let (mut unchanged, mut all) = (0, 0);
    for _ in 0..images {
        let ops = published().sample_ops(&mut rng);
        assert!(ops.len() <= 2);
        all += ops.len();
        unchanged += usize::from(ops.is_empty());
        ops.iter().for_each(|op| *counts.entry(kind(op)).or_default() += 1);
    }
    // Expected: one operation per image on average, none for a quarter of the images. Tolerances are
    // five standard errors.
    assert!((all as f64 / images as f64 - 1.0).abs() < 5.0 * 0.00289, "{all}");
    assert!((unchanged as f64 / images as f64 - 0.25).abs() < 5.0 * 0.00177, "{unchanged}");
    assert_eq!(counts.len(), 15, "{counts:?}");
    for (name, count) in counts {
        let share = count as f64 / all as f64;
        assert!((share - 1.0 / 15.0).abs() < 5.0 * 0.00102, "{name}: {share}");
    }
}

#[test]
fn strengths_follow_magnitude() {
    let mut rng = StdRng::seed_from_u64(2);
    let always = RandAugment { chance: 1.0, ops: 1, ..published() };
    let mut degrees = Vec::new();
    let mut bits: BTreeMap<u32, usize> = BTreeMap::new();
    for _ in 0..100_000 {
        match always.sample_ops(&mut rng)[0] {
            ImageOp::Rotate(by) => degrees.push(by),
            ImageOp::Posterize(n) => *bits.entry(n).or_default() += 1,
            ImageOp::Solarize(from) => assert!(from <= 256 - 150, "{from}"),
            ImageOp::SolarizeAdd(add) => assert!((70..=110).contains(&add), "{add}"),
            ImageOp::Enhance(_, by) | ImageOp::Sharpness(by) => {
                assert!((0.1..=1.9).contains(&by) && (by - 1.0).abs() > 0.6, "{by}");
            }
            ImageOp::ShearX(by) | ImageOp::ShearY(by) => assert!(by.abs() <= 0.3, "{by}"),
            ImageOp::TranslateX(by) | ImageOp::TranslateY(by) => assert!(by.abs() <= 0.45, "{by}"),
            _ => {}
        }
    }
    // Magnitude 9 ± 0.5, clamped to 10, of which 10 is 30°: the mean is 26.988°.
    let mean = degrees.iter().map(|by| by.abs()).sum::<f64>() / degrees.len() as f64;
    assert!((mean - 26.988).abs() < 5.0 * 1.46 / (degrees.len() as f64).sqrt(), "{mean}");
    assert!(degrees.iter().all(|by| by.abs() <= 30.0));
    let left = degrees.iter().filter(|by| **by > 0.0).count() as f64 / degrees.len() as f64;
    assert!((left - 0.5).abs() < 5.0 * 0.5 / (degrees.len() as f64).sqrt(), "{left}");
    // 4 − ⌊0.4 m⌋ is 1 from m = 7.5 on and 0 only at m = 10, to which 2.3 % are clamped.
    let all: usize = bits.values().sum();
    let none = bits[&0] as f64 / all as f64;
    assert!((none - 0.0228).abs() < 5.0 * 0.149 / (all as f64).sqrt(), "{bits:?}");
    assert!(bits[&1] as f64 > 0.95 * all as f64, "{bits:?}");
}

#[test]
fn apply_is_reproducible() {
    let image = Pixels::read(fixture("source.png")).unwrap();
    let always = RandAugment { chance: 1.0, ..published() };
    let apply = |seed| always.apply(image.clone(), &[1, 2, 3], &mut StdRng::seed_from_u64(seed));
    assert_eq!(apply(3), apply(3));
    assert!((0..20).any(|seed| apply(seed) != apply(seed + 1)));
}

proptest! {
    #[test]
    fn apply_keeps_size_of_any_image(
        height in 1_usize..40,
        width in 1_usize..40,
        gray in any::<bool>(),
        value in any::<u8>(),
        seed in any::<u64>(),
    ) {
        let channels = if gray { 1 } else { 3 };
        let values = (0..height * width * channels).map(|i| value.wrapping_mul(i as u8)).collect();
        let image = Pixels::new(width, height, channels, values).unwrap();
        let always = RandAugment { chance: 1.0, ops: 5, std: 3.0, interpolation: Interpolation::Random, ..published() };
        let augmented = always.apply(image, &[9; 3], &mut StdRng::seed_from_u64(seed));
        prop_assert_eq!(
            (augmented.height(), augmented.width(), augmented.channels()),
            (height, width, channels)
        );
    }

    #[test]
    fn erase_boxes_lie_within_image(
        height in 1_usize..300,
        width in 1_usize..300,
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        for part in (0..20).filter_map(|_| sample_erase_box(height, width, &mut rng)) {
            prop_assert!(part.top + part.height <= height && part.left + part.width <= width);
            prop_assert!(part.height < height && part.width < width);
        }
    }
}

#[test]
fn erase_boxes_match_timm_statistics() {
    let mut rng = StdRng::seed_from_u64(5);
    let boxes: Vec<Crop> =
        (0..20_000).filter_map(|_| sample_erase_box(224, 224, &mut rng)).collect();
    assert!(boxes.len() > 19_990, "{}", boxes.len());
    let area = |part: &Crop| (part.height * part.width) as f64 / 50_176.0;
    assert!(boxes.iter().all(|part| (0.0195..0.335).contains(&area(part))));
    let mean = |f: &dyn Fn(&Crop) -> f64| boxes.iter().map(f).sum::<f64>() / boxes.len() as f64;
    // Uniform between 2 % and 1/3, log-uniform in the aspect ratio; boxes that do not fit (large and
    // long) are rejected. timm in 200,000 samples: 0.1760 ± 0.0901 (mean ± std).
    let share = mean(&area);
    assert!((share - 0.1760).abs() < 5.0 * 0.0901 / 20_000_f64.sqrt(), "{share}");
    let aspect = mean(&|part| (part.height as f64 / part.width as f64).ln());
    assert!(aspect.abs() < 5.0 * 0.692 / 20_000_f64.sqrt(), "{aspect}");
}
