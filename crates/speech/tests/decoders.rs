//! CTC decoders: comparison with pyctcdecode and with exhaustive search.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use data2vec_core::Error;
use data2vec_speech::{
    ctc::{BLANK, BeamConfig, BeamSearch, Decoded, Labels, Lexicon, greedy},
    lm::{LanguageModel, LmState},
};
use ndarray::Array2;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Deserialize;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens")).join(name)
}

fn labels(names: &[&str]) -> Labels {
    Labels::new(names.iter().map(|&name| name.to_owned()).collect()).unwrap()
}

fn lm() -> Arc<LanguageModel> {
    Arc::new(LanguageModel::load(golden("small.arpa")).unwrap())
}

/// Returns settings without pruning.
fn exhaustive() -> BeamConfig {
    BeamConfig {
        beam: 1_000_000,
        min_label: f32::NEG_INFINITY,
        max_gap: f32::INFINITY,
        ..BeamConfig::default()
    }
}

fn random(frames: usize, labels: usize, sharpness: f32, seed: u64) -> Array2<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut x =
        Array2::from_shape_fn((frames, labels), |_| sharpness * rng.random_range(-1.0_f32..1.0));
    for mut row in x.rows_mut() {
        let sum = row.iter().map(|x| x.exp()).sum::<f32>().ln();
        row -= sum;
    }
    x
}

#[derive(Deserialize)]
struct Goldens {
    labels: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    lm: Option<Weights>,
    log_probs: Vec<Vec<f32>>,
    best: Vec<Best>,
    greedy: String,
}

#[derive(Deserialize)]
struct Weights {
    lm_weight: f32,
    word_score: f32,
    unknown_score: f32,
}

#[derive(Deserialize)]
struct Best {
    text: String,
    score: f64,
}

#[test]
fn matches_pyctcdecode() {
    let text = std::fs::read_to_string(golden("decoders.json")).unwrap();
    let goldens: Goldens = serde_json::from_str(&text).unwrap();
    let (labels, lm) = (Labels::new(goldens.labels).unwrap(), lm());
    let (mut complete, mut pruned) = (0, 0);
    for case in goldens.cases {
        let (frames, columns) = (case.log_probs.len(), case.log_probs[0].len());
        let log_probs = Array2::from_shape_vec((frames, columns), case.log_probs.concat()).unwrap();
        assert_eq!(greedy(log_probs.view(), &labels).unwrap().text, case.greedy);

        let mut config = match case.kind.as_str() {
            "all" => exhaustive(),
            _ => BeamConfig { beam: 1_000, ..exhaustive() },
        };
        config.sentence = false;
        let lm = case.lm.as_ref().map(|_| Arc::clone(&lm));
        if let Some(Weights { lm_weight, word_score, unknown_score }) = case.lm {
            config = BeamConfig { lm_weight, word_score, unknown_score, ..config };
        }
        let search = BeamSearch::new(labels.clone(), config, lm, None).unwrap();
        let found = search.decode(log_probs.view()).unwrap();
        assert_eq!(found[0].text, case.best[0].text);
        if case.kind == "all" {
            complete += 1;
            for (found, best) in found.iter().zip(&case.best) {
                assert_eq!(found.text, best.text);
                assert!((found.score - best.score).abs() < 1e-4, "{found:?} {}", best.score);
            }
        } else {
            pruned += 1;
            // Different pruning drops different alignments of the same text.
            let (score, best) = (found[0].score, case.best[0].score);
            assert!((score - best).abs() < 0.05 * best.abs(), "{score} {best}");
        }
    }
    assert!(complete >= 10 && pruned >= 10);
}

/// Returns all texts and their probabilities, by enumerating all alignments.
fn all_texts(log_probs: &Array2<f32>, labels: &Labels) -> BTreeMap<Vec<String>, f64> {
    let (frames, columns) = log_probs.dim();
    let mut texts = BTreeMap::new();
    for mut number in 0..columns.pow(frames as u32) {
        let (mut words, mut last, mut log_prob) = (vec![String::new()], BLANK, 0.0_f64);
        for frame in 0..frames {
            let label = number % columns;
            number /= columns;
            log_prob += f64::from(log_probs[[frame, label]]);
            if label != BLANK && label != last {
                if Some(label) == labels.separator() {
                    words.push(String::new());
                } else {
                    words.last_mut().unwrap().push_str(&labels.names()[label]);
                }
            }
            last = label;
        }
        words.retain(|word| !word.is_empty());
        *texts.entry(words).or_default() += log_prob.exp();
    }
    texts
}

