//! The tokenizer: training, saving, loading, GPT-2's files, invalid files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use data2vec_core::Error;
use data2vec_nlp::{SpecialIds, TOKENIZER_FILE, TokenEncoderConfig, Tokenizer};
use proptest::prelude::*;

const TEXT: &str = "The fellow citizens of the Senate and of the House of Representatives: among \
    the vicissitudes incident to life no event could have filled me with greater anxieties.";

fn trained() -> Tokenizer {
    let words: Vec<&str> = TEXT.split_inclusive(' ').collect();
    let texts =
        (0..200).map(|i| words.iter().cycle().skip(i).take(12).copied().collect::<String>());
    Tokenizer::train(texts, 300).unwrap()
}

#[test]
fn training_is_deterministic_with_fairseq_special_ids() {
    let tokenizer = trained();
    let special = SpecialIds { bos: 0, pad: 1, eos: 2, unk: 3, mask: 299 };
    assert_eq!((tokenizer.special(), tokenizer.vocab_size()), (special, 300));
    assert_eq!(tokenizer.fingerprint(), trained().fingerprint());
    let ids = tokenizer.encode(TEXT).unwrap();
    assert!(ids.len() < TEXT.len() * 2 / 3, "{} ids", ids.len());
    assert!(ids.iter().all(|&id| (4..299).contains(&id)));
    assert_eq!(tokenizer.decode(&ids).unwrap(), TEXT);
}

#[test]
fn saved_tokenizer_loads_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = trained();
    let path = dir.path().join(TOKENIZER_FILE);
    tokenizer.save(dir.path()).unwrap();
    for path in [&path, dir.path()] {
        let loaded = Tokenizer::load(path).unwrap();
        assert_eq!(loaded.special(), tokenizer.special());
        assert_eq!(loaded.fingerprint(), tokenizer.fingerprint());
        assert_eq!(loaded.encode(TEXT).unwrap(), tokenizer.encode(TEXT).unwrap());
    }
}

#[test]
fn encodes_special_tokens_in_text_as_text() {
    let tokenizer = trained();
    let text = "a <mask> is not </s> nor <s><pad>";
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.iter().all(|&id| (4..299).contains(&id)), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
}

#[test]
fn train_rejects_too_little_text() {
    let error = Tokenizer::train(["a little"].into_iter(), 4096).unwrap_err().to_string();
    assert!(error.contains("a vocabulary of 261 entries, not 4096"), "{error}");
    let error = Tokenizer::train(["a little"].into_iter(), 200).unwrap_err().to_string();
    assert!(error.contains("from 261 to"), "{error}");
}

/// Returns the characters that stand for the 256 bytes in GPT-2's files.
fn byte_chars() -> Vec<char> {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 256..;
    (0..=255_u8)
        .map(
            |b| {
                if plain(b) {
                    char::from(b)
                } else {
                    char::from_u32(others.next().unwrap()).unwrap()
                }
            },
        )
        .collect()
}

/// Writes the files of a tiny GPT-2: 256 bytes, ` t`, ` th`, `<|endoftext|>`.
fn gpt2(dir: &Path) {
    let mut tokens: Vec<String> = byte_chars().into_iter().map(String::from).collect();
    tokens.extend(["Ġt".into(), "Ġth".into(), "<|endoftext|>".into()]);
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        tokens.into_iter().zip(0..).map(|(token, id)| (token, id.into())).collect();
    fs::write(dir.join("encoder.json"), serde_json::to_string(&vocabulary).unwrap()).unwrap();
    fs::write(dir.join("vocab.bpe"), "#version: 0.2\nĠ t\nĠt h\n").unwrap();
}

#[test]
fn gpt2_ids_are_shifted_by_four() {
    let dir = tempfile::tempdir().unwrap();
    gpt2(dir.path());
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let special = SpecialIds { bos: 0, pad: 1, eos: 2, unk: 3, mask: 259 + 4 };
    assert_eq!((tokenizer.special(), tokenizer.vocab_size()), (special, 264));
    let ids = tokenizer.encode("a the").unwrap();
    assert_eq!(ids, [i64::from(b'a') + 4, 257 + 4, i64::from(b'e') + 4]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a the");
    assert!(matches!(tokenizer.save_json(dir.path().join("x.json")), Err(Error::File { .. })));
}

#[test]
fn fairseq_dictionary_maps_gpt2_ids() {
    let dir = tempfile::tempdir().unwrap();
    gpt2(dir.path());
    let a = u32::from(b'a');
    fs::write(dir.path().join("dict.txt"), format!("257 90\n{a} 7\nmadeupword0000 0\n")).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.special().mask, tokenizer.vocab_size()), (7, 8));
    assert_eq!(tokenizer.encode("a the").unwrap(), [5, 4, 3], "`e` is not in the dictionary");
    assert_eq!(tokenizer.decode(&[0, 5, 4, 2]).unwrap(), "a th");
    let copy = tempfile::tempdir().unwrap();
    tokenizer.save(copy.path()).unwrap();
    assert_eq!(Tokenizer::load(copy.path()).unwrap().fingerprint(), tokenizer.fingerprint());

    for (text, expected) in [("257", "line 1"), ("257 x", "`x`"), ("900 1", "900 is outside")] {
        fs::write(dir.path().join("dict.txt"), text).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("dict.txt") && error.contains(&expected.replace('`', "\"")),
            "{error}"
        );
    }
}

