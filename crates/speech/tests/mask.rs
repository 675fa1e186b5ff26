//! Masks: comparison with statistics of the reference, and invariants.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_core::{Error, Mask, MaskStrategy};
use data2vec_speech::{BlockMask, SpanMask, SpeechMaskConfig};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;

/// Draws per case; with the 500 to 1500 of the reference, they set the tolerances.
const DRAWS: usize = 1500;
/// Tolerance in standard errors. With about 300 comparisons, one exceeds 4.5 by chance in 1 of 500
/// seeds; the seed is fixed.
const SIGMA: f64 = 4.5;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Returns the lengths of the runs of masked tokens in a row.
fn runs(row: &[bool]) -> Vec<usize> {
    row.split(|&masked| !masked).map(<[bool]>::len).filter(|&len| len > 0).collect()
}

#[test]
fn distributions_match_reference() {
    let golden: Value = serde_json::from_str(include_str!("masks.json")).unwrap();
    for (name, case) in golden["draws"].as_object().unwrap() {
        let config: SpeechMaskConfig = serde_json::from_value(case["mask"].clone()).unwrap();
        config.validate().unwrap();
        let lengths: Vec<i64> = serde_json::from_value(case["lengths"].clone()).unwrap();
        let (rows, len) = (lengths.len(), lengths[0] as usize);
        let theirs = case["batches"].as_u64().unwrap() as f64;
        // Variance of the difference of two means, in units of the variance of one draw.
        let both = |rows: f64| 1.0 / (DRAWS as f64 * rows) + 1.0 / (theirs * rows);

        let mut rng = StdRng::seed_from_u64(7);
        let (mut share, mut count, mut run_count) = (0.0, 0.0, 0.0);
        let mut run_lengths = vec![0.0; len + 1];
        let mut columns = vec![0.0; len];
        for _ in 0..DRAWS {
            let mask = config.sample(&lengths, lengths[0], &mut rng).unwrap();
            for (row, &real) in mask.masked().rows().into_iter().zip(&lengths) {
                let row = row.to_vec();
                let masked = row.iter().filter(|&&masked| masked).count();
                share += masked as f64 / real as f64 / (DRAWS * rows) as f64;
                let runs = runs(&row);
                run_count += runs.len() as f64 / (DRAWS * rows) as f64;
                for run in runs {
                    run_lengths[run] += 1.0;
                }
                for (column, &masked) in columns.iter_mut().zip(&row) {
                    *column += f64::from(u8::from(masked)) / (DRAWS * rows) as f64;
                }
            }
            let first = mask.masked().row(0).iter().filter(|&&masked| masked).count();
            count += first as f64 / DRAWS as f64;
        }

        // Rows of a batch share their count, so a batch counts as one draw.
        for (what, mine, key) in
            [("share", share, "share"), ("count", count, "count"), ("runs", run_count, "runs")]
        {
            let golden = numbers(&case[key]);
            let tolerance = SIGMA * golden[1] * both(1.0).sqrt() + 1e-7; // theirs is f32
            let off = (mine - golden[0]).abs();
            assert!(off <= tolerance, "{name}: {what} {mine} not {} ± {tolerance}", golden[0]);
        }
        let total: f64 = run_lengths.iter().sum();
        let (mut mine, mut theirs_cdf, mut worst) = (0.0, 0.0, 0.0_f64);
        for (at, golden) in numbers(&case["run_lengths"]).iter().enumerate() {
            mine += run_lengths[at + 1] / total;
            theirs_cdf += golden;
            worst = worst.max((mine - theirs_cdf).abs());
        }
        // Runs of a batch are correlated: each batch counts as one draw of a share of at most 1/2.
        let tolerance = 1.63 * both(1.0).sqrt() / 2.0; // Kolmogorov-Smirnov at 1%
        assert!(worst <= tolerance, "{name}: run lengths off by {worst}, allowed {tolerance}");
        let last = columns[len - 10..].to_vec();
        for (end, mine, golden) in [
            ("first", &columns[..10], numbers(&case["rate_first"])),
            ("last", &last[..], numbers(&case["rate_last"])),
        ] {
            for (at, (mine, golden)) in mine.iter().zip(golden).enumerate() {
                let rate = golden.max(1.0 / 6000.0);
                let tolerance = SIGMA * (rate * (1.0 - rate) * both(rows as f64)).sqrt();
                let off = (mine - golden).abs();
                assert!(off <= tolerance, "{name}: {end} {at}: {mine} not {golden} ± {tolerance}");
            }
        }
        if let SpeechMaskConfig::Spans(_) = config {
            assert_eq!(columns[len - 1], 0.0, "{name}: the last frame was masked");
        }
    }
}

