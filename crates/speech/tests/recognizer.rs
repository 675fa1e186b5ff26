//! Inference with a fine-tuned CTC model.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;

use data2vec_core::{Batch, Error, FinetunedModel, HeadTask};
use data2vec_speech::ctc::{BeamConfig, Lexicon, greedy};
use data2vec_speech::{Recognizer, WaveEncoder, audio};
use ndarray::s;
use tch::{Device, Kind, Tensor};

mod support;
use support::{save_tiny_model, uneven_noise};

const RATE: usize = 16_000;
const LABELS: [&str; 7] = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"];

/// Returns the log-probabilities of the model without chunking.
fn model_log_probs(dir: &Path, samples: &[f32]) -> ndarray::Array2<f32> {
    let model = FinetunedModel::<WaveEncoder>::load(dir, Device::Cpu).unwrap();
    let inputs = Tensor::from_slice(samples).unsqueeze(0);
    let logits = model.forward(&Batch::new(inputs).unwrap()).unwrap().0;
    let log_probs = logits.log_softmax(-1, Kind::Float).squeeze_dim(0);
    let (rows, columns) = log_probs.size2().unwrap();
    let values = Vec::<f32>::try_from(log_probs.flatten(0, 1)).unwrap();
    ndarray::Array2::from_shape_vec((rows as usize, columns as usize), values).unwrap()
}

fn assert_close(a: ndarray::ArrayView2<f32>, b: ndarray::ArrayView2<f32>) {
    assert_eq!(a.dim(), b.dim());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4));
}

#[test]
fn transcribes_batches_as_single_recordings() {
    let dir = tempfile::tempdir().unwrap();
    save_tiny_model(dir.path(), HeadTask::Ctc, &LABELS, Vec::new());
    let recognizer = Recognizer::load(dir.path(), Device::Cpu).unwrap();
    let all = uneven_noise(40);
    // A long one in the middle: order and seams must survive the sorting by length.
    let recordings = [&all[..2 * RATE], &all[..], &all[RATE..6 * RATE], &all[3 * RATE..4 * RATE]];
    let together = recognizer.transcribe_batch(&recordings).unwrap();
    let alone: Vec<_> = recordings.iter().map(|r| recognizer.transcribe(r).unwrap()).collect();
    assert_eq!(together.len(), alone.len());
    for (together, alone) in together.iter().zip(&alone) {
        assert_eq!(together.text, alone.text);
        assert_eq!(together.words.len(), alone.words.len());
    }
    assert!(recognizer.transcribe_batch(&[[0.0_f32; 0]; 0]).unwrap().is_empty());
    let broken = [&all[..RATE], &[f32::NAN; RATE][..]];
    assert!(recognizer.transcribe_batch(&broken).is_err());
}

#[test]
fn splits_long_recordings_into_overlapping_chunks() {
    let dir = tempfile::tempdir().unwrap();
    save_tiny_model(dir.path(), HeadTask::Ctc, &LABELS, Vec::new());
    let recognizer = Recognizer::load(dir.path(), Device::Cpu).unwrap();
    let samples = uneven_noise(70);
    let mut normalized = samples.clone();
    audio::normalize(&mut normalized);

    // A single chunk is the output of the model.
    let mut short = samples[..30 * RATE].to_vec();
    let alone = recognizer.log_probs(&short).unwrap();
    audio::normalize(&mut short);
    assert_close(alone.view(), model_log_probs(dir.path(), &short).view());

    // Chunks begin at 0, 26 and 52 s, at 50 frames per second; 2 s on both sides of a seam are unused.
    let all = recognizer.log_probs(&samples).unwrap();
    assert_eq!(all.nrows(), (70 * RATE - 400) / 320 + 1);
    let first = model_log_probs(dir.path(), &normalized[..30 * RATE]);
    assert_close(all.slice(s![..1_400, ..]), first.slice(s![..1_400, ..]));
    let second = model_log_probs(dir.path(), &normalized[26 * RATE..56 * RATE]);
    assert_close(all.slice(s![1_400..2_700, ..]), second.slice(s![100..1_400, ..]));
    let third = model_log_probs(dir.path(), &normalized[52 * RATE..]);
    assert_close(all.slice(s![2_700.., ..]), third.slice(s![100.., ..]));

    let transcript = recognizer.transcribe(&samples).unwrap();
    assert_eq!(transcript.text, greedy(all.view(), recognizer.labels()).unwrap().text);
    assert!(transcript.words.len() > 1, "{}", transcript.text);
    let mut last = 0.0;
    for word in &transcript.words {
        assert!(word.start >= last && word.end > word.start && word.end <= 70.0, "{word:?}");
        assert!((0.0..=1.0).contains(&word.score));
        last = word.start;
    }
    let words: Vec<&str> = transcript.words.iter().map(|word| word.text.as_str()).collect();
    assert_eq!(words.join(" "), transcript.text);

    let lexicon = Lexicon::new(["A", "BA"], recognizer.labels()).unwrap();
    let config = BeamConfig { beam: 10, ..BeamConfig::default() };
    let recognizer = recognizer.with_beam(config, None, Some(Arc::new(lexicon))).unwrap();
    let transcript = recognizer.transcribe(&samples[..5 * RATE]).unwrap();
    assert!(transcript.words.iter().all(|word| ["A", "BA"].contains(&word.text.as_str())));
    for bad in [vec![0.5; 100], vec![f32::NAN; 16_000]] {
        assert!(matches!(recognizer.transcribe(&bad), Err(Error::Input(_))));
    }
}

#[test]
fn rejects_models_for_other_tasks() {
    let dir = tempfile::tempdir().unwrap();
    save_tiny_model(dir.path(), HeadTask::Classification, &["no", "yes", "maybe"], Vec::new());
    let error = || Recognizer::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    let reason = "the head is for Classification, not for transcription (CTC)";
    assert!(error().contains(reason), "{}", error());
    std::fs::remove_file(dir.path().join("head.toml")).unwrap();
    assert!(error().contains("fine-tune it first"), "{}", error());
}
