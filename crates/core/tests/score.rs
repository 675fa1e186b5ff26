//! Metrics compared with hand-computed values and with scikit-learn, SciPy and jiwer.

use data2vec_core::eval::score::{Confusion, Edits, edits, pearson, spearman, target_ranks, top_k};
use proptest::prelude::*;
use tch::Tensor;

fn count_edits(reference: &str, hypothesis: &str) -> [usize; 4] {
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    let Edits { substitutions, insertions, deletions, reference } =
        edits(&chars(reference), &chars(hypothesis));
    [substitutions, insertions, deletions, reference]
}

#[test]
fn edits_match_hand_computed_values() {
    assert_eq!(count_edits("kitten", "sitting"), [2, 1, 0, 6]);
    assert_eq!(count_edits("sitting", "kitten"), [2, 0, 1, 7]);
    assert_eq!(count_edits("abc", "abc"), [0, 0, 0, 3]);
    assert_eq!(count_edits("", "ab"), [0, 2, 0, 0]);
    assert_eq!(count_edits("ab", ""), [0, 0, 2, 2]);
    assert_eq!(count_edits("", ""), [0; 4]);
    // Two minimal alignments: two substitutions win over an insertion and a deletion.
    assert_eq!(count_edits("ab", "bc"), [2, 0, 0, 2]);
    assert_eq!(count_edits("abcde", "bcdef"), [0, 1, 1, 5]);

    let words = |text: &'static str| text.split(' ').collect::<Vec<_>>();
    let mut sum = edits(&words("the cat sat down"), &words("a cat sat"));
    assert_eq!((sum.errors(), sum.rate()), (2, Some(0.5)));
    sum += edits(&words("yes"), &words("yes no no no no"));
    assert_eq!((sum.insertions, sum.rate()), (4, Some(6.0 / 5.0)));
    assert_eq!(Edits::default().rate(), None);
}

#[test]
fn edits_of_long_sequences() {
    let long: Vec<u32> = (0..50_000).collect();
    let mut near = long.clone();
    near[10_000] = 7;
    near.remove(40_000);
    near.insert(20_000, 7);
    let e = edits(&long, &near);
    assert_eq!([e.substitutions, e.insertions, e.deletions], [1, 1, 1]);
    let others: Vec<u32> = (100_000..101_000).collect();
    let e = edits(&long[..900], &others);
    assert_eq!([e.substitutions, e.insertions, e.deletions], [900, 100, 0]);
}

/// Levenshtein distance by the full dynamic-programming table.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => (table[i - 1][j] + 1)
                    .min(table[i][j - 1] + 1)
                    .min(table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1])),
            };
        }
    }
    table[a.len()][b.len()]
}

proptest! {
    #[test]
    fn edits_are_minimal_and_symmetric(
        a in proptest::collection::vec(0_u8..4, 0..90),
        b in proptest::collection::vec(0_u8..4, 0..90),
    ) {
        let e = edits(&a, &b);
        prop_assert_eq!(e.errors(), distance(&a, &b));
        prop_assert_eq!(a.len() + e.insertions, b.len() + e.deletions);
        let back = edits(&b, &a);
        prop_assert_eq!((back.insertions, back.deletions), (e.deletions, e.insertions));
    }
}

fn confusion(classes: usize, pairs: &[(usize, usize)]) -> Confusion {
    let mut confusion = Confusion::new(classes);
    pairs
        .iter()
        .for_each(|&(target, predicted)| confusion.add(target, predicted).expect("classes"));
    confusion
}

fn close(found: Option<f64>, expected: f64) {
    assert!(
        found.is_some_and(|found| (found - expected).abs() < 1e-12),
        "expected {expected}, got {found:?}"
    );
}

#[test]
fn confusion_metrics_match_hand_computed_values() {
    // Class 0: 3 predicted as 0, 1 as 1; class 1: 2 predicted as 0, 4 as 1.
    let pairs = [(0, 0, 3), (0, 1, 1), (1, 0, 2), (1, 1, 4)];
    let pairs: Vec<_> = pairs.iter().flat_map(|&(t, p, n)| vec![(t, p); n]).collect();
    let c = confusion(2, &pairs);
    assert_eq!((c.total(), c.counts()[[1, 0]]), (10, 2));
    close(c.accuracy(), 0.7);
    close(c.f1(1), 8.0 / 11.0);
    close(c.f1(0), 6.0 / 9.0);
    close(c.macro_f1(), (8.0 / 11.0 + 6.0 / 9.0) / 2.0);
    close(c.matthews(), 10.0 / 600_f64.sqrt());
}

#[test]
fn undefined_confusion_metrics_are_none() {
    let empty = Confusion::new(2);
    assert_eq!((empty.accuracy(), empty.macro_f1(), empty.matthews()), (None, None, None));
    let c = confusion(3, &[(0, 0), (1, 0)]);
    assert_eq!(c.f1(2), None);
    assert_eq!((c.f1(1), c.matthews()), (Some(0.0), Some(0.0)));
    close(c.macro_f1(), (2.0 / 3.0) / 2.0);
    let error = Confusion::new(2).add(0, 2).expect_err("a third class").to_string();
    assert_eq!(error, "bad input: class 2 of 2");
}