fn spans(probability: f64, length: usize, same_count: bool) -> SpeechMaskConfig {
    SpeechMaskConfig::Spans(SpanMask { probability, length, min_spans: 1, same_count })
}

fn blocks(probability: f64, length: usize, adjust: f64) -> SpeechMaskConfig {
    SpeechMaskConfig::Blocks(BlockMask { probability, length, adjust })
}

fn draw(config: &SpeechMaskConfig, lengths: &[i64], tokens: i64, seed: u64) -> Mask {
    config.sample(lengths, tokens, &mut StdRng::seed_from_u64(seed)).unwrap()
}

fn counts(mask: &Mask) -> Vec<usize> {
    let count = |row: ndarray::ArrayView1<bool>| row.iter().filter(|&&masked| masked).count();
    mask.masked().rows().into_iter().map(count).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn never_masks_padding_or_a_full_row(
        lengths in prop::collection::vec(2_i64..300, 1..5),
        padding in 0_i64..20,
        probability in 0.01_f64..0.99,
        length in 1_usize..30,
        kind in 0..3,
        seed in any::<u64>(),
    ) {
        let config = match kind {
            0 => spans(probability, length, true),
            1 => spans(probability, length, false),
            _ => blocks(probability, length, 0.1),
        };
        let tokens = lengths.iter().max().unwrap() + padding;
        let mask = draw(&config, &lengths, tokens, seed);
        let counts = counts(&mask);
        for ((row, &real), &count) in mask.masked().rows().into_iter().zip(&lengths).zip(&counts) {
            let real = real as usize;
            prop_assert!(row.iter().skip(real).all(|&masked| !masked), "padding is masked");
            prop_assert!(count > 0 && count < real);
            match kind {
                0 | 1 => prop_assert!(!row[real - 1], "the last frame is masked"),
                _ => prop_assert_eq!(
                    count, ((real as f64 * probability) as usize).clamp(1, real - 1)
                ),
            }
        }
        if kind == 0 {
            prop_assert!(counts.iter().all(|&count| count == counts[0]));
        }
        prop_assert_eq!(mask, draw(&config, &lengths, tokens, seed));
    }

    #[test]
    fn spans_have_full_length_without_equal_counts(
        len in 60_i64..400, length in 1_usize..12, seed in any::<u64>(),
    ) {
        let mask = draw(&spans(0.4, length, false), &[len], len, seed);
        prop_assert!(runs(&mask.masked().row(0).to_vec()).iter().all(|&run| run >= length));
    }
}

#[test]
fn counts_match_released_recipes() {
    // 2.0 base and large, 20 s and 15.6 s.
    assert_eq!(counts(&draw(&blocks(0.5, 5, 0.05), &[999, 781], 999, 1)), [499, 390]);
    assert_eq!(counts(&draw(&blocks(0.55, 5, 0.1), &[999], 999, 1)), [549]);
}

#[test]
fn rejects_rows_without_room() {
    for config in [spans(0.65, 10, true), blocks(0.5, 5, 0.05)] {
        for lengths in [[50, 1], [50, 0], [50, -1], [51, 50]] {
            let drawn = config.sample(&lengths, 50, &mut StdRng::seed_from_u64(0));
            assert!(matches!(drawn, Err(Error::Input(_))), "{lengths:?}");
        }
        assert_eq!(draw(&config, &[2, 2], 9, 3).num_masked(), 2);
    }
}

#[test]
fn rejects_invalid_settings() {
    let key = |config: SpeechMaskConfig| match config.validate() {
        Err(Error::Config { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key(spans(0.0, 10, true)), "mask.probability");
    assert_eq!(key(spans(f64::NAN, 10, true)), "mask.probability");
    assert_eq!(key(blocks(1.0, 10, 0.0)), "mask.probability");
    assert_eq!(key(spans(0.5, 0, true)), "mask.length");
    assert_eq!(key(blocks(0.5, 5, -0.1)), "mask.adjust");
    let none = SpanMask { probability: 0.5, length: 5, min_spans: 0, same_count: true };
    assert_eq!(key(SpeechMaskConfig::Spans(none)), "mask.min_spans");
    let typo = r#"{"kind": "blocks", "probability": 0.5, "lenght": 5, "adjust": 0.05}"#;
    assert!(serde_json::from_str::<SpeechMaskConfig>(typo).is_err());
    let extra = r#"{"kind": "blocks", "probability": 0.5, "length": 5, "adjust": 0.05, "x": 1}"#;
    assert!(serde_json::from_str::<SpeechMaskConfig>(extra).is_err());
}
