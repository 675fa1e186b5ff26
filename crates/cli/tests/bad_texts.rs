//! Broken and unusual texts and tokenizers: the program reads them, or reports the file and the
//! reason.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ndarray::Array2;
use ndarray_npy::read_npy;
use support::*;

/// Returns a directory with texts and a short run on them.
fn run() -> &'static tempfile::TempDir {
    static RUN: OnceLock<tempfile::TempDir> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = temp_dir();
        succeed(&mut pretrain_texts(&texts(dir.path()), &dir.path().join("run"), &[]));
        dir
    })
}

fn encoder() -> PathBuf {
    run().path().join("run/encoder")
}

/// Trains a tokenizer on the texts at `data`.
fn tokenizer(data: &Path, entries: usize, out: &Path) {
    let mut command = program(&["tokenizer", "train", "--entries", &entries.to_string()]);
    succeed(command.arg("--data").arg(data).arg("--out").arg(out));
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Returns files that are unreadable, at least in part: name, content, a part of the expected
/// reason.
fn broken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let complete = gzip("the state of the union\n".repeat(5000).as_bytes());
    let mut deep = b"[".repeat(100_000);
    deep.push(b'\n');
    vec![
        ("marked.txt", [&[0xff, 0xfe][..], &utf16("the law\n")].concat(), "is UTF-16"),
        ("unmarked.txt", utf16("the law\n"), "is UTF-16"),
        (
            "cut.txt.gz",
            complete[..complete.len() / 2].to_vec(),
            "incomplete deflate stream; the rest",
        ),
        ("plain.txt.gz", b"the people".to_vec(), "invalid gzip header"),
        ("bomb.txt.gz", gzip(&vec![b'\n'; 32 << 20]), "more than 200 times its size"),
        (
            "missing.jsonl",
            b"{\"body\": \"x\"}\n".to_vec(),
            "line 1: no object with a string \"text\"",
        ),
        ("number.jsonl", b"\n{\"text\": 3}\n".to_vec(), "line 2: no object with a string \"text\""),
        ("broken.jsonl", b"{\"text\": \"a\"}\n{text}\n".to_vec(), "line 2: byte 2: key must be"),
        ("deep.jsonl", deep, "line 1: byte 128: recursion limit exceeded"),
    ]
}

/// A broken file is an error of `extract`. In training it is skipped, reported once and counted.
#[test]
fn skips_and_reports_broken_texts() {
    let dir = temp_dir();
    let data = texts(dir.path());
    for (name, bytes, reason) in broken() {
        let path = data.join(name);
        fs::write(&path, bytes).unwrap();
        let out = dir.path().join("none.npy");
        let reason = reason.trim_end_matches("; the rest");
        let printed = fail(&mut extract(&encoder(), &[&path], &out), &[reason]);
        assert_eq!(printed.matches(path.to_str().unwrap()).count(), 1, "{printed}");
        assert!(!out.exists(), "{name}");
    }
    let pipe = data.join("pipe.txt"); // never written to
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let count = broken().len() + 1;
    let train = |out: &str, allowed: usize| {
        let allowed = format!("train.max_bad_examples={allowed}");
        pretrain_texts(&data, &dir.path().join(out), &["train.steps=3", &allowed])
    };
    let printed = succeed(&mut train("all", count));
    for (name, _, reason) in
        broken().iter().chain([&("pipe.txt", Vec::new(), "is not a regular file")])
    {
        let path = format!("{}: ", data.join(name).display());
        let reports: Vec<&str> = printed.lines().filter(|line| line.contains(&path)).collect();
        assert_eq!(reports.len(), 1, "{name}: {printed}");
        assert!(
            reports[0].starts_with("warning: skipped ") && reports[0].contains(reason),
            "{printed}"
        );
    }
    let last = metrics(&dir.path().join("all")).pop().unwrap();
    assert!(last["bad_examples"] == count || last["kind"] != "train", "{last}");
    let words = [&format!("{count} unusable"), "train.max_bad_examples"];
    fail(&mut train("few", count - 1), &words.map(|word| word as &str));
}

