//! Probes against what is known of the features: separable, overlapping, meaningless.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_core::probe::{LabelledFeatures, knn_accuracy, linear_probe};
use tch::{Device, Kind, Tensor};

/// `count` points around `classes` centres that are `apart` standard deviations away from 0, each in a
/// direction of its own.
fn clouds(count: i64, classes: i64, dim: i64, apart: f64, seed: i64) -> LabelledFeatures {
    tch::manual_seed(seed);
    let labels = Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(classes);
    let centres = Tensor::eye_m(classes, dim, (Kind::Float, Device::Cpu)) * apart;
    let noise = Tensor::randn([count, dim], (Kind::Float, Device::Cpu));
    LabelledFeatures::new(centres.index_select(0, &labels) + noise, labels).unwrap()
}

#[test]
fn what_is_apart_is_told_apart() {
    let (train, test) = (clouds(600, 5, 8, 20.0, 1), clouds(200, 5, 8, 20.0, 2));
    assert_eq!(knn_accuracy(&train, Some(&test), 10).unwrap(), 1.0);
    assert_eq!(knn_accuracy(&train, None, 10).unwrap(), 1.0);
    assert_eq!(linear_probe(&train, &test, 1).unwrap().accuracy, 1.0);
}

#[test]
fn what_means_nothing_is_guessed() {
    let (train, test) = (clouds(2000, 4, 8, 0.0, 1), clouds(2000, 4, 8, 0.0, 2));
    for accuracy in [
        knn_accuracy(&train, Some(&test), 10).unwrap(),
        knn_accuracy(&train, None, 10).unwrap(),
        linear_probe(&train, &test, 1).unwrap().accuracy,
    ] {
        // Five standard errors. An example that votes for itself would be right more often.
        assert!((accuracy - 0.25).abs() < 5.0 * 0.0097, "{accuracy}");
    }
}

#[test]
fn a_linear_map_comes_near_the_best_there_is() {
    // Two clouds ±1 along one of 20 directions: no map is right more often than Φ(1) = 0.8413.
    let cloud = |count: i64, seed: i64| {
        tch::manual_seed(seed);
        let labels = Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(2);
        let x = Tensor::randn([count, 20], (Kind::Float, Device::Cpu));
        let _ = x.narrow(1, 0, 1).g_add_(&(labels.unsqueeze(1) * 2_i64 - 1_i64));
        // Scales and shifts of features do not matter to it.
        let scale = Tensor::logspace(-3.0, 3.0, 20, 10.0, (Kind::Float, Device::Cpu));
        LabelledFeatures::new((x + 5.0) * scale, labels).unwrap()
    };
    let (train, test) = (cloud(4000, 3), cloud(20_000, 4));
    let found = linear_probe(&train, &test, 1).unwrap();
    assert!((found.accuracy - 0.8413).abs() < 0.012, "{found:?}");
    assert_eq!(linear_probe(&train, &test, 1).unwrap(), found, "the same each time");
    // Few examples in many directions want a stronger decay than many do.
    let few = linear_probe(&cloud(40, 5), &test, 1).unwrap();
    assert!(few.weight_decay >= found.weight_decay && few.accuracy < found.accuracy, "{few:?}");
}

#[test]
fn distances_are_directions_and_near_ones_count_more() {
    let of = |rows: &[[f32; 2]], labels: &[i64]| {
        let flat: Vec<f32> = rows.iter().flatten().copied().collect();
        let x = Tensor::from_slice(&flat).reshape([rows.len() as i64, 2]);
        LabelledFeatures::new(x, Tensor::from_slice(labels)).unwrap()
    };
    // Their mean is 0. The point asked for lies in class 0's direction, far out; two of its three
    // nearest are of class 1, at an angle.
    let train = of(
        &[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.3], [-1.0, -0.3], [1.0, 0.0]],
        &[0, 1, 1, 2, 2, 0],
    );
    let test = of(&[[90.0, 1.0]], &[0]);
    assert_eq!(knn_accuracy(&train, Some(&test), 1).unwrap(), 1.0);
    assert_eq!(knn_accuracy(&train, Some(&test), 4).unwrap(), 1.0);
    let wrong = of(&[[90.0, 1.0]], &[1]);
    assert_eq!(knn_accuracy(&train, Some(&wrong), 4).unwrap(), 0.0);
}

#[test]
fn similarities_are_taken_in_parts() {
    // 5,000 × 5,000 similarities are more than are in memory at once.
    let train = clouds(5000, 3, 4, 3.0, 5);
    let whole = knn_accuracy(&train, None, 5).unwrap();
    let half =
        LabelledFeatures::new(train.features.narrow(0, 0, 2500), train.labels.narrow(0, 0, 2500))
            .unwrap();
    let other = knn_accuracy(&half, None, 5).unwrap();
    assert!(whole > 0.9 && (whole - other).abs() < 0.03, "{whole} {other}");
}

#[test]
fn what_does_not_fit_is_said() {
    let kind = (Kind::Float, Device::Cpu);
    let labels = || Tensor::zeros([3], (Kind::Int64, Device::Cpu));
    for (features, labels, said) in [
        (Tensor::zeros([3, 2, 1], kind), labels(), "(N, D)"),
        (Tensor::zeros([2, 2], kind), labels(), "[2, 2]"),
        (Tensor::zeros([0, 2], kind), labels().narrow(0, 0, 0), "[0, 2]"),
        (Tensor::zeros([3, 2], (Kind::Double, Device::Cpu)), labels(), "Double"),
        (Tensor::full([3, 2], f64::NAN, kind), labels(), "not finite"),
        (Tensor::zeros([3, 2], kind), labels() - 1_i64, "below 0"),
    ] {
        let error = LabelledFeatures::new(features, labels).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let (three, wide) = (clouds(3, 3, 3, 1.0, 1), clouds(3, 3, 4, 1.0, 1));
    assert!(
        knn_accuracy(&three, None, 3).unwrap_err().to_string().contains("k = 3 is outside 1..=2")
    );
    assert!(knn_accuracy(&three, None, 0).is_err());
    assert!(knn_accuracy(&three, Some(&wide), 1).unwrap_err().to_string().contains("width 3"));
    assert!(linear_probe(&three, &wide, 1).unwrap_err().to_string().contains("width 3"));
    // One example a class leaves none to choose the decay by.
    assert_eq!(linear_probe(&three, &three, 1).unwrap().weight_decay, 1.0);
}
