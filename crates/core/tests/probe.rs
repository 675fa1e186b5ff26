//! Probes of features with known accuracy: separable, overlapping, uninformative.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_core::eval::probe::{LabelledFeatures, knn_accuracy, linear_probe};
use tch::{Device, Kind, Tensor};

/// `count` points around `classes` centres, each `distance` standard deviations from 0 along its
/// own axis.
fn clusters(count: i64, classes: i64, dim: i64, distance: f64, seed: i64) -> LabelledFeatures {
    tch::manual_seed(seed);
    let labels = Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(classes);
    let centres = Tensor::eye_m(classes, dim, (Kind::Float, Device::Cpu)) * distance;
    let noise = Tensor::randn([count, dim], (Kind::Float, Device::Cpu));
    LabelledFeatures::new(centres.index_select(0, &labels) + noise, labels).unwrap()
}

#[test]
fn separates_distant_clusters() {
    let (train, test) = (clusters(600, 5, 8, 20.0, 1), clusters(200, 5, 8, 20.0, 2));
    assert_eq!(knn_accuracy(&train, Some(&test), 10).unwrap(), 1.0);
    assert_eq!(knn_accuracy(&train, None, 10).unwrap(), 1.0);
    assert_eq!(linear_probe(&train, &test, 1).unwrap().accuracy, 1.0);
}

#[test]
fn uninformative_features_give_chance_accuracy() {
    let (train, test) = (clusters(2000, 4, 8, 0.0, 1), clusters(2000, 4, 8, 0.0, 2));
    for accuracy in [
        knn_accuracy(&train, Some(&test), 10).unwrap(),
        knn_accuracy(&train, None, 10).unwrap(),
        linear_probe(&train, &test, 1).unwrap().accuracy,
    ] {
        // Five standard errors; an example that votes for itself would be correct more often.
        assert!((accuracy - 0.25).abs() < 5.0 * 0.0097, "{accuracy}");
    }
}

#[test]
fn linear_probe_approaches_bayes_accuracy() {
    // Two clusters at ±1 along one of 20 directions: the Bayes accuracy is Φ(1) = 0.8413.
    let cluster = |count: i64, seed: i64| {
        tch::manual_seed(seed);
        let labels = Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(2);
        let x = Tensor::randn([count, 20], (Kind::Float, Device::Cpu));
        let _ = x.narrow(1, 0, 1).g_add_(&(labels.unsqueeze(1) * 2_i64 - 1_i64));
        // The probe standardises features, so scales and shifts have no effect.
        let scale = Tensor::logspace(-3.0, 3.0, 20, 10.0, (Kind::Float, Device::Cpu));
        LabelledFeatures::new((x + 5.0) * scale, labels).unwrap()
    };
    let (train, test) = (cluster(4000, 3), cluster(20_000, 4));
    let found = linear_probe(&train, &test, 1).unwrap();
    assert!((found.accuracy - 0.8413).abs() < 0.012, "{found:?}");
    assert_eq!(linear_probe(&train, &test, 1).unwrap(), found, "not reproducible");
    // Few examples in many dimensions need a stronger decay than many examples do.
    let few = linear_probe(&cluster(40, 5), &test, 1).unwrap();
    assert!(few.weight_decay >= found.weight_decay && few.accuracy < found.accuracy, "{few:?}");
}

#[test]
fn knn_weighs_neighbours_by_cosine_similarity() {
    let features = |rows: &[[f32; 2]], labels: &[i64]| {
        let flat: Vec<f32> = rows.iter().flatten().copied().collect();
        let x = Tensor::from_slice(&flat).reshape([rows.len() as i64, 2]);
        LabelledFeatures::new(x, Tensor::from_slice(labels)).unwrap()
    };
    // The mean is 0. The query is far out in the direction of class 0; with k = 4, two of its
    // neighbours are of class 1, at an angle.
    let train = features(
        &[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.3], [-1.0, -0.3], [1.0, 0.0]],
        &[0, 1, 1, 2, 2, 0],
    );
    let test = features(&[[90.0, 1.0]], &[0]);
    assert_eq!(knn_accuracy(&train, Some(&test), 1).unwrap(), 1.0);
    assert_eq!(knn_accuracy(&train, Some(&test), 4).unwrap(), 1.0);
    let wrong = features(&[[90.0, 1.0]], &[1]);
    assert_eq!(knn_accuracy(&train, Some(&wrong), 4).unwrap(), 0.0);
}

#[test]
fn computes_similarities_in_chunks() {
    // 5,000 × 5,000 similarities exceed one chunk.
    let train = clusters(5000, 3, 4, 3.0, 5);
    let whole = knn_accuracy(&train, None, 5).unwrap();
    let half =
        LabelledFeatures::new(train.features.narrow(0, 0, 2500), train.labels.narrow(0, 0, 2500))
            .unwrap();
    let other = knn_accuracy(&half, None, 5).unwrap();
    assert!(whole > 0.9 && (whole - other).abs() < 0.03, "{whole} {other}");
}

#[test]
fn rejects_invalid_input() {
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
    let (three, wide) = (clusters(3, 3, 3, 1.0, 1), clusters(3, 3, 4, 1.0, 1));
    assert!(
        knn_accuracy(&three, None, 3).unwrap_err().to_string().contains("k = 3 is outside 1..=2")
    );
    assert!(knn_accuracy(&three, None, 0).is_err());
    assert!(knn_accuracy(&three, Some(&wide), 1).unwrap_err().to_string().contains("width 3"));
    assert!(linear_probe(&three, &wide, 1).unwrap_err().to_string().contains("width 3"));
    // With one example per class there is no validation part to choose the decay on.
    assert_eq!(linear_probe(&three, &three, 1).unwrap().weight_decay, 1.0);
}
