//! A TOML file that combines several sources of data.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::*;

/// Writes a file. Returns its path.
fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Returns the number of examples of a run, including held-out ones.
fn examples(run: &Path) -> u64 {
    let record = fs::read_to_string(run.join("run.json")).unwrap();
    serde_json::from_str::<Value>(&record).unwrap()["examples"].as_u64().unwrap()
}

#[test]
fn mixes_sources_by_weight() {
    let dir = temp_dir();
    let dir = dir.path();
    corpus(dir);
    let more = dir.join("more");
    fs::create_dir_all(&more).unwrap();
    for i in 0..5 {
        fs::write(more.join(format!("other-{i}.wav")), wav(&sound(1.5, 40 + i))).unwrap();
    }
    let all = ["train.held_out=0"];
    let run = |name: &str| dir.join(name);

    // A single source equals its data.
    let one = file(dir, "one.toml", "[[source]]\ndata = \"data\"\n");
    succeed(&mut pretrain(&dir.join("data"), &run("directory"), &all));
    succeed(&mut pretrain(&one, &run("one"), &all));
    assert_same(&run("directory"), &run("one"));

    // Without weights, each example appears once; with weights, a small source is repeated.
    let both = "[[source]]\ndata = \"data\"\n[[source]]\ndata = \"more\"\n";
    succeed(&mut pretrain(&file(dir, "both.toml", both), &run("both"), &all));
    assert_eq!(examples(&run("both")), 25);
    let [a, b] = ["data", "more"]
        .map(|name| format!("[[source]]\ndata = {:?}\nweight = 0.5\n", dir.join(name)));
    let half = file(dir, "half.toml", &(a + &b));
    succeed(&mut pretrain(&half, &run("half"), &all));
    assert_eq!(examples(&run("half")), 40);

    // The same command resumes; held-out examples come from both sources.
    let held = ["train.held_out=0.4"];
    succeed(&mut pretrain(&half, &run("uninterrupted"), &held));
    let mut child = pretrain(&half, &run("stopped"), &held).spawn().unwrap();
    wait_until(|| !checkpoints(&run("stopped")).is_empty() || child.try_wait().unwrap().is_some());
    kill("TERM", child.id());
    finish(child);
    succeed(&mut pretrain(&half, &run("stopped"), &held));
    assert_same(&run("uninterrupted"), &run("stopped"));
}

#[test]
fn sources_share_a_tokenizer() {
    let dir = temp_dir();
    let dir = dir.path();
    texts(dir);
    let other = dir.join("other");
    fs::create_dir_all(&other).unwrap();
    let words: String = (0..900).map(|i| format!("quite {} other words{i}\n", i * 7)).collect();
    fs::write(other.join("a.txt"), words).unwrap();
    let both = "[[source]]\ndata = \"texts\"\n[[source]]\ndata = \"other\"\n";
    let both = file(dir, "both.toml", both);
    fail(&mut pretrain_texts(&both, &dir.join("run"), &[]), &["both.toml", "data.tokenizer"]);

    // The tokenizer of an earlier run serves all sources.
    succeed(&mut pretrain_texts(&dir.join("texts"), &dir.join("first"), &[]));
    let tokenizer = format!("data.tokenizer={{file={:?}}}", dir.join("first/encoder"));
    succeed(&mut pretrain_texts(&both, &dir.join("run"), &[&tokenizer]));
}

#[test]
fn rejects_invalid_source_lists() {
    let dir = temp_dir();
    let dir = dir.path();
    corpus(dir);
    let source = "[[source]]\ndata = \"data\"\n";
    for (name, text, words) in [
        ("empty", "source = []\n".to_owned(), ["empty.toml", "no [[source]]"]),
        ("none", String::new(), ["none.toml", "source"]),
        ("key", format!("{source}wieght = 1.0\n"), ["key.toml", "did you mean `weight`?"]),
        ("some", format!("{source}weight = 1.0\n{source}"), ["some.toml", "1 of 2 have one"]),
        ("below", format!("{source}weight = -1.0\n"), ["below.toml", "must be above 0"]),
        ("toml", "[[source]\n".to_owned(), ["toml.toml", "line 1"]),
        ("gone", "[[source]]\ndata = \"gone\"\n".to_owned(), ["gone.toml", "gone"]),
    ] {
        let path = file(dir, &format!("{name}.toml"), &text);
        fail(&mut pretrain(&path, &dir.join(name), &[]), &words);
    }
}