#[test]
fn ranks_and_top_k() {
    let logits = Tensor::from_slice2(&[
        [0.1_f32, 0.9, 0.0],
        [0.5, 0.5, 0.5],
        [3.0, 2.0, 1.0],
        [f32::NAN, 0.0, 1.0],
        [f32::NAN, 0.0, 1.0],
    ]);
    let ranks = target_ranks(&logits, &Tensor::from_slice(&[1_i64, 1, 2, 0, 2])).expect("ranks");
    assert_eq!(ranks, [0, 1, 2, 2, 0]);
    assert_eq!([1, 2, 3].map(|k| top_k(&ranks, k)), [Some(0.4), Some(0.6), Some(1.0)]);
    assert_eq!(top_k(&[], 1), None);
    let wrong = |targets: &[i64]| {
        target_ranks(&logits, &Tensor::from_slice(targets)).expect_err("wrong").to_string()
    };
    assert_eq!(wrong(&[0, 0, 0, 0, 3]), "bad input: class 3 of 3");
    assert!(wrong(&[0]).contains("targets [1] for logits [5, 3]"));
}

#[test]
fn correlations_match_hand_computed_values() {
    close(pearson(&[(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)]), 1.0);
    close(pearson(&[(1.0, 1.0), (2.0, 3.0), (3.0, 2.0)]), 0.5);
    // Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3.
    close(
        spearman(&[(1.0, 10.0), (2.0, 20.0), (2.0, 30.0), (9.0, 31.0)]),
        4.5 / (4.5 * 5.0_f64).sqrt(),
    );
    close(spearman(&[(f64::INFINITY, 1.0), (0.0, 0.0)]), 1.0);
    let undefined: [&[(f64, f64)]; 4] =
        [&[], &[(1.0, 1.0)], &[(0.1, 1.0), (0.1, 2.0), (0.1, 4.0)], &[(1.0, f64::NAN), (2.0, 1.0)]];
    for pairs in undefined {
        assert_eq!((pearson(pairs), spearman(pairs)), (None, None), "{pairs:?}");
    }
    assert_eq!(pearson(&[(f64::INFINITY, 1.0), (0.0, 0.0)]), None);
}

/// Reference values computed with scikit-learn 1.7.2 and SciPy 1.16.3.
#[test]
fn confusion_and_correlation_match_scikit_learn_and_scipy() {
    let targets = [0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 2, 1, 0, 0, 2, 1, 1, 2, 0, 1];
    let predicted = [0, 2, 1, 0, 0, 1, 2, 0, 1, 2, 2, 1, 1, 0, 0, 1, 2, 2, 0, 0];
    let pairs: Vec<_> = targets.into_iter().zip(predicted).collect();
    let c = confusion(3, &pairs);
    assert_eq!(c.counts().row(1).to_vec(), [2, 4, 1]);
    close(c.accuracy(), 0.65);
    for (class, f1) in [(0, 0.6666666666666666), (1, 0.6153846153846154), (2, 0.6666666666666666)] {
        close(c.f1(class), f1);
    }
    close(c.macro_f1(), 0.6495726495726495);
    close(c.matthews(), 0.4754750834943125);

    let x = [3.2, 1.0, 4.75, 2.0, 2.0, 5.0, 0.0, 3.2, 3.2, 1.4];
    let y = [2.9, 1.5, 4.5, 2.0, 1.1, 4.5, 0.25, 2.9, 3.6, 1.75];
    let pairs: Vec<_> = x.into_iter().zip(y).collect();
    close(pearson(&pairs), 0.9613253883649234);
    close(spearman(&pairs), 0.9350248512166071);

    let logits = Tensor::from_slice2(&[
        [1.76_f32, 0.4, 0.98, 2.24, 1.87],
        [-0.98, 0.95, -0.15, -0.1, 0.41],
        [0.14, 1.45, 0.76, 0.12, 0.44],
        [0.33, 1.49, -0.21, 0.31, -0.85],
        [-2.55, 0.65, 0.86, -0.74, 2.27],
        [-1.45, 0.05, -0.19, 1.53, 1.47],
        [0.15, 0.38, -0.89, -1.98, -0.35],
        [0.16, 1.23, 1.2, -0.39, -0.3],
    ]);
    let ranks =
        target_ranks(&logits, &Tensor::from_slice(&[4_i64, 0, 1, 3, 2, 2, 0, 1])).expect("ranks");
    assert_eq!([1, 2, 3].map(|k| top_k(&ranks, k)), [Some(0.25), Some(0.625), Some(0.75)]);
}

/// Reference values computed with jiwer 4.0.0, `process_words` and `process_characters`.
#[test]
fn error_rates_match_jiwer() {
    let pairs = [
        (
            "the quick brown fox jumps over the lazy dog",
            "the quick brown box jumped over lazy dogs now",
        ),
        ("speech is silver", "speeches silver"),
        ("one two three four five six", "one two three four five six seven"),
    ];
    let (mut words, mut letters) = (Edits::default(), Edits::default());
    for (reference, hypothesis) in pairs {
        let split = |text: &'static str| text.split(' ').collect::<Vec<_>>();
        let spell = |text: &str| text.chars().collect::<Vec<_>>();
        words += edits(&split(reference), &split(hypothesis));
        letters += edits(&spell(reference), &spell(hypothesis));
    }
    assert_eq!((words.errors(), letters.errors()), (8, 20));
    close(words.rate(), 0.4444444444444444);
    close(letters.rate(), 0.23255813953488372);
}