/// Computes the formula of [`BeamConfig`] word by word.
fn bonus(words: &[String], lm: &LanguageModel, config: &BeamConfig) -> f64 {
    let mut state = if config.sentence { lm.begin() } else { LmState::default() };
    let (mut log10, mut bonus) = (0.0, 0.0);
    for word in words {
        let (more, next) = lm.word(&state, word);
        log10 += f64::from(more);
        state = next;
        bonus += f64::from(config.word_score);
        bonus += if lm.contains(word) { 0.0 } else { f64::from(config.unknown_score) };
    }
    if config.sentence {
        log10 += f64::from(lm.end(&state));
    }
    bonus + f64::from(config.lm_weight) * std::f64::consts::LN_10 * log10
}

fn assert_matches(found: &[Decoded], mut expected: Vec<(Vec<String>, f64)>) {
    expected.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    assert_eq!(found.len(), expected.len());
    for (found, (words, score)) in found.iter().zip(&expected) {
        assert!((found.score - score).abs() < 1e-4, "{found:?} {words:?} {score}");
        assert_eq!(found.text, words.join(" "));
    }
}

#[test]
fn beam_search_matches_exhaustive_search() {
    let (labels, lm) = (labels(&["<pad>", "|", "a", "b"]), lm());
    for seed in 0..6 {
        let log_probs = random(6, 4, 2.0, seed);
        let texts = all_texts(&log_probs, &labels);
        for sentence in [false, true] {
            let config =
                BeamConfig { sentence, lm_weight: 0.7, unknown_score: -3.0, ..exhaustive() };
            let plain = BeamSearch::new(labels.clone(), config.clone(), None, None).unwrap();
            let expected = texts.iter().map(|(words, p)| (words.clone(), p.ln()));
            assert_matches(&plain.decode(log_probs.view()).unwrap(), expected.collect());

            let scored = BeamSearch::new(labels.clone(), config.clone(), Some(lm.clone()), None);
            let expected =
                texts.iter().map(|(words, p)| (words.clone(), p.ln() + bonus(words, &lm, &config)));
            assert_matches(&scored.unwrap().decode(log_probs.view()).unwrap(), expected.collect());
        }
    }
}

