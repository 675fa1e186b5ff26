//! Properties of masks, and their statistics against the references'.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_core::{Error, MaskStrategy};
use data2vec_vision::{BlockMask, InverseBlockMask, VisionMaskConfig};
use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;

/// Number of masks per case; the references have 600 to 8000.
const SAMPLES: usize = 8000;
/// Tolerance in standard errors. With about 1000 comparisons, one fails by chance for 1 of 2000
/// seeds; the seed is fixed.
const SIGMA: f64 = 5.0;

fn golden() -> Value {
    serde_json::from_str(include_str!("masks.json")).unwrap()
}

fn base() -> InverseBlockMask {
    InverseBlockMask { probability: 0.8, length: 3, adjust: 0.07 }
}

fn beit() -> BlockMask {
    BlockMask { patches: 120, min_block: 16, max_block: 196, min_aspect: 0.3 }
}

/// Samples masks, true = masked.
fn sample(config: &VisionMaskConfig, side: usize, count: usize) -> Vec<Array2<bool>> {
    let masking = config.on_grid([side as i64; 2]).unwrap();
    let all = (side * side) as i64;
    let mut rng = StdRng::seed_from_u64(11);
    let mask = masking.sample(&vec![all; count], all, &mut rng).unwrap();
    let rows = mask.masked().rows().into_iter().map(|row| row.to_vec()).collect::<Vec<_>>();
    rows.into_iter().map(|row| Array2::from_shape_vec((side, side), row).unwrap()).collect()
}

/// Returns the number of runs of masked patches in row-major order.
fn runs(mask: &Array2<bool>) -> usize {
    let flat: Vec<bool> = mask.iter().copied().collect();
    flat.split(|&masked| !masked).filter(|run| !run.is_empty()).count()
}

/// Returns the sizes of the connected components of visible patches.
fn components(mask: ArrayView2<bool>) -> Vec<usize> {
    let mut open = mask.mapv(|masked| !masked);
    let mut sizes = Vec::new();
    while let Some((start, _)) = open.indexed_iter().find(|&(_, &open)| open) {
        let (mut stack, mut size) = (vec![start], 0);
        while let Some((row, column)) = stack.pop() {
            if open.get((row, column)) == Some(&true) {
                open[(row, column)] = false;
                size += 1;
                stack.extend([(row + 1, column), (row, column + 1)]);
                stack.extend(row.checked_sub(1).map(|row| (row, column)));
                stack.extend(column.checked_sub(1).map(|column| (row, column)));
            }
        }
        sizes.push(size);
    }
    sizes
}

/// Asserts that the mean of `ours` equals the reference's within sampling error.
#[track_caller]
fn assert_mean(what: &str, ours: &[usize], theirs: &Value) {
    let number = |key: &str| theirs[key].as_f64().unwrap();
    let mean = ours.iter().sum::<usize>() as f64 / ours.len() as f64;
    let error = number("std") * (1.0 / ours.len() as f64 + 1.0 / number("n")).sqrt();
    let diff = (mean - number("mean")).abs();
    assert!(diff <= SIGMA * error + 1e-6, "{what}: {mean}, theirs {}", number("mean"));
}

/// Asserts that the rate at which each patch is `value` equals the reference's.
#[track_caller]
fn assert_rates(masks: &[Array2<bool>], value: bool, theirs: &Value, samples: f64) {
    for (row, rates) in theirs.as_array().unwrap().iter().enumerate() {
        for (column, rate) in rates.as_array().unwrap().iter().enumerate() {
            let rate = rate.as_f64().unwrap();
            let ours = masks.iter().filter(|mask| mask[(row, column)] == value).count();
            let ours = ours as f64 / masks.len() as f64;
            let error = (rate * (1.0 - rate) * (1.0 / masks.len() as f64 + 1.0 / samples)).sqrt();
            // The reference's rates are rounded to three digits.
            let allowed = SIGMA * error + 5e-4;
            assert!((ours - rate).abs() <= allowed, "({row}, {column}): {ours}, theirs {rate}");
        }
    }
}

#[test]
fn inverse_blocks_match_fairseq() {
    for (name, config, side) in [
        ("inverse_base", base(), 14),
        ("inverse_large", InverseBlockMask { probability: 0.75, length: 3, adjust: 0.1 }, 14),
        ("inverse_huge14", InverseBlockMask { probability: 0.75, length: 3, adjust: 0.1 }, 16),
    ] {
        let theirs = &golden()[name];
        let masks = sample(&VisionMaskConfig::InverseBlocks(config), side, SAMPLES);
        let visible = theirs["visible"].as_u64().unwrap() as usize;
        for mask in &masks {
            assert_eq!(mask.iter().filter(|&&masked| !masked).count(), visible);
        }
        assert_mean(name, &masks.iter().map(runs).collect::<Vec<_>>(), &theirs["runs"]);
        let sizes: Vec<usize> = masks.iter().flat_map(|mask| components(mask.view())).collect();
        assert_mean(name, &sizes, &theirs["components"]);
        let samples = theirs["runs"]["n"].as_f64().unwrap();
        assert_rates(&masks, false, &theirs["visible_rate"], samples);
    }
}

