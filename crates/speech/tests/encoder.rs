//! Inference with a pretrained encoder.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use data2vec_core::HeadTask;
use data2vec_speech::{Error, Precision, SpeechEncoder, WaveCompat};
use tch::Device;

mod support;
use support::{save_tiny_model, uneven_noise};

fn load(compat: Vec<WaveCompat>) -> SpeechEncoder {
    let dir = tempfile::tempdir().unwrap();
    save_tiny_model(dir.path(), HeadTask::Ctc, &["<pad>", "A"], compat);
    SpeechEncoder::load(dir.path(), Device::Cpu).unwrap()
}

#[test]
fn features_are_those_of_last_block() {
    let encoder = load(Vec::new());
    assert_eq!((encoder.depth(), encoder.dim()), (1, 16));
    let samples = uneven_noise(2);
    let layers = encoder.layers(&samples).unwrap();
    assert_eq!(layers.len(), encoder.depth());
    let features = encoder.features(&samples).unwrap();
    assert_eq!((features.dim(), &features), ((99, 16), &layers[0]));
    let bf16 = encoder.with_precision(Precision::Bf16).features(&samples).unwrap();
    assert_eq!(bf16.dim(), (99, 16));
}

#[test]
fn batch_matches_single_recordings() {
    let recordings: Vec<Vec<f32>> = [3, 1, 2].into_iter().map(uneven_noise).collect();
    for compat in [vec![], vec![WaveCompat::PaddingLeaks]] {
        let encoder = load(compat);
        let batch = encoder.features_batch(&recordings).unwrap();
        assert_eq!(batch.len(), recordings.len());
        for (samples, features) in recordings.iter().zip(&batch) {
            let alone = encoder.features(samples).unwrap();
            assert_eq!(features.dim(), alone.dim());
            let off = features.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "off by {off}");
        }
    }
    assert!(load(Vec::new()).features_batch(&[] as &[Vec<f32>]).unwrap().is_empty());
}

#[test]
fn rejects_invalid_samples() {
    let encoder = load(Vec::new());
    for samples in [vec![], vec![0.5; 100], vec![f32::NAN; 16_000], vec![0.5; 301 * 16_000]] {
        assert!(matches!(encoder.features(&samples), Err(Error::Input(_))));
        let batch = [uneven_noise(1), samples];
        assert!(matches!(encoder.features_batch(&batch), Err(Error::Input(_))));
    }
}
