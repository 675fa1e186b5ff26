//! Inference with a fine-tuned classifier.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_core::HeadTask;
use data2vec_speech::{AudioClassifier, WaveCompat};
use tch::Device;

mod support;
use support::{save_tiny_model, uneven_noise};

const CLASSES: [&str; 3] = ["no", "yes", "maybe"];

#[test]
fn returns_probabilities_of_all_classes() {
    let dir = tempfile::tempdir().unwrap();
    save_tiny_model(dir.path(), HeadTask::Classification, &CLASSES, Vec::new());
    let classifier = AudioClassifier::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!(classifier.labels(), CLASSES);
    for seconds in [1, 40] {
        let classes = classifier.classify(&uneven_noise(seconds)).unwrap();
        assert_eq!(classes.len(), 3);
        assert!(
            (classes.iter().map(|(_, probability)| probability).sum::<f64>() - 1.0).abs() < 1e-5
        );
        assert!(classes.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    }
}

#[test]
fn batch_matches_single_recordings() {
    let recordings: Vec<Vec<f32>> = [2, 35, 1, 3].into_iter().map(uneven_noise).collect();
    for compat in [vec![], vec![WaveCompat::PaddingLeaks]] {
        let dir = tempfile::tempdir().unwrap();
        save_tiny_model(dir.path(), HeadTask::Classification, &CLASSES, compat);
        let classifier = AudioClassifier::load(dir.path(), Device::Cpu).unwrap();
        let batch = classifier.classify_batch(&recordings).unwrap();
        assert_eq!(batch.len(), recordings.len());
        for (samples, classes) in recordings.iter().zip(&batch) {
            for ((label, a), (alone, b)) in
                classes.iter().zip(classifier.classify(samples).unwrap())
            {
                assert!(*label == alone && (a - b).abs() < 1e-5, "{label} {a}, {alone} {b}");
            }
        }
        assert!(classifier.classify_batch(&[] as &[Vec<f32>]).unwrap().is_empty());
    }
}

#[test]
fn rejects_models_for_other_tasks() {
    let dir = tempfile::tempdir().unwrap();
    save_tiny_model(dir.path(), HeadTask::Ctc, &["<pad>", "A"], Vec::new());
    let error = AudioClassifier::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("the head is for Ctc, not for classification"), "{error}");
}
