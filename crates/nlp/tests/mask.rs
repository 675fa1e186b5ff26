//! Masks: statistics compared with the reference, and guarantees.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_core::{Error, Mask, MaskStrategy};
use data2vec_nlp::{OtherTokens, SpanMask, TextMaskConfig, TokenMask};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;

/// Rows per case; with the reference's 1600 and 400 rows, they determine the tolerances.
const ROWS: usize = 6000;
/// Accepted deviation in standard errors, for about 50 comparisons with a fixed seed.
const SIGMA: f64 = 4.0;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Returns the lengths of the runs of masked tokens in a row.
fn runs(row: &[bool]) -> Vec<usize> {
    row.split(|&masked| !masked).map(<[bool]>::len).filter(|&len| len > 0).collect()
}

#[test]
fn statistics_match_reference() {
    let golden: Value = serde_json::from_str(include_str!("masks.json")).unwrap();
    for (name, case) in golden["draws"].as_object().unwrap() {
        let config: TextMaskConfig = serde_json::from_value(case["mask"].clone()).unwrap();
        config.validate().unwrap();
        let theirs = case["rows"].as_f64().unwrap();
        // Variance of the difference of two means, relative to the variance of one row.
        let both = 1.0 / ROWS as f64 + 1.0 / theirs;

        let mask = draw(&config, &vec![512; ROWS], 512, 7);
        let (mut count, mut run_count) = (0.0, 0.0);
        let (mut run_lengths, mut columns) = (vec![0.0; 513], vec![0.0; 512]);
        for row in mask.masked().rows() {
            let row = row.to_vec();
            count += row.iter().filter(|&&masked| masked).count() as f64 / ROWS as f64;
            let runs = runs(&row);
            run_count += runs.len() as f64 / ROWS as f64;
            runs.into_iter().for_each(|run| run_lengths[run] += 1.0);
            for (column, &masked) in columns.iter_mut().zip(&row) {
                *column += f64::from(u8::from(masked)) / ROWS as f64;
            }
        }
        for (what, mine) in [("count", count), ("runs", run_count)] {
            let golden = numbers(&case[what]);
            let tolerance = SIGMA * golden[1] * both.sqrt() + 1e-9;
            assert!((mine - golden[0]).abs() <= tolerance, "{name}: {what} {mine}, not {golden:?}");
        }
        let total: f64 = run_lengths.iter().sum();
        let (mut mine, mut theirs_cdf, mut worst) = (0.0, 0.0, 0.0_f64);
        for (at, golden) in numbers(&case["run_lengths"]).iter().enumerate() {
            mine += run_lengths[at + 1] / total;
            theirs_cdf += golden;
            worst = worst.max((mine - theirs_cdf).abs());
        }
        let runs_of_both = both / numbers(&case["runs"])[0];
        let tolerance = 1.63 * runs_of_both.sqrt(); // Kolmogorov-Smirnov at 1%
        assert!(worst <= tolerance, "{name}: run lengths off by {worst}, allowed {tolerance}");
        for (end, mine, golden) in [
            ("first", &columns[..10], numbers(&case["rate_first"])),
            ("last", &columns[502..], numbers(&case["rate_last"])),
        ] {
            for (at, (mine, golden)) in mine.iter().zip(golden).enumerate() {
                let tolerance = SIGMA * (mine * (1.0 - mine) * both).sqrt();
                let off = (mine - golden).abs();
                assert!(off <= tolerance, "{name}: {end} {at}: {mine} not {golden} ± {tolerance}");
            }
        }
    }
}

fn spans(probability: f64, length: usize) -> TextMaskConfig {
    TextMaskConfig::Spans(SpanMask { probability, length, others: None })
}

fn tokens(probability: f64) -> TextMaskConfig {
    TextMaskConfig::Tokens(TokenMask { probability })
}

fn bert() -> TextMaskConfig {
    let others = Some(OtherTokens { random: 0.1, unchanged: 0.1, vocabulary: 100 });
    TextMaskConfig::Spans(SpanMask { probability: 0.15, length: 1, others })
}

