//! Language models: comparison with KenLM, invalid files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use data2vec_speech::lm::{LanguageModel, LmState};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use serde::Deserialize;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens")).join(name)
}

#[derive(Deserialize)]
struct Goldens {
    order: usize,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    text: String,
    /// With the beginning, with the end, score.
    whole: Vec<(bool, bool, f32)>,
    /// Score, length of the n-gram, unknown or not.
    words: Vec<(f32, usize, bool)>,
}

fn check(lm: &LanguageModel) {
    let text = fs::read_to_string(golden("lm.json")).unwrap();
    let goldens: Goldens = serde_json::from_str(&text).unwrap();
    assert_eq!(lm.order(), goldens.order);
    assert!(goldens.sentences.len() > 50);
    let close = |a: f32, b: f32| (a - b).abs() < 1e-5 * (1.0 + b.abs());
    for sentence in goldens.sentences {
        for (begin, end, score) in sentence.whole {
            let found = lm.sentence(&sentence.text, begin, end);
            assert!(close(found, score), "{:?} {begin} {end}: {found} {score}", sentence.text);
        }
        let mut state = lm.begin();
        for (word, (score, _, unknown)) in sentence.text.split_whitespace().zip(&sentence.words) {
            let (found, next) = lm.word(&state, word);
            assert!(close(found, *score), "{word} in {:?}: {found} {score}", sentence.text);
            assert_eq!(lm.contains(word), !unknown);
            state = next;
        }
        assert!(close(lm.end(&state), sentence.words.last().unwrap().0));
    }
}

#[test]
fn scores_match_kenlm() {
    for name in ["small.arpa", "small.probing", "small.trie"] {
        check(&LanguageModel::load(golden(name)).unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.arpa.gz");
    let mut gzip = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::default());
    gzip.write_all(&fs::read(golden("small.arpa")).unwrap()).unwrap();
    gzip.finish().unwrap();
    check(&LanguageModel::load(&path).unwrap());
}

fn loaded(bytes: &[u8]) -> Result<LanguageModel, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    fs::write(&path, bytes).unwrap();
    LanguageModel::load(&path).map_err(|error| {
        let error = error.to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error.replace(&*path.to_string_lossy(), "model")
    })
}

const UNIGRAMS: &str =
    "\\data\\\nngram 1=4\n\n\\1-grams:\n-1\t<s>\n-1 </s>\n-0.5\ta\n-2\tb\n\n\\end\\\n";

#[test]
fn scores_unigram_model() {
    let lm = loaded(UNIGRAMS.as_bytes()).unwrap();
    assert_eq!((lm.order(), lm.contains("a"), lm.contains("c")), (1, true, false));
    assert_eq!(lm.sentence("a b", true, true), -3.5);
    assert_eq!(lm.word(&LmState::default(), "c").0, -100.0);
}

#[test]
fn rejects_invalid_files_with_location() {
    let bigram = |line: &str| {
        let sections = format!("\n\\2-grams:\n{line}\n\n\\end\\");
        UNIGRAMS.replace("ngram 1=4", "ngram 1=4\nngram 2=1").replace("\n\\end\\", &sections)
    };
    assert!(loaded(bigram("-0.1 a b").as_bytes()).is_ok());
    for (text, words) in [
        (String::new(), "line 1: the file ends where `\\data\\`"),
        ("no model\n".into(), "`\\data\\`"),
        (UNIGRAMS.replace("1=4", "1=5"), "line 10: 4 1-grams, but the header says 5"),
        (UNIGRAMS.replace("1=4", "1=3"), "line 8: more 1-grams than the 3"),
        (UNIGRAMS.replace("1=4", "2=4"), "line 2: should be `ngram 1=…`"),
        (UNIGRAMS.replace("-2\tb", "2\tb"), "line 8: should be `a log10 of at most 0"),
        (UNIGRAMS.replace("-2\tb", "NaN\tb"), "line 8"),
        (UNIGRAMS.replace("-2\tb", "-2"), "line 8"),
        (UNIGRAMS.replace("-2\tb", "-2\tb\t-1\t-1"), "line 8"),
        (UNIGRAMS.replace("-2\tb", "-2\ta"), "line 8: the word \"a\" occurs twice"),
        (UNIGRAMS.replace("\n\\end\\\n", ""), "the file ends where the next section"),
        (UNIGRAMS.replace("</s>", "c"), "lacks the word </s>"),
        (bigram("-0.1 a c"), "line 12: the word \"c\" is not among the 1-grams"),
        (bigram("-0.1 a"), "line 12"),
    ] {
        let refused = loaded(text.as_bytes()).unwrap_err();
        assert!(refused.contains(words), "{text:?}: {refused}");
    }
    assert!(loaded(b"\\data\\\nngram 1=1\n\xff\n").unwrap_err().contains("line 3: is not UTF-8"));
    let cut = &gzipped(UNIGRAMS.as_bytes())[..40];
    assert!(loaded(cut).unwrap_err().contains("cannot be read"));
    assert!(LanguageModel::load(Path::new("/")).unwrap_err().to_string().contains("not a file"));

    let probing = fs::read(golden("small.probing")).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = probing.clone();
        bytes[at] = byte;
        loaded(&bytes).unwrap_err()
    };
    assert!(with(49, b'6').contains("another version than 5"), "{}", with(49, b'6'));
    assert!(with(60, 9).contains("another kind of machine"));
    assert!(
        with(96, 3).contains("a trie with quantization, which are not supported"),
        "{}",
        with(96, 3)
    );
    assert!(with(96, 99).contains("an unknown kind"));
    assert!(with(88, 1).contains("at least 2 are needed"));
    assert!(with(115, 0x10).contains("more than it has bytes"), "{}", with(115, 0x10));
    for cut in [40, 100, 120, 400, 1_000] {
        let refused = loaded(&probing[..cut]).unwrap_err();
        assert!(refused.starts_with("model: "), "{refused}");
    }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_files_never_panic(
        name in prop::sample::select(vec!["small.arpa", "small.probing", "small.trie"]),
        changes in prop::collection::vec((0.0_f64..1.0, any::<u8>()), 1..6),
        early in any::<bool>(),
        keep in prop::option::of(0.0_f64..1.0),
    ) {
        let mut bytes = fs::read(golden(name)).unwrap();
        let len = if early { 200 } else { bytes.len() };
        for (at, byte) in changes {
            bytes[(at * len as f64) as usize] = byte;
        }
        if let Some(keep) = keep {
            bytes.truncate((keep * bytes.len() as f64) as usize);
        }
        if let Ok(lm) = loaded(&bytes) {
            for text in ["a ab abba b", "zebra", "straße é it's c"] {
                prop_assert!(lm.sentence(text, true, true).is_finite());
            }
        }
    }
}
