//! Fine-tuned models of texts: what they tell, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use data2vec_core::tuned::write_model;
use data2vec_core::{Batch, EncoderConfig, HeadConfig, Tuned};
use data2vec_nlp::{TextClassifier, TextEncoder, TokenEncoder, TokenEncoderConfig, Tokenizer};
use serde_json::json;
use tch::{Device, Kind, Tensor, nn};
use tempfile::TempDir;

/// The folder of a model with random weights for a tokenizer of bytes (`a` is 68).
fn model(task: &str, labels: &[&str]) -> (TempDir, Tuned<TokenEncoder>) {
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
    let tuned = Tuned::new(&vars.root(), config.clone(), head.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &vars.variables(), &config, Some(&head), None).unwrap();
    bytes().save_with_encoder(folder.path()).unwrap();
    (folder, tuned)
}

fn bytes() -> Tokenizer {
    Tokenizer::train(["a"].into_iter(), 261).unwrap()
}

/// What the model makes of ids, by hand.
fn logits(tuned: &Tuned<TokenEncoder>, ids: &[i64]) -> Vec<f64> {
    let batch = Batch::new(Tensor::from_slice(ids).unsqueeze(0)).unwrap();
    let (logits, _) = tuned.forward(&batch).unwrap();
    Vec::try_from(logits.squeeze_dim(0).to_kind(Kind::Double)).unwrap()
}

#[test]
fn classes_come_with_their_probabilities() {
    let (folder, tuned) = model("classification", &["no", "maybe", "yes"]);
    let classifier = TextClassifier::load(folder.path(), Device::Cpu).unwrap();
    assert_eq!(classifier.labels(), ["no", "maybe", "yes"]);
    let check = |found: Vec<(String, f64)>, ids: &[i64]| {
        let exps: Vec<f64> = logits(&tuned, ids).into_iter().map(f64::exp).collect();
        let sum: f64 = exps.iter().sum();
        assert!(found.is_sorted_by(|a, b| a.1 >= b.1) && found.len() == 3);
        for (label, probability) in found {
            let at = classifier.labels().iter().position(|known| *known == label).unwrap();
            assert!((probability - exps[at] / sum).abs() < 1e-6, "{label} {probability}");
        }
    };
    check(classifier.classify(" ab\n").unwrap(), &[0, 68, 69, 2]);
    check(classifier.classify_pair("a", "b").unwrap(), &[0, 68, 2, 2, 69, 2]);
    // 12 tokens at most
    check(
        classifier.classify(&"a".repeat(99)).unwrap(),
        &[[0].as_slice(), &[68; 10], &[2]].concat(),
    );
    let cut = [0, 68, 68, 68, 68, 68, 68, 2, 2, 69, 70, 2];
    check(classifier.classify_pair(&"a".repeat(99), "bc").unwrap(), &cut);
    let error = |result: data2vec_core::Result<f64>| result.unwrap_err().to_string();
    let wanted = "bad input: the model was trained for classification, not regression";
    assert_eq!(error(classifier.score("a")), wanted);
    assert_eq!(classifier.classify(" \n").unwrap_err().to_string(), "bad input: no text");
    // Its encoder is one like any other.
    assert_eq!(
        TextEncoder::load(folder.path(), Device::Cpu).unwrap().features("a").unwrap().dim(),
        (3, 16)
    );
}

#[test]
fn numbers_are_told() {
    let (folder, tuned) = model("regression", &["score"]);
    let scorer = TextClassifier::load(folder.path(), Device::Cpu).unwrap();
    assert_eq!(scorer.score("ab").unwrap(), logits(&tuned, &[0, 68, 69, 2])[0]);
    assert_eq!(scorer.score_pair("a", "b").unwrap(), logits(&tuned, &[0, 68, 2, 2, 69, 2])[0]);
    assert!(scorer.classify("a").unwrap_err().to_string().contains("trained for regression"));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (folder, _) = model("classification", &["no", "yes"]);
    let error = || TextClassifier::load(folder.path(), Device::Cpu).unwrap_err().to_string();
    let other = Tokenizer::train(["abababab"; 9].into_iter(), 262).unwrap();
    other.save(folder.path()).unwrap();
    assert!(error().contains("another one than it was trained with"), "{}", error());
    other.save_with_encoder(folder.path()).unwrap();
    assert!(
        error().starts_with("features.vocabulary: is 261, the tokenizer has 262"),
        "{}",
        error()
    );
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(error().contains("holds neither tokenizer.json"), "{}", error());
    bytes().save_with_encoder(folder.path()).unwrap();
    fs::remove_file(folder.path().join("head.toml")).unwrap();
    assert!(error().contains("fine-tune it first"), "{}", error());
}