/// The recipe chooses between replacing and counting, and refusing with the position.
#[test]
fn replaces_or_refuses_invalid_utf8() {
    let dir = temp_dir();
    let data = texts(dir.path());
    let path = data.join("latin.txt");
    fs::write(&path, b"the law\ncaf\xe9 d\xe9j\xe0 vu\n").unwrap();
    let out = |name: &str| dir.path().join(name);
    let printed = succeed(&mut pretrain_texts(&data, &out("replaced"), &["train.steps=3"]));
    assert!(printed.contains("not UTF-8: 3 places"), "{printed}");
    let refuse = ["data.invalid_utf8=refuse"];
    let words = ["latin.txt: line 2, byte 4: not UTF-8", "data.invalid_utf8 = \"replace\""];
    fail(&mut pretrain_texts(&data, &out("refused"), &refuse), &words);
    let mut command = extract(&encoder(), &[&path], &out("none.npy"));
    let printed = fail(&mut command, &["latin.txt: line 2, byte 4: not UTF-8"]);
    assert!(!printed.contains("data."), "extract has no recipe: {printed}");
    fs::write(&path, utf16("the law")).unwrap();
    let words = ["latin.txt: is UTF-16", "convert it to UTF-8"];
    fail(&mut pretrain_texts(&data, &out("refused"), &refuse), &words);
}

#[test]
fn rejects_empty_data() {
    let dir = temp_dir();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    let gone = dir.path().join("gone");
    fail(&mut pretrain_texts(&gone, &out, &[]), &[gone.to_str().unwrap(), "No such file"]);
    fs::create_dir_all(data.join("directory.txt")).unwrap();
    let at = data.to_str().unwrap();
    fail(&mut pretrain_texts(&data, &out, &[]), &[at, "looked for txt"]);
    let same_entries =
        ["data.tokenizer={file=\"TOKENIZER\"}".replace("TOKENIZER", encoder().to_str().unwrap())];
    for (name, bytes, reason) in [
        ("x.txt", Vec::new(), "all files are empty"),
        ("x.txt", b"\n \n\n".to_vec(), "all files are empty"),
        ("x.txt.gz", Vec::new(), "x.txt.gz: "),
        ("x.jsonl", b"{}\n".to_vec(), "x.jsonl: line 1: no object"),
        ("x.txt", [&[0xfe, 0xff][..], &utf16("law")].concat(), "x.txt: is UTF-16"),
    ] {
        let path = data.join(name);
        fs::write(&path, bytes).unwrap();
        let words = [at, "no usable text", reason];
        fail(&mut pretrain_texts(&data, &out, &[]), &words);
        fail(&mut pretrain_texts(&data, &out, &[&same_entries[0]]), &words);
        let mut command = program(&["tokenizer", "train", "--entries", "300", "--data", at]);
        fail(command.arg("--out").arg(dir.path().join("tokenizer")), &words);
        fail(&mut extract(&encoder(), &[&path], &dir.path().join("none.npy")), &[name]);
        fs::remove_file(path).unwrap();
    }
    fs::write(data.join("x.txt"), "the law").unwrap();
    fail(
        &mut pretrain_texts(&data, &out, &[]),
        &[at, "the texts give a vocabulary of 261 entries, not 300"],
    );
    let dir_path = data.join("directory.txt");
    fail(&mut extract(&encoder(), &[&dir_path], &out), &["directory.txt: Is a directory"]);
}

/// Includes a word as long as its file, and a line of megabytes.
#[test]
fn accepts_lines_of_any_length() {
    let dir = temp_dir();
    for (name, text) in [
        ("zeros", "\0".repeat(1 << 20)),
        ("letters", "ab".repeat(1 << 20)),
        ("spaces", " ".repeat(1 << 21) + "x"),
        ("words", "the state of the union ".repeat(1 << 17)),
    ] {
        let data = texts(&dir.path().join(name));
        fs::write(data.join("long.txt"), &text).unwrap();
        succeed(&mut pretrain_texts(&data, &dir.path().join(name).join("run"), &["train.steps=3"]));
        let (path, out) = (data.join("short.txt"), dir.path().join("features.npy"));
        fs::write(&path, &text[..10_000]).unwrap();
        if name != "spaces" {
            succeed(&mut extract(&encoder(), &[&path], &out));
            let features: Array2<f32> = read_npy(&out).unwrap();
            assert!(features.nrows() > 100 && features.iter().all(|x| x.is_finite()), "{name}");
        }
    }
}