#[test]
fn lexicon_restricts_words() {
    let (labels, lm) = (labels(&["<pad>", "|", "a", "b"]), lm());
    // Three spellings; two words share one.
    let lines = ["ab", "BA\tb a |", "ba", "bab b a b |"];
    let lexicon = Arc::new(Lexicon::new(lines, &labels).unwrap());
    assert_eq!((lexicon.len(), lexicon.left_out()), (4, 0));
    for seed in 10..16 {
        let log_probs = random(6, 4, 2.0, seed);
        let config = exhaustive();
        let mut expected: Vec<(Vec<String>, f64)> = Vec::new();
        for (words, p) in all_texts(&log_probs, &labels) {
            if words.iter().all(|word| ["ab", "ba", "bab"].contains(&word.as_str())) {
                let mut readings: Vec<Vec<String>> = vec![Vec::new()];
                for word in &words {
                    let named: &[&str] = if word == "ba" { &["BA", "ba"] } else { &[word] };
                    readings = readings
                        .iter()
                        .flat_map(|before| {
                            named.iter().map(|name| [&before[..], &[(*name).into()]].concat())
                        })
                        .collect();
                }
                let scored = readings.into_iter().map(|words| {
                    let score = p.ln() + bonus(&words, &lm, &config);
                    (words, score)
                });
                expected.extend(scored);
            }
        }
        let search =
            BeamSearch::new(labels.clone(), config, Some(lm.clone()), Some(lexicon.clone()));
        assert_matches(&search.unwrap().decode(log_probs.view()).unwrap(), expected);
    }
    // An incomplete last word is removed.
    let search =
        BeamSearch::new(labels.clone(), BeamConfig::default(), None, Some(lexicon)).unwrap();
    let certain = certain(&[2, 3, 1, 3], 4);
    let found = search.decode(certain.view()).unwrap();
    assert_eq!(found[0].text, "ab");

    assert_eq!(Lexicon::new(["xy", "ab"], &labels).unwrap().left_out(), 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("words.txt");
    std::fs::write(&path, "AB\nBA\n").unwrap();
    let refused = Lexicon::read(&path, &labels).unwrap_err().to_string();
    assert!(refused.contains("none of its 2 words can be spelled"), "{refused}");
    assert!(matches!(
        Lexicon::new(["a"], &self::labels(&["<pad>", "a"])),
        Err(Error::Config { .. })
    ));
}

/// Returns log-probabilities with one almost certain label per frame.
fn certain(frames: &[usize], labels: usize) -> Array2<f32> {
    Array2::from_shape_fn((frames.len(), labels), |(frame, label)| {
        if frames[frame] == label { 0.99_f32.ln() } else { (0.01 / (labels - 1) as f32).ln() }
    })
}

#[test]
fn words_have_frames() {
    let labels = labels(&["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"]);
    //            0  1  2  3  4  5  6  7  8  9 10 11 12 13
    let frames = [0, 5, 5, 0, 5, 4, 4, 0, 6, 1, 3, 0, 4, 0];
    let log_probs = certain(&frames, 7);
    let search = BeamSearch::new(labels.clone(), BeamConfig::default(), None, None).unwrap();
    for found in [
        greedy(log_probs.view(), &labels).unwrap(),
        search.decode(log_probs.view()).unwrap().remove(0),
    ] {
        assert_eq!(found.text, "AA B\u{fffd}");
        let times: Vec<_> = found.words.iter().map(|word| (word.start, word.end)).collect();
        assert_eq!(times, [(1, 5), (8, 11)]);
        assert!(found.words.iter().all(|word| (word.score - 0.99).abs() < 1e-6), "{found:?}");
    }
    // Without a separator, each symbol is a word.
    let labels = self::labels(&["<pad>", "你", "好"]);
    let log_probs = certain(&[1, 0, 2, 2], 3);
    let config = BeamConfig { lm_weight: 0.1, unknown_score: 0.0, ..BeamConfig::default() };
    let search = BeamSearch::new(labels.clone(), config, Some(lm()), None).unwrap();
    for found in [
        greedy(log_probs.view(), &labels).unwrap(),
        search.decode(log_probs.view()).unwrap().remove(0),
    ] {
        assert_eq!(found.text, "你好");
        let times: Vec<_> = found.words.iter().map(|word| (word.start, word.end)).collect();
        assert_eq!(times, [(0, 1), (2, 4)]);
    }
}

#[test]
fn decodes_no_frames_and_rejects_invalid_input() {
    let labels = labels(&["<pad>", "|", "a"]);
    let search = BeamSearch::new(labels.clone(), BeamConfig::default(), Some(lm()), None).unwrap();
    let empty = Array2::<f32>::zeros((0, 3));
    assert_eq!(greedy(empty.view(), &labels).unwrap().text, "");
    assert_eq!(search.decode(empty.view()).unwrap()[0].text, "");
    let impossible = Array2::from_elem((5, 3), f32::NEG_INFINITY);
    assert_eq!(search.decode(impossible.view()).unwrap()[0].words, []);
    for bad in [Array2::zeros((5, 4)), Array2::from_elem((5, 3), f32::NAN)] {
        assert!(matches!(greedy(bad.view(), &labels), Err(Error::Input(_))));
        assert!(matches!(search.decode(bad.view()), Err(Error::Input(_))));
    }
    for config in [
        BeamConfig { beam: 0, ..BeamConfig::default() },
        BeamConfig { lm_weight: f32::NAN, ..BeamConfig::default() },
        BeamConfig { max_gap: -1.0, ..BeamConfig::default() },
    ] {
        let refused = BeamSearch::new(labels.clone(), config, None, None);
        assert!(matches!(refused, Err(Error::Config { .. })));
    }
    assert!(Labels::new(vec!["<pad>".into()]).is_err());
    assert!(Labels::new(vec!["<pad>".into(), "a".into(), "a".into()]).is_err());
}

#[test]
fn long_recordings_do_not_overflow_the_stack() {
    let labels = labels(&["<pad>", "|", "a", "b"]);
    let frames: Vec<usize> = (0..200_000).map(|at| [2, 3, 1, 0][at % 4]).collect();
    let config = BeamConfig { beam: 2, ..BeamConfig::default() };
    let search = BeamSearch::new(labels, config, None, None).unwrap();
    let found = search.decode(certain(&frames, 4).view()).unwrap();
    assert_eq!(found[0].words.len(), 50_000);
}

proptest! {
    #[test]
    fn pruned_score_is_at_most_exhaustive_score(seed in 0_u64..1_000, beam in 1_usize..8) {
        let labels = labels(&["<pad>", "|", "a", "b"]);
        let log_probs = random(8, 4, 3.0, seed);
        let best = |config| {
            let search = BeamSearch::new(labels.clone(), config, None, None).unwrap();
            search.decode(log_probs.view()).unwrap().remove(0)
        };
        let all = best(exhaustive());
        let some = best(BeamConfig { beam, ..exhaustive() });
        prop_assert!(some.score <= all.score + 1e-9);
        prop_assert!(greedy(log_probs.view(), &labels).unwrap().score <= all.score + 1e-9);
        prop_assert_eq!(best(BeamConfig { beam, ..exhaustive() }), some);
    }
}
