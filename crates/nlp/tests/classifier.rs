//! Inference with fine-tuned text models.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use data2vec_core::model::finetuned::save_model;
use data2vec_core::{Batch, EncoderConfig, FinetunedModel, HeadConfig};
use data2vec_nlp::{TextClassifier, TextEncoder, TokenEncoder, TokenEncoderConfig, Tokenizer};
use serde_json::json;
use tch::{Device, Kind, Tensor, nn};
use tempfile::TempDir;

/// Writes a model with random weights and a byte tokenizer (`a` is 68) to a directory.
fn save_random_model(task: &str, labels: &[&str]) -> (TempDir, FinetunedModel<TokenEncoder>) {
    let config: EncoderConfig<TokenEncoderConfig> = serde_json::from_value(json!({
        "encoder": "token",
        "features": {
            "vocabulary": 261, "max_tokens": 12, "pad": 1, "mask": 260, "dropout": 0.1, "norm_eps": 1e-5,
            "early_positions": true,
        },
        "transformer": {
            "dim": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "norm": "post", "norm_eps": 1e-5,
            "input_norm": false, "init": "bert", "input_dropout": 0.1, "dropout": 0.1,
            "attention_dropout": 0.1, "activation_dropout": 0.0, "layer_drop": 0.0, "drop_path": 0.0,
        },
    }))
    .unwrap();
    let head: HeadConfig = serde_json::from_value(json!({
        "task": task, "pool": "first", "dropout": 0.1, "labels": labels,
        "dense": { "dim": 16, "activation": "tanh" },
    }))
    .unwrap();
    tch::manual_seed(5);
    let vars = nn::VarStore::new(Device::Cpu);
    let model = FinetunedModel::new(&vars.root(), config.clone(), head.clone()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path(), &vars.variables(), &config, Some(&head), None).unwrap();
    byte_tokenizer().save_with_encoder(dir.path()).unwrap();
    (dir, model)
}

fn byte_tokenizer() -> Tokenizer {
    Tokenizer::train(["a"].into_iter(), 261).unwrap()
}

/// Computes the model's output for token ids.
fn logits(model: &FinetunedModel<TokenEncoder>, ids: &[i64]) -> Vec<f64> {
    let batch = Batch::new(Tensor::from_slice(ids).unsqueeze(0)).unwrap();
    let (logits, _) = model.forward(&batch).unwrap();
    Vec::try_from(logits.squeeze_dim(0).to_kind(Kind::Double)).unwrap()
}

#[test]
fn classify_ranks_classes_by_probability() {
    let (dir, model) = save_random_model("classification", &["no", "maybe", "yes"]);
    let classifier = TextClassifier::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!(classifier.labels(), ["no", "maybe", "yes"]);
    let check = |found: Vec<(String, f64)>, ids: &[i64]| {
        let exps: Vec<f64> = logits(&model, ids).into_iter().map(f64::exp).collect();
        let sum: f64 = exps.iter().sum();
        assert!(found.is_sorted_by(|a, b| a.1 >= b.1) && found.len() == 3);
        for (label, probability) in found {
            let at = classifier.labels().iter().position(|known| *known == label).unwrap();
            assert!((probability - exps[at] / sum).abs() < 1e-6, "{label} {probability}");
        }
    };
    check(classifier.classify(" ab\n").unwrap(), &[0, 68, 69, 2]);
    check(classifier.classify_pair("a", "b").unwrap(), &[0, 68, 2, 2, 69, 2]);
    // Truncated to 12 tokens.
    check(
        classifier.classify(&"a".repeat(99)).unwrap(),
        &[[0].as_slice(), &[68; 10], &[2]].concat(),
    );
    let truncated = [0, 68, 68, 68, 68, 68, 68, 2, 2, 69, 70, 2];
    check(classifier.classify_pair(&"a".repeat(99), "bc").unwrap(), &truncated);
    let error = |result: data2vec_core::Result<f64>| result.unwrap_err().to_string();
    let expected = "bad input: the model was trained for classification, not regression";
    assert_eq!(error(classifier.score("a")), expected);
    assert_eq!(classifier.classify(" \n").unwrap_err().to_string(), "bad input: no text");
    // The encoder of a fine-tuned model loads on its own.
    assert_eq!(
        TextEncoder::load(dir.path(), Device::Cpu).unwrap().features("a").unwrap().dim(),
        (3, 16)
    );
}

#[test]
fn classify_batch_equals_single_calls() {
    let (dir, _) = save_random_model("classification", &["no", "maybe", "yes"]);
    let classifier = TextClassifier::load(dir.path(), Device::Cpu).unwrap();
    let texts = ["a", "abcdefgh", "a text longer than 12 tokens", "bc"];
    let batch = classifier.classify_batch(&texts).unwrap();
    assert_eq!(batch.len(), texts.len());
    for (text, classes) in texts.iter().zip(batch) {
        for ((label, p), (expected, q)) in classes.iter().zip(classifier.classify(text).unwrap()) {
            assert!(*label == expected && (p - q).abs() < 1e-5, "{text}: {label} {p}, not {q}");
        }
    }
    assert!(classifier.classify_batch(&[]).unwrap().is_empty());
    assert!(classifier.classify_batch(&["a", " "]).is_err());
}

#[test]
fn features_batch_equals_single_calls() {
    let (dir, _) = save_random_model("classification", &["no", "yes"]);
    let encoder = TextEncoder::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!((encoder.depth(), encoder.dim()), (2, 16));
    let texts = ["ab", "", "a text of three windows of 12 tokens", "a\nb", "abcdefgh"];
    let batch = encoder.features_batch(&texts).unwrap();
    assert_eq!(batch.len(), texts.len());
    for (text, features) in texts.iter().zip(batch) {
        let single = encoder.features(text).unwrap();
        assert_eq!(features.dim(), (encoder.tokens(text).unwrap().len(), 16));
        let error = (&features - &single).iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        assert!(features.dim() == single.dim() && error < 1e-5, "{text:?}: {error}");
    }
    assert!(encoder.features_batch(&[]).unwrap().is_empty());
}

#[test]
fn score_returns_model_output() {
    let (dir, model) = save_random_model("regression", &["score"]);
    let scorer = TextClassifier::load(dir.path(), Device::Cpu).unwrap();
    assert_eq!(scorer.score("ab").unwrap(), logits(&model, &[0, 68, 69, 2])[0]);
    assert_eq!(scorer.score_pair("a", "b").unwrap(), logits(&model, &[0, 68, 2, 2, 69, 2])[0]);
    assert!(scorer.classify("a").unwrap_err().to_string().contains("trained for regression"));
}

#[test]
fn load_rejects_mismatched_files() {
    let (dir, _) = save_random_model("classification", &["no", "yes"]);
    let error = || TextClassifier::load(dir.path(), Device::Cpu).unwrap_err().to_string();
    let other = Tokenizer::train(["abababab"; 9].into_iter(), 262).unwrap();
    other.save(dir.path()).unwrap();
    assert!(
        error().contains("its tokenizer differs from the one it was trained with"),
        "{}",
        error()
    );
    other.save_with_encoder(dir.path()).unwrap();
    assert!(
        error().starts_with("features.vocabulary: is 261, the tokenizer has 262"),
        "{}",
        error()
    );
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(error().contains("holds neither tokenizer.json"), "{}", error());
    byte_tokenizer().save_with_encoder(dir.path()).unwrap();
    fs::remove_file(dir.path().join("head.toml")).unwrap();
    assert!(error().contains("fine-tune it first"), "{}", error());
}