/// Another tokenizer for a resumed run, or in the directory of an exported encoder.
#[test]
fn rejects_mismatched_tokenizers() {
    let dir = temp_dir();
    let dir = dir.path();
    let (data, out, mine) = (texts(dir), dir.join("run"), dir.join("tokenizer"));
    let other = dir.join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a.txt"), "quite other words\n".repeat(500) + &"zyx\n".repeat(900))
        .unwrap();
    fs::copy(data.join("00.txt"), other.join("b.txt")).unwrap();
    tokenizer(&data, 300, &mine);
    let set = format!("data.tokenizer={{file={:?}}}", mine.to_str().unwrap());
    let train = || pretrain_texts(&data, &out, &[&set]);
    succeed(&mut train());
    let exported = fs::read(out.join("encoder/tokenizer.json")).unwrap();
    succeed(&mut train());

    tokenizer(&data, 290, &mine);
    let words = ["features.vocabulary: is 300, the tokenizer has 290"];
    fail(&mut train(), &words);
    // The same number of entries, but others.
    tokenizer(&other, 300, &mine);
    let words = [out.to_str().unwrap(), "another tokenizer", "--out"];
    fail(&mut train(), &words);
    assert!(fs::read(out.join("encoder/tokenizer.json")).unwrap() == exported);
    // A tokenizer trained on the data changes with the data.
    let grown = dir.join("grown");
    succeed(&mut pretrain_texts(&data, &grown, &[]));
    fs::copy(other.join("a.txt"), data.join("new.txt")).unwrap();
    fail(&mut pretrain_texts(&data, &grown, &[]), &["another tokenizer", "needs the same data"]);

    let (copy, text) = (dir.join("encoder"), data.join("00.txt"));
    copy_dir(&out.join("encoder"), &copy);
    succeed(&mut extract(&copy, &[&text], &dir.join("features.npy")));
    let broken = |bytes: &[u8], words: &[&str]| {
        fs::write(copy.join("tokenizer.json"), bytes).unwrap();
        fail(&mut extract(&copy, &[&text], &dir.join("none.npy")), words);
    };
    broken(&fs::read(mine.join("tokenizer.json")).unwrap(), &["encoder: its tokenizer differs"]);
    fs::remove_file(copy.join("tokenizer.sha256")).unwrap(); // as for an imported encoder
    tokenizer(&other, 290, &copy);
    let words = ["features.vocabulary: is 300, the tokenizer has 290"];
    fail(&mut extract(&copy, &[&text], &dir.join("none.npy")), &words);
    broken(b"", &["tokenizer.json: is not a tokenizer.json"]);
    broken(b"{}", &["tokenizer.json: is not a tokenizer.json"]);
    let vocabulary =
        |vocab: &str| format!(r#"{{"model": {{"type": "BPE", "vocab": {vocab}, "merges": []}}}}"#);
    broken(vocabulary("{}").as_bytes(), &["tokenizer.json: its vocabulary has no <s>"]);
    let special = r#"{"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 299}"#;
    broken(
        vocabulary(special).as_bytes(),
        &["tokenizer.json: its vocabulary has no token for '!'"],
    );
    fs::remove_file(copy.join("tokenizer.json")).unwrap();
    let words = ["encoder: holds neither tokenizer.json"];
    fail(&mut extract(&copy, &[&text], &dir.join("none.npy")), &words);
}

#[test]
fn rejects_pipes_and_oversized_tokenizers() {
    let dir = temp_dir();
    let data = texts(dir.path());
    let pipe = dir.path().join("pipe.txt");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let run = dir.path().join("run");
    fail(&mut pretrain_texts(&pipe, &run, &[]), &["pipe.txt", "neither a directory"]);
    let sets = ["data.tokenizer={train=99999999999}"];
    fail(&mut pretrain_texts(&data, &run, &sets), &["261 to 1048576 entries, not 99999999999"]);
}
