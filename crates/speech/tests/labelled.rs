//! Labels beside recordings, vocabularies, what is left out, batches.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use data2vec_core::{Dataset, Error, Targets};
use data2vec_speech::{
    Case, ConvNorm, HeldOut, LabelKind, LabelledSpeech, LabelledSpeechConfig, LeftOut,
    TranscribedDataset, WaveEncoderConfig, normalize_text,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;

mod support;
use support::{noise, wav};

/// A frame every 320 samples, the first one after 400.
fn features() -> WaveEncoderConfig {
    let mut conv_layers = vec![[8, 10, 5]];
    conv_layers.extend([[8, 3, 2]; 4]);
    conv_layers.extend([[8, 2, 2]; 2]);
    WaveEncoderConfig {
        normalize: true,
        conv_layers,
        conv_norm: ConvNorm::Layer,
        pos_layers: 1,
        pos_kernel: 3,
        pos_groups: 2,
        alibi: false,
        compat: Vec::new(),
    }
}

fn config(label: LabelKind) -> LabelledSpeechConfig {
    LabelledSpeechConfig {
        label,
        min_seconds: None,
        max_seconds: None,
        case: Case::Upper,
        vocabulary: None,
    }
}

fn put(folder: &Path, name: &str, frames: usize) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let samples = 400 + 320 * (frames - 1);
    fs::write(path, wav(16_000, 1, &noise(samples as u32, samples))).unwrap();
}

/// Recordings of 40 frames each, and files of text.
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
    LabelledSpeech::open(path, &config(label), &features(), None)
}

/// Paths and labels, in order.
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
fn transcripts_are_found_where_corpora_keep_them() {
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

    let prompts = corpus(
        &["en/activated.wav", "en/letters/at.wav", "en/beep.wav", "en/silence/1.wav", "en/x.wav"],
        &[(
            "core-sounds-en.txt",
            "\u{feff}; Core: sounds\n\nactivated: It's \"Activated\".\nletters/at: at [@]\n\
             beep: [a beep]\nsilence/1: (a second)\nx: <beep>\n",
        )],
    );
    let found = [("en/activated.wav", "IT'S ACTIVATED"), ("en/letters/at.wav", "AT")];
    assert_eq!(texts(prompts.path()), pairs(&found));

    let sphinx = corpus(
        &["001.wav", "002.wav"],
        &[("cards.transcription", "<s> ten of clubs  </s> (001)\n")],
    );
    assert_eq!(texts(sphinx.path()), pairs(&[("001.wav", "TEN OF CLUBS")]));

    let game = corpus(
        &["sound/reef/nl/r-1.wav", "sound/reef/nl/s-1.wav", "sound/share/border/nl/b.wav"],
        &[
            (
                "script/reef/dialogs_nl.lua",
                "\ndialogId(\"r-1\", \"font_small\", \"A \\\"ship\\\"?\")\ndialogStr(\"Een \\\"schip\\\"?\")\n",
            ),
            ("script/other/dialogs_nl.lua", "dialogId(\"r-1\")\ndialogStr(\"no\")\n"),
            ("script/share/border_dialogs_nl.lua", "dialogId(\"b\")\ndialogStr(\"Ja\\nja.\")\n"),
        ],
    );
    let found = [("sound/reef/nl/r-1.wav", "EEN SCHIP"), ("sound/share/border/nl/b.wav", "JA JA")];
    assert_eq!(texts(game.path()), pairs(&found));
}

#[test]
fn a_manifest_has_its_labels_beside_it() {
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
fn classes_come_from_tables_or_folders() {
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

/// The targets of a batch of all recordings.
fn batch(data: &TranscribedDataset) -> Targets {
    let mut rng = StdRng::seed_from_u64(1);
    let examples = (0..data.len()).map(|at| data.load(at, &mut rng).unwrap()).collect();
    data.collate(examples, &mut rng).unwrap().targets
}

#[test]
fn symbols_are_numbered_by_frequency_and_short_recordings_left_out() {
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
    // Labels of another set: what it lacks is unknown.
    let strange = data.dataset(&["<pad>", "<unk>", "B", "E"].map(String::from)).unwrap();
    assert_eq!((strange.target(0), strange.unknown_symbols()), (&[2, 3, 3][..], 4));
    assert!(
        strange.summary().contains("4 symbols, 4 of their texts unknown"),
        "{}",
        strange.summary()
    );

    let limits = |min_seconds, max_seconds| {
        let config = LabelledSpeechConfig { min_seconds, max_seconds, ..config(LabelKind::Text) };
        LabelledSpeech::open(path, &config, &features(), None)
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
fn sides_are_those_of_pretraining() {
    let names: Vec<String> = (0..20).map(|at| format!("{at}.wav")).collect();
    let folder = corpus(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    for at in 0..20 {
        fs::write(folder.path().join(format!("{at}.txt")), "a").unwrap();
    }
    let data = open(folder.path(), LabelKind::Text).unwrap();
    let (train, held_out) = data.split(HeldOut::Share(0.3), 7).unwrap();
    let (_, alone) = data.audio().split(HeldOut::Share(0.3), 7).unwrap();
    let paths = |n: usize, path: &dyn Fn(usize) -> PathBuf| (0..n).map(path).collect::<Vec<_>>();
    assert_eq!(
        paths(held_out.len(), &|at| held_out.audio().path(at)),
        paths(alone.len(), &|at| alone.path(at))
    );
    assert_eq!((train.len() + held_out.len(), train.label(0)), (20, "A"));
}

#[test]
fn vocabularies_of_others_are_read() {
    let folder = corpus(&["a.wav"], &[("a.txt", "ab c")]);
    let with = |text: &str| {
        let path = folder.path().join("vocabulary");
        fs::write(&path, text).unwrap();
        let config = LabelledSpeechConfig { vocabulary: Some(path), ..config(LabelKind::Text) };
        LabelledSpeech::open(folder.path(), &config, &features(), None).unwrap().labels()
    };
    let hugging_face = r#"{"|": 0, "A": 1, "[UNK]": 2, "[PAD]": 3}"#;
    assert_eq!(with(hugging_face).unwrap(), ["<pad>", "|", "A", "<unk>"]);
    let fairseq = "| 94802\nE 51860\nT 38431\n";
    assert_eq!(with(fairseq).unwrap(), ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T"]);
    for (text, words) in [
        (
            r#"{"A": 0, "B": 2, "<pad>": 1, "C": 4}"#,
            "\"C\" has the number 4, where 3 is the next one",
        ),
        (r#"{"A": 0, "B": 1}"#, "has no <pad>"),
        (r#"{"A": "x"}"#, "no map of symbols to numbers"),
        ("A 1 2\n", "line 1: must be `SYMBOL COUNT`"),
        ("A 1\nA 2\n", "stands there twice"),
    ] {
        let refused = with(text).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn texts_are_normalised_in_any_script() {
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
fn broken_transcripts_are_named() {
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
    fn normalising_twice_changes_nothing(text in "\\PC{0,40}") {
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