#[test]
fn blocks_match_beit() {
    for (name, patches) in [("blocks", 120), ("blocks_75", 75)] {
        let theirs = &golden()[name];
        let masks = sample(&VisionMaskConfig::Blocks(BlockMask { patches, ..beit() }), 14, SAMPLES);
        let counts: Vec<usize> =
            masks.iter().map(|mask| mask.iter().filter(|&&masked| masked).count()).collect();
        assert!(counts.iter().all(|&count| count <= patches));
        assert_mean(name, &counts, &theirs["count"]);
        assert_mean(name, &masks.iter().map(runs).collect::<Vec<_>>(), &theirs["runs"]);
        assert_rates(&masks, true, &theirs["hidden_rate"], 600.0);
        let full = counts.iter().filter(|&&count| count == patches).count() as f64 / SAMPLES as f64;
        let rate = theirs["count_hist"][patches.to_string()].as_f64().unwrap() / 600.0;
        let error = (rate * (1.0 - rate) * (1.0 / SAMPLES as f64 + 1.0 / 600.0)).sqrt();
        assert!((full - rate).abs() < SIGMA * error, "{full} reach {patches}, theirs {rate}");
    }
}

#[test]
fn rejects_invalid_config() {
    let blocks = |change: fn(&mut BlockMask)| {
        let mut config = beit();
        change(&mut config);
        VisionMaskConfig::Blocks(config)
    };
    let inverse = |change: fn(&mut InverseBlockMask)| {
        let mut config = base();
        change(&mut config);
        VisionMaskConfig::InverseBlocks(config)
    };
    for (config, expected) in [
        (blocks(|c| c.patches = 0), "mask.patches"),
        (blocks(|c| c.patches = 196), "mask.patches"),
        (blocks(|c| c.min_block = 0), "mask.min_block"),
        (blocks(|c| c.max_block = 15), "mask.min_block"),
        (blocks(|c| c.min_aspect = 0.0), "mask.min_aspect"),
        (blocks(|c| c.min_aspect = f64::NAN), "mask.min_aspect"),
        (inverse(|c| c.probability = 1.0), "mask.probability"),
        (inverse(|c| c.length = 0), "mask.length"),
        (inverse(|c| c.length = 15), "mask.length"),
        (inverse(|c| c.adjust = -0.1), "mask.adjust"),
    ] {
        let error = config.on_grid([14, 14]).unwrap_err();
        assert!(
            matches!(&error, Error::Config { key, .. } if key == expected),
            "{config:?}: {error}"
        );
    }
    let error = VisionMaskConfig::InverseBlocks(base()).on_grid([1, 1]).unwrap_err();
    assert!(error.to_string().contains("features.patch_size"), "{error}");
}

#[test]
fn rejects_mismatched_batch() {
    let masking = VisionMaskConfig::InverseBlocks(base()).on_grid([14, 14]).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    assert!(masking.sample(&[100], 100, &mut rng).is_err());
    assert!(masking.sample(&[100], 196, &mut rng).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_mask_has_masked_and_visible_patches(
        rows in 1_i64..20,
        columns in 2_i64..20,
        probability in 0.01..0.99,
        length in 1_usize..5,
        patches in 1_usize..400,
        min_block in 1_usize..30,
        seed in any::<u64>(),
    ) {
        let all = rows * columns;
        let configs = [
            VisionMaskConfig::InverseBlocks(InverseBlockMask {
                probability,
                length: length.min(rows.max(columns) as usize),
                adjust: 0.07,
            }),
            VisionMaskConfig::Blocks(BlockMask {
                patches: patches.min(all as usize - 1),
                min_block,
                max_block: 400,
                min_aspect: 0.3,
            }),
        ];
        for config in configs {
            let masking = config.on_grid([rows, columns]).unwrap();
            let mut rng = StdRng::seed_from_u64(seed);
            let mask = masking.sample(&[all; 3], all, &mut rng).unwrap();
            for row in mask.masked().rows() {
                let masked = row.iter().filter(|&&masked| masked).count();
                prop_assert!((1..all as usize).contains(&masked));
            }
        }
    }
}
