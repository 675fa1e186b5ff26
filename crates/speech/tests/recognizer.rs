//! Fine-tuned models as a user loads them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{path::Path, sync::Arc};

use data2vec_core::{
    Batch, EncoderConfig, Error, HeadConfig, HeadTask, NormPlacement, Pool, TransformerConfig,
    Tuned, WeightInit, head::HeadInit, write_model,
};
use data2vec_speech::{
    AudioClassifier, ConvNorm, Recognizer, WaveEncoder, WaveEncoderConfig, audio,
    ctc::{BeamConfig, Lexicon, greedy},
};
use ndarray::s;
use tch::{Device, Kind, Tensor, nn};

mod support;
use support::noise;

const RATE: usize = 16_000;

/// A tiny model with random weights.
fn model(dir: &Path, task: HeadTask, labels: &[&str]) {
    let mut conv_layers = vec![[8, 10, 5]];
    conv_layers.extend([[8, 3, 2]; 4]);
    conv_layers.extend([[8, 2, 2]; 2]);
    let config = EncoderConfig {
        encoder: "wave".into(),
        features: WaveEncoderConfig {
            normalize: true,
            conv_layers,
            conv_norm: ConvNorm::Layer,
            pos_layers: 1,
            pos_kernel: 3,
            pos_groups: 2,
            alibi: false,
            compat: Vec::new(),
        },
        transformer: TransformerConfig {
            dim: 16,
            depth: 1,
            heads: 2,
            mlp_ratio: 2.0,
            norm: NormPlacement::Post,
            norm_eps: 1e-5,
            input_norm: true,
            init: WeightInit::Bert,
            layer_scale: None,
            input_dropout: 0.0,
            dropout: 0.0,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            layer_drop: 0.0,
            drop_path: 0.0,
        },
    };
    let head = HeadConfig {
        task,
        pool: if task == HeadTask::Ctc { Pool::None } else { Pool::Mean },
        norm_eps: None,
        dropout: 0.0,
        init: HeadInit::Torch,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        dense: None,
    };
    tch::manual_seed(3);
    let vars = nn::VarStore::new(Device::Cpu);
    Tuned::<WaveEncoder>::new(&vars.root(), config.clone(), head.clone()).unwrap();
    let mut tensors = vars.variables();
    // Sure enough of themselves that something is said.
    let sharper = &tensors["head.out.weight"] * 8.0;
    tensors.insert("head.out.weight".into(), sharper);
    write_model(dir, &tensors, &config, Some(&head), None).unwrap();
}

const LABELS: [&str; 7] = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"];

fn sound(seconds: usize) -> Vec<f32> {
    // Loud and soft by turns, so that a chunk has another variance than the whole.
    let scale = |at: usize| if at / RATE % 7 < 3 { 1.0 } else { 0.1 };
    let noise = noise(5, seconds * RATE).into_iter().enumerate();
    noise.map(|(at, x)| scale(at) * f32::from(x) / 32_768.0).collect()
}

/// The network's own outputs.
fn whole(dir: &Path, samples: &[f32]) -> ndarray::Array2<f32> {
    let model = Tuned::<WaveEncoder>::load(dir, Device::Cpu).unwrap();
    let inputs = Tensor::from_slice(samples).unsqueeze(0);
    let logits = model.forward(&Batch::new(inputs).unwrap()).unwrap().0;
    let log_probs = logits.log_softmax(-1, Kind::Float).squeeze_dim(0);
    let (rows, columns) = log_probs.size2().unwrap();
    let values = Vec::<f32>::try_from(log_probs.flatten(0, 1)).unwrap();
    ndarray::Array2::from_shape_vec((rows as usize, columns as usize), values).unwrap()
}

fn close(a: ndarray::ArrayView2<f32>, b: ndarray::ArrayView2<f32>) {
    assert_eq!(a.dim(), b.dim());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4));
}

#[test]
fn long_recordings_are_heard_in_overlapping_chunks() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), HeadTask::Ctc, &LABELS);
    let recognizer = Recognizer::load(dir.path(), Device::Cpu).unwrap();
    let samples = sound(70);
    let mut normal = samples.clone();
    audio::normalize(&mut normal);

    // One chunk is the network's output as it is.
    let mut short = samples[..30 * RATE].to_vec();
    let alone = recognizer.log_probs(&short).unwrap();
    audio::normalize(&mut short);
    close(alone.view(), whole(dir.path(), &short).view());

    // Chunks begin at 0, 26 and 52 s; 50 frames a second; 2 s on each side of a seam are not used.
    let all = recognizer.log_probs(&samples).unwrap();
    assert_eq!(all.nrows(), (70 * RATE - 400) / 320 + 1);
    let first = whole(dir.path(), &normal[..30 * RATE]);
    close(all.slice(s![..1_400, ..]), first.slice(s![..1_400, ..]));
    let second = whole(dir.path(), &normal[26 * RATE..56 * RATE]);
    close(all.slice(s![1_400..2_700, ..]), second.slice(s![100..1_400, ..]));
    let third = whole(dir.path(), &normal[52 * RATE..]);
    close(all.slice(s![2_700.., ..]), third.slice(s![100.., ..]));

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
fn classes_have_probabilities() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), HeadTask::Classification, &["no", "yes", "maybe"]);
    let classifier = AudioClassifier::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!(classifier.labels(), ["no", "yes", "maybe"]);
    for seconds in [1, 40] {
        let classes = classifier.classify(&sound(seconds)).unwrap();
        assert!((classes.iter().map(|(_, prob)| prob).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(classes.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    }
    let refused = Recognizer::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(refused.contains("its head is for classification, not for transcription"), "{refused}");
    model(dir.path(), HeadTask::Ctc, &LABELS);
    let refused = AudioClassifier::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(
        refused.contains("its head is for transcription (ctc), not for classification"),
        "{refused}"
    );
    std::fs::remove_file(dir.path().join("head.toml")).unwrap();
    let refused = Recognizer::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    assert!(refused.contains("fine-tune it first"), "{refused}");
}
