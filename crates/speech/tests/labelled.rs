//! Labelled recordings: finding labels, vocabularies, splits and batches.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::data::split::Amount;
use data2vec_core::modality::finetune::Splittable;
use data2vec_core::{Dataset, Error, Targets};
use data2vec_speech::{
    Case, LabelKind, LabelledSpeech, LabelledSpeechConfig, LeftOut, TranscribedDataset,
    normalize_text,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;

mod support;
use support::{noise, tiny_features, wav};

fn config(label: LabelKind) -> LabelledSpeechConfig {
    LabelledSpeechConfig { label, ..LabelledSpeechConfig::default() }
}

fn put(folder: &Path, name: &str, frames: usize) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let samples = 400 + 320 * (frames - 1);
    fs::write(path, wav(16_000, 1, &noise(samples as u32, samples))).unwrap();
}

/// Writes recordings of 40 frames each, and text files.
fn corpus(recordings: &[&str], texts: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in recordings {
        put(folder.path(), name, 40);
    }
    for (name, text) in texts {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn open(path: &Path, label: LabelKind) -> data2vec_core::Result<LabelledSpeech> {
    LabelledSpeech::open(path, &config(label), &tiny_features(), None)
}

/// Returns paths and labels in order.
fn labels(data: &LabelledSpeech) -> Vec<(String, String)> {
    let path = |at| data.audio().relative_path(at).display().to_string().replace('\\', "/");
    (0..data.len()).map(|at| (path(at), data.label(at).to_owned())).collect()
}

fn texts(path: &Path) -> Vec<(String, String)> {
    labels(&open(path, LabelKind::Text).unwrap())
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect()
}

#[test]
fn finds_transcripts_of_common_layouts() {
    let libri = corpus(
        &["19/198/19-198-0000.wav", "19/198/19-198-0001.wav", "19/5/19-5-0000.wav"],
        &[
            ("19/198/19-198.trans.txt", "19-198-0000 SO IT BEGINS\n19-198-0001 AND ENDS\n"),
            ("SPEAKERS.TXT", "19 | M"),
        ],
    );
    let found =
        [("19/198/19-198-0000.wav", "SO IT BEGINS"), ("19/198/19-198-0001.wav", "AND ENDS")];
    assert_eq!(texts(libri.path()), pairs(&found));

    let single =
        corpus(&["a.wav", "b.wav", "c.wav"], &[("a.txt", "One,\n two!"), ("b.lab", "three")]);
    assert_eq!(texts(single.path()), pairs(&[("a.wav", "ONE TWO"), ("b.wav", "THREE")]));

    let table = corpus(
        &["x/a.wav", "x/b.wav"],
        &[("x/any.tsv", "path\ttext\na.wav\tone\n./b.wav\ttwo\n"), ("x/a.txt", "not this")],
    );
    let found = [("x/a.wav", "ONE"), ("x/b.wav", "TWO")];
    assert_eq!(texts(table.path()), pairs(&found));
    let found = [("a.wav", "ONE"), ("b.wav", "TWO")];
    assert_eq!(texts(&table.path().join("x/any.tsv")), pairs(&found));
}

#[test]
fn reads_labels_beside_manifest() {
    let folder = corpus(&["a.wav", "b.wav"], &[]);
    let samples = 400 + 320 * 39;
    let root = folder.path().display();
    let lists = tempfile::tempdir().unwrap();
    let path = lists.path().join("train.tsv");
    fs::write(&path, format!("{root}\na.wav\t{samples}\nb.wav\t{samples}\n")).unwrap();
    let refused = open(&path, LabelKind::Text).unwrap_err().to_string();
    assert!(refused.contains("no labels for its 2 recordings: looked for NAME.ltr"), "{refused}");

    fs::write(path.with_extension("ltr"), "H E L L O | Y O U |\nB Y E |\n").unwrap();
    assert_eq!(texts(&path), pairs(&[("a.wav", "HELLO YOU"), ("b.wav", "BYE")]));
    fs::write(path.with_extension("wrd"), "HELLO ME\nBYE\n").unwrap();
    assert_eq!(texts(&path), pairs(&[("a.wav", "HELLO ME"), ("b.wav", "BYE")]));
    fs::write(path.with_extension("wrd"), "HELLO\n").unwrap();
    let refused = open(&path, LabelKind::Text).unwrap_err().to_string();
    assert!(refused.contains("train.wrd: has 1 lines for the 2 recordings of"), "{refused}");
}

#[test]
fn reads_classes_from_tables_or_directories() {
    let folder = corpus(&["yes/a.wav", "yes/b.wav", "no/a.wav"], &[]);
    let data = open(folder.path(), LabelKind::Class).unwrap();
    let found = [("no/a.wav", "no"), ("yes/a.wav", "yes"), ("yes/b.wav", "yes")];
    assert_eq!(labels(&data), pairs(&found));
    assert_eq!(data.labels().unwrap(), ["no", "yes"]);

    let classes = data.dataset(&data.labels().unwrap()).unwrap();
    assert_eq!((0..3).map(|at| classes.target(at)).collect::<Vec<_>>(), [[0], [1], [1]]);
    let batch = batch(&classes);
    assert!(
        matches!(&batch, Targets::Classes(ids) if Vec::<i64>::try_from(ids).unwrap() == [0, 1, 1])
    );
    assert!(classes.summary().ends_with("0.0 minutes, 2 classes"), "{}", classes.summary());
    let fewer = data.dataset(&["no".into(), "maybe".into()]).unwrap();
    assert_eq!((fewer.len(), fewer.left_out().other_class), (1, 2));

    fs::write(folder.path().join("moods.tsv"), "path\tlabel\nyes/a.wav\tglad\nno/a.wav\tsad\n")
        .unwrap();
    let data = open(folder.path(), LabelKind::Class).unwrap();
    assert_eq!(labels(&data), pairs(&[("no/a.wav", "sad"), ("yes/a.wav", "glad")]));
    let data = open(&folder.path().join("moods.tsv"), LabelKind::Class).unwrap();
    assert_eq!(data.labels().unwrap(), ["glad", "sad"]);
}

/// Returns the targets of a batch of all recordings.
fn batch(data: &TranscribedDataset) -> Targets {
    let mut rng = StdRng::seed_from_u64(1);
    let examples = (0..data.len()).map(|at| data.load(at, &mut rng).unwrap()).collect();
    data.collate(examples, &mut rng).unwrap().targets
}

#[test]
fn orders_symbols_by_frequency_and_leaves_out_short_recordings() {
    let folder =
        corpus(&["a.wav", "e.wav"], &[("a.txt", "bee"), ("b.txt", "abba"), ("c.txt", "ox")]);
    let path = folder.path();
    // `bee` ends in a separator and has a blank between its e: 5 frames. `abba`: 6.
    put(path, "b.wav", 5);
    put(path, "c.wav", 3);
    put(path, "d.wav", 40);
    fs::write(path.join("d.txt"), "— …").unwrap();
    fs::write(path.join("broken.wav"), "not at all").unwrap();
    let data = open(path, LabelKind::Text).unwrap();
    let symbols = data.labels().unwrap();
    assert_eq!(symbols[..5], ["<pad>", "<s>", "</s>", "<unk>", "|"]);
    assert_eq!(symbols[5..], ["B", "A", "E", "O", "X"], "B 3, A 2, E 2, O 1, X 1");

    let encoded = data.dataset(&symbols).unwrap();
    let left_out =
        LeftOut { unlabelled: 2, too_short_for_text: 1, unreadable: 1, ..LeftOut::default() };
    assert_eq!(encoded.left_out(), left_out);
    assert_eq!(encoded.text(0), "BEE");
    assert_eq!((encoded.target(0), encoded.target(1)), (&[5, 7, 7, 4][..], &[8, 9, 4][..]));
    assert_eq!(encoded.size(0), 400 + 320 * 39);
    assert_eq!(
        encoded.summary(),
        "2 recordings, 0.0 minutes, 10 symbols; left out: 2 without a label, 1 too short for their \
         text, 1 unreadable"
    );
    match batch(&encoded) {
        Targets::Sequences { ids, lengths } => {
            assert_eq!(Vec::<i64>::try_from(ids).unwrap(), [5, 7, 7, 4, 8, 9, 4]);
            assert_eq!(lengths, [4, 3]);
        }
        other => panic!("{other:?}"),
    }
    // With the labels of another data set, missing symbols are unknown.
    let other = data.dataset(&["<pad>", "<unk>", "B", "E"].map(String::from)).unwrap();
    assert_eq!((other.target(0), other.unknown_symbols()), (&[2, 3, 3][..], 4));
    assert!(other.summary().contains("4 symbols, 4 of their texts unknown"), "{}", other.summary());

    let limits = |min_seconds, max_seconds| {
        let config = LabelledSpeechConfig { min_seconds, max_seconds, ..config(LabelKind::Text) };
        LabelledSpeech::open(path, &config, &tiny_features(), None)
    };
    let short = limits(None, Some(0.3)).unwrap();
    let short = short.dataset(&symbols).unwrap().left_out();
    assert_eq!((short.too_long, short.unlabelled), (1, 2));
    let long = limits(Some(0.3), None).unwrap();
    assert_eq!((long.len(), long.dataset(&symbols).unwrap().left_out().too_short), (1, 2));
    let refused = limits(Some(0.3), Some(0.5)).unwrap_err().to_string();
    assert!(
        refused.contains("all 1 labelled recordings are longer than max_seconds = 0.5"),
        "{refused}"
    );
}

#[test]
fn split_matches_unlabelled_split() {
    let names: Vec<String> = (0..20).map(|at| format!("{at}.wav")).collect();
    let folder = corpus(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    for at in 0..20 {
        fs::write(folder.path().join(format!("{at}.txt")), "a").unwrap();
    }
    let data = open(folder.path(), LabelKind::Text).unwrap();
    let (train, held_out) = data.split(0.3, 7).unwrap();
    let (_, alone) = data.audio().split(0.3, 7).unwrap();
    let paths = |n: usize, path: &dyn Fn(usize) -> PathBuf| (0..n).map(path).collect::<Vec<_>>();
    assert_eq!(
        paths(held_out.len(), &|at| held_out.audio().path(at)),
        paths(alone.len(), &|at| alone.path(at))
    );
    assert_eq!((train.len() + held_out.len(), train.label(0)), (20, "A"));
}

#[test]
fn subsample_is_nested_and_per_class() {
    let class = |at: usize| if at < 15 { "yes" } else { "no" };
    let names: Vec<String> = (0..20).map(|at| format!("{}/{at}.wav", class(at))).collect();
    let folder = corpus(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    let data = open(folder.path(), LabelKind::Class).unwrap();
    let subset = |amount| labels(&data.subsample(amount, 3).unwrap());
    let (few, more) = (subset(Amount::Share(0.2)), subset(Amount::Share(0.5)));
    assert_eq!((few.len(), more.len()), (4, 10));
    assert!(few.iter().all(|one| more.contains(one)));
    assert_eq!(subset(Amount::Share(0.001)).len(), 1);
    assert_eq!(subset(Amount::Share(1.0)), labels(&data));

    let each = subset(Amount::Each(3));
    let count = |class: &str| each.iter().filter(|(_, label)| label == class).count();
    assert_eq!((count("yes"), count("no")), (3, 3));
    for amount in [Amount::Share(0.0), Amount::Share(1.5), Amount::Each(0)] {
        assert!(matches!(data.subsample(amount, 3), Err(Error::Config { .. })), "{amount:?}");
    }
}

#[test]
fn reads_vocabularies_of_hugging_face_and_fairseq() {
    let folder = corpus(&["a.wav"], &[("a.txt", "ab c")]);
    let with = |text: &str| {
        let path = folder.path().join("vocabulary");
        fs::write(&path, text).unwrap();
        let config = LabelledSpeechConfig { vocabulary: Some(path), ..config(LabelKind::Text) };
        LabelledSpeech::open(folder.path(), &config, &tiny_features(), None).unwrap().labels()
    };
    let hugging_face = r#"{"|": 0, "A": 1, "[UNK]": 2, "[PAD]": 3}"#;
    assert_eq!(with(hugging_face).unwrap(), ["<pad>", "|", "A", "<unk>"]);
    let fairseq = "| 94802\nE 51860\nT 38431\n";
    assert_eq!(with(fairseq).unwrap(), ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T"]);
    for (text, words) in [
        (r#"{"A": 0, "B": 2, "<pad>": 1, "C": 4}"#, "\"C\" has id 4, but the next id is 3"),
        (r#"{"A": 0, "B": 1}"#, "has no <pad>"),
        (r#"{"A": "x"}"#, "not a map from symbols to ids"),
        ("A 1 2\n", "line 1: must be `SYMBOL COUNT`"),
        ("A 1\nA 2\n", "occurs twice"),
    ] {
        let refused = with(text).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn normalizes_text_of_any_script() {
    for (text, case, expected) in [
        ("Don't ‘stop’ -- P.M.!", Case::Lower, "don't stop p m"),
        ("Call-forward 1,000 times", Case::Keep, "Call forward 1 000 times"),
        ("e\u{301}te\u{301}", Case::Upper, "ÉTÉ"),
        ("नमस्ते दुनिया।", Case::Keep, "नमस्ते दुनिया"),
        ("你好，世界", Case::Upper, "你好 世界"),
        (" \t\n", Case::Upper, ""),
    ] {
        assert_eq!(normalize_text(text, case), expected);
    }
}

#[test]
fn rejects_invalid_transcript_files() {
    let folder = corpus(&["a.wav"], &[("t.tsv", "path\ttext\na.wav one\n")]);
    let refused = open(folder.path(), LabelKind::Text).unwrap_err();
    assert!(matches!(refused, Error::File { .. }));
    assert!(refused.to_string().contains("t.tsv: line 2: must be `path<TAB>text`"), "{refused}");
    let folder = corpus(&["a.wav"], &[]);
    fs::write(folder.path().join("a.txt"), b"\xff\xfe").unwrap();
    let refused = open(folder.path(), LabelKind::Text).unwrap_err().to_string();
    assert!(refused.contains("a.txt: is not UTF-8 text"), "{refused}");
}

proptest! {
    #[test]
    fn normalization_is_idempotent(text in "\\PC{0,40}") {
        for case in [Case::Upper, Case::Lower, Case::Keep] {
            let once = normalize_text(&text, case);
            prop_assert_eq!(&normalize_text(&once, case), &once);
            prop_assert!(!once.contains("  ") && once.trim() == once);
        }
    }
}

#[test]
fn sets_of_the_catalog_have_transcripts() {
    let set = |name: &str| {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/sets")).join(name);
        let data = open(&folder, LabelKind::Text).unwrap();
        let symbols = data.labels().unwrap();
        (data.dataset(&symbols).unwrap(), symbols)
    };
    let (prompts, symbols) = set("asterisk-core-sounds-en");
    let text = |name: &str| {
        let all = 0..prompts.len();
        let found = all.into_iter().find(|&at| prompts.audio().relative_path(at).ends_with(name));
        found.map(|at| prompts.text(at))
    };
    assert_eq!(text("digits/oclock.wav"), Some("O'CLOCK"));
    assert_eq!(text("letters/at.wav"), Some("AT"));
    assert_eq!(text("beep.wav"), None);
    assert_eq!(symbols[..7], ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T"]);
    assert_eq!(
        prompts.summary(),
        "551 recordings, 24.3 minutes, 42 symbols; left out: 17 without a label"
    );
    let (sentences, _) = set("pocketsphinx-testdata");
    assert_eq!(sentences.summary(), "10 recordings, 0.6 minutes, 28 symbols");
}