fn draw(config: &TextMaskConfig, lengths: &[i64], tokens: i64, seed: u64) -> Mask {
    config.sample(lengths, tokens, &mut StdRng::seed_from_u64(seed)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn never_masks_padding_or_complete_rows(
        lengths in prop::collection::vec(2_i64..300, 1..5),
        padding in 0_i64..20,
        probability in 0.01_f64..0.99,
        length in 1_usize..30,
        kind in 0..3,
        seed in any::<u64>(),
    ) {
        let config = match kind {
            0 => spans(probability, length),
            1 => bert(),
            _ => tokens(probability),
        };
        let num_tokens = lengths.iter().max().unwrap() + padding;
        let mask = draw(&config, &lengths, num_tokens, seed);
        for (row, &real) in mask.masked().rows().into_iter().zip(&lengths) {
            let real = real as usize;
            prop_assert!(row.iter().skip(real).all(|&masked| !masked), "padding is masked");
            let count = row.iter().filter(|&&masked| masked).count();
            prop_assert!(count > 0 && count < real);
            if kind == 2 {
                let keep = (real as f64 * (1.0 - probability)) as usize;
                prop_assert_eq!(count, real - keep.clamp(1, real - 1));
            }
        }
        for s in mask.substitutes() {
            prop_assert!((s.token as i64) < lengths[s.row] && (4..100).contains(&s.id));
        }
        prop_assert_eq!(mask, draw(&config, &lengths, num_tokens, seed));
    }
}

/// Rows of a padded batch have the statistics of rows without padding.
#[test]
fn padding_does_not_change_distribution() {
    for config in [spans(0.35, 4), tokens(0.48), bert()] {
        for len in [200_usize, 37] {
            let alone = draw(&config, &vec![len as i64; ROWS], len as i64, 5);
            let lengths: Vec<i64> = (0..2 * ROWS).map(|row| [512, len as i64][row % 2]).collect();
            let mixed = draw(&config, &lengths, 520, 6);
            let rows = |mask: &Mask, first: usize, step: usize| -> Vec<Vec<bool>> {
                let masked = mask.masked();
                let rows = masked.rows().into_iter().skip(first).step_by(step);
                rows.map(|row| row.iter().take(len).copied().collect()).collect()
            };
            let (alone, mixed) = (rows(&alone, 0, 1), rows(&mixed, 1, 2));
            assert_eq!((alone.len(), mixed.len()), (ROWS, ROWS));
            let same = |what: &str, number: &dyn Fn(&[bool]) -> usize| {
                let moments = |rows: &[Vec<bool>]| {
                    let all: Vec<f64> = rows.iter().map(|row| number(row) as f64).collect();
                    let mean = all.iter().sum::<f64>() / all.len() as f64;
                    let var = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                    (mean, var / all.len() as f64)
                };
                let ((a, var), (b, _)) = (moments(&alone), moments(&mixed));
                let tolerance = SIGMA * (2.0 * var / ROWS as f64).sqrt() + 1e-9;
                assert!((a - b).abs() <= tolerance, "{config:?}, {len}: {what} {a} and {b}");
            };
            same("count", &|row| row.iter().filter(|&&masked| masked).count());
            same("runs", &|row| runs(row).len());
            for at in [0, 1, 3, len / 2, len - 3, len - 1] {
                same("rate", &|row| usize::from(row[at]));
            }
        }
    }
}

#[test]
fn counts_match_released_recipes() {
    assert_eq!(draw(&tokens(0.48), &[512], 512, 1).num_masked(), 246);
    assert_eq!(draw(&tokens(0.5), &[512], 512, 1).num_masked(), 256);
}

#[test]
fn bert_masks_80_percent_and_substitutes_10() {
    let mask = draw(&bert(), &[512; 200], 512, 3);
    let chosen = 0.15 * 512.0 * 200.0;
    let near = |count: f64, share: f64| {
        let error = (chosen * share * (1.0 - share)).sqrt();
        assert!((count - chosen * share).abs() < 4.0 * error, "{count} of {chosen}, not {share}");
    };
    near(mask.num_masked() as f64, 0.8);
    near(mask.substitutes().len() as f64, 0.1);
}

#[test]
fn rejects_rows_that_are_too_short() {
    for config in [spans(0.35, 4), tokens(0.48), bert()] {
        for lengths in [[50, 1], [50, 0], [50, -1], [51, 50]] {
            let drawn = config.sample(&lengths, 50, &mut StdRng::seed_from_u64(0));
            assert!(matches!(drawn, Err(Error::Input(_))), "{lengths:?}");
        }
        assert_eq!(draw(&config, &[2, 2], 9, 3).num_masked(), 2);
    }
}

#[test]
fn invalid_settings_name_their_key() {
    let key = |config: TextMaskConfig| match config.validate() {
        Err(Error::Config { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key(spans(0.0, 4)), "mask.probability");
    assert_eq!(key(tokens(f64::NAN)), "mask.probability");
    assert_eq!(key(tokens(1.0)), "mask.probability");
    assert_eq!(key(spans(0.5, 0)), "mask.length");
    let others = |random, unchanged, vocabulary| {
        let others = Some(OtherTokens { random, unchanged, vocabulary });
        TextMaskConfig::Spans(SpanMask { probability: 0.15, length: 1, others })
    };
    assert_eq!(key(others(-0.1, 0.0, 9)), "mask.others.random");
    assert_eq!(key(others(0.5, 0.5, 9)), "mask.others.random");
    assert_eq!(key(others(0.1, f64::NAN, 9)), "mask.others.unchanged");
    assert_eq!(key(others(0.1, 0.1, 4)), "mask.others.vocabulary");
    let typo = r#"{"kind": "tokens", "probabilty": 0.5}"#;
    assert!(serde_json::from_str::<TextMaskConfig>(typo).is_err());
    let extra = r#"{"kind": "tokens", "probability": 0.5, "length": 1}"#;
    assert!(serde_json::from_str::<TextMaskConfig>(extra).is_err());
}