#[test]
fn roberta_files_contain_special_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let mut tokens: Vec<String> = ["<s>", "<pad>", "</s>", "<unk>"].map(String::from).to_vec();
    tokens.extend(byte_chars().into_iter().map(String::from));
    tokens.extend(["Ġt".into(), "<mask>".into()]);
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        tokens.into_iter().zip(0..).map(|(token, id)| (token, id.into())).collect();
    let vocabulary = serde_json::to_string(&vocabulary).unwrap();
    fs::write(dir.path().join("vocab.json"), vocabulary).unwrap();
    fs::write(dir.path().join("merges.txt"), "#version: 0.2\nĠ t\n").unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.special().mask, tokenizer.vocab_size()), (261, 262));
    assert_eq!(tokenizer.encode("a t").unwrap(), [i64::from(b'a') + 4, 260]);
}

#[test]
fn load_reports_invalid_files() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| Tokenizer::load(path).unwrap_err().to_string();
    assert!(error(&dir.path().join("none")).contains("none"));
    assert!(error(dir.path()).contains("holds neither tokenizer.json"));
    let path = dir.path().join(TOKENIZER_FILE);
    fs::write(&path, "{").unwrap();
    assert!(error(dir.path()).contains("is not a tokenizer.json"));
    // The tokenizers crate panics on this file.
    fs::write(&path, r#"{"version": "1.0", "decoder": {"type" "ByteLevel"}}"#).unwrap();
    assert!(error(dir.path()).contains("decoding failed"), "{}", error(dir.path()));
    fs::write(&path, r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#).unwrap();
    assert!(error(&path).contains("no <s>"), "{}", error(&path));
    fs::remove_file(path).unwrap();
    gpt2(dir.path());
    fs::write(dir.path().join("vocab.bpe"), "#version: 0.2\nq qq\n").unwrap();
    assert!(error(dir.path()).contains("does not go with"), "{}", error(dir.path()));
}

#[test]
fn check_rejects_encoder_with_other_ids() {
    let tokenizer = trained();
    let mut features = TokenEncoderConfig {
        vocabulary: 300,
        max_tokens: 16,
        pad: 1,
        mask: 299,
        dropout: 0.0,
        norm_eps: 1e-5,
        early_positions: false,
    };
    tokenizer.check(&features).unwrap();
    features.mask = 298;
    assert!(
        tokenizer.check(&features).unwrap_err().to_string().starts_with("features.mask: is 298")
    );
    features.vocabulary = 50265;
    let error = tokenizer.check(&features).unwrap_err().to_string();
    assert!(error.contains("features.vocabulary: is 50265, the tokenizer has 300"), "{error}");
}

#[test]
fn long_runs_round_trip() {
    let tokenizer = trained();
    for text in
        [" ".repeat(3_000_000), "x".repeat(1_500_000), "é".repeat(700_000), TEXT.repeat(9000)]
    {
        let text = format!("{text} the end");
        let ids = tokenizer.encode(&text).unwrap();
        assert!(tokenizer.decode(&ids).unwrap() == text, "{}…", &text[..10]);
    }
}

#[test]
fn cutting_long_text_keeps_tokens() {
    let tokenizer = trained();
    let text = format!("{TEXT} ").repeat(800); // two pieces
    let expected: Vec<i64> = (0..800)
        .flat_map(|i| {
            tokenizer.encode(&if i == 0 { TEXT.to_owned() } else { format!(" {TEXT}") }).unwrap()
        })
        .collect();
    assert_eq!(tokenizer.encode(text.trim_end()).unwrap(), expected);
}

proptest! {
    #[test]
    fn any_text_round_trips(text in any::<String>()) {
        let tokenizer = trained();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| (4..299).contains(&id)));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}
