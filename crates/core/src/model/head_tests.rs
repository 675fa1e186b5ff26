use super::*;
use tch::Device;

fn total(scores: &Tensor, lengths: &[i64], targets: &Targets) -> f64 {
    loss(scores, lengths, targets).expect("matching shapes").double_value(&[])
}

#[test]
fn losses_match_formulas() {
    // Two rows, three classes: −ln softmax by hand.
    let scores = Tensor::from_slice2(&[[1.0_f32, 2.0, 3.0], [0.0, 0.0, 0.0]]);
    let log_p_third = 3.0 - (1_f64.exp() + 2_f64.exp() + 3_f64.exp()).ln();
    let log_p_uniform = -(3_f64.ln());
    let classes = Targets::Classes(Tensor::from_slice(&[2_i64, 0]));
    assert!((total(&scores, &[], &classes) + log_p_third + log_p_uniform).abs() < 1e-6);
    let soft_labels =
        Targets::SoftLabels(Tensor::from_slice2(&[[0.0_f32, 0.5, 0.5], [1.0, 0.0, 0.0]]));
    assert!((total(&scores, &[], &soft_labels) + log_p_third - 0.5 + log_p_uniform).abs() < 1e-6);
    let values = Targets::Values(Tensor::from_slice(&[0.5_f32, -1.0]));
    let scores = Tensor::from_slice2(&[[1.0_f32], [1.0]]);
    assert!((total(&scores, &[], &values) - 4.25).abs() < 1e-6);
}

#[test]
fn ctc_ignores_padding_and_rows_shorter_than_their_labels() {
    // A blank and two labels, all equally likely; "a" in 2 frames: aa, a-, -a of 9 paths.
    let scores = Tensor::zeros([2, 3, 3], (Kind::Float, Device::Cpu));
    scores.get(0).get(2).copy_(&Tensor::from_slice(&[9.0_f32, -9.0, 5.0])); // padding
    let ctc_loss = |lengths: [i64; 2], ids: &[i64], labels: [i64; 2]| {
        let targets = Targets::Sequences { ids: Tensor::from_slice(ids), lengths: labels.to_vec() };
        total(&scores, &lengths, &targets)
    };
    // "ab" in 3 frames: aab, abb, ab-, a-b, -ab of 27.
    let expected = -(3.0_f64 / 9.0).ln() - (5.0_f64 / 27.0).ln();
    assert!((ctc_loss([2, 3], &[1, 1, 2], [1, 2]) - expected).abs() < 1e-5);
    // "aa" needs 3 frames but has 2.
    assert!((ctc_loss([2, 3], &[1, 1, 1, 2], [2, 2]) + (5.0_f64 / 27.0).ln()).abs() < 1e-5);
}
