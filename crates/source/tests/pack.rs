//! Packed directories read like the original directory.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Mutex;

use data2vec_source::{Files, Packer, Progress, key_of, watch_indexing};
use proptest::prelude::*;

fn pack(folder: &Path, max_bytes: u64, files: &[(&str, &[u8])]) {
    let mut packer = Packer::create(folder, "all", max_bytes).unwrap();
    for (path, content) in files {
        let (_, field) = path.rsplit_once('.').unwrap();
        packer.add(&key_of(path, field).unwrap(), &[(field, content), ("txt", b"label")]).unwrap();
    }
    packer.finish().unwrap();
}

fn open(folder: &Path, wanted: &[&str]) -> data2vec_source::Result<Files> {
    Files::open(folder, Some(&folder.with_extension("cache")), wanted)
}

#[test]
fn files_keep_paths_order_and_content() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("shards");
    let long = format!("{}/{}.wav", "d".repeat(120), "n".repeat(150));
    let files: Vec<(&str, &[u8])> = vec![
        ("b/1.wav", b"one"),
        ("a.2/x.y.wav", b""),
        ("b-/100%.flac", b"many"),
        (&long, b"deep"),
    ];
    pack(&folder, 4096, &files);
    let found = open(&folder, &["flac", "wav"]).unwrap();
    let paths: Vec<String> = (0..found.len()).map(|at| found.path(at)).collect();
    assert_eq!(paths, ["a.2/x.y.wav", "b/1.wav", "b-/100%.flac", &long]);
    for at in 0..found.len() {
        let content = files.iter().find(|(path, _)| *path == found.path(at)).unwrap().1;
        assert_eq!(found.read(at).unwrap(), content);
        assert_eq!(found.stamp(at).unwrap().0, content.len() as u64);
        assert_eq!(found.field(at, &["text", "txt"]).unwrap().as_deref(), Some("label"));
        assert_eq!(found.field(at, &["cls"]).unwrap(), None);
    }
    // Each example is 2 headers and 1 or 2 blocks of 512 bytes: too many for one shard of 4096
    // bytes.
    assert!(folder.join("all-000001.tar").exists());
}

#[test]
fn watcher_gets_progress_of_each_built_index() {
    static SEEN: Mutex<Vec<Progress>> = Mutex::new(Vec::new());
    watch_indexing(|progress| SEEN.lock().unwrap().push(progress));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("shards");
    pack(&folder, 1024, &[("a.wav", b"1"), ("b.wav", b"2"), ("c.wav", b"3")]);
    SEEN.lock().unwrap().clear();
    open(&folder, &["wav"]).unwrap();
    let shards = std::fs::read_dir(&folder).unwrap().count();
    assert!(shards > 1);
    let end = Progress { shards, total: shards, examples: 3 };
    assert_eq!(SEEN.lock().unwrap().last(), Some(&end));
    SEEN.lock().unwrap().clear();
    open(&folder, &["wav"]).unwrap();
    assert!(SEEN.lock().unwrap().is_empty(), "the index exists");
}

#[test]
fn packing_is_deterministic() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    let files: Vec<(&str, &[u8])> = vec![("a.wav", b"1"), ("b.wav", b"2")];
    for folder in [&one, &two] {
        pack(folder, 1 << 20, &files);
    }
    let read = |folder: &Path| std::fs::read(folder.join("all-000000.tar")).unwrap();
    assert_eq!(read(&one), read(&two));
}

#[test]
fn create_keeps_existing_files_and_replaces_unfinished_ones() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("shards");
    let mut unfinished = Packer::create(&folder, "all", 1 << 20).unwrap();
    unfinished.add("a", &[("wav", b"old")]).unwrap();
    drop(unfinished);
    assert!(!folder.exists());
    pack(&folder, 1 << 20, &[("b.wav", b"new")]);
    let found = open(&folder, &["wav"]).unwrap();
    assert_eq!((found.len(), found.path(0)), (1, "b.wav".into()));
    let error = Packer::create(&folder, "all", 1 << 20).unwrap_err().to_string();
    assert!(error.contains("is not empty") && error.contains("shards"), "{error}");
}

#[test]
fn duplicate_keys_across_shards_get_the_shard_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("shards");
    let add = |name: &str, keys: &[&str]| {
        let mut packer = Packer::create(&folder.join(name), name, 1 << 20).unwrap();
        keys.iter().for_each(|key| packer.add(key, &[("wav", b"x")]).unwrap());
        packer.finish().unwrap();
    };
    add("p", &["1", "2"]);
    add("q", &["1", "3"]);
    let found = open(&folder, &["wav"]).unwrap();
    let paths: Vec<String> = (0..found.len()).map(|at| found.path(at)).collect();
    assert_eq!(paths, ["p/p-000000.tar/1.wav", "q/q-000000.tar/1.wav", "2.wav", "3.wav"]);

    add("r", &["4", "5", "4"]);
    let error = open(&folder, &["wav"]).unwrap_err().to_string();
    assert!(error.contains("r/r-000000.tar/4: the key is a duplicate"), "{error}");
}

#[test]
fn examples_without_the_field_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("shards");
    let mut packer = Packer::create(&folder, "all", 1 << 20).unwrap();
    packer.add("a", &[("wav", b"1")]).unwrap();
    packer.add("b", &[("txt", b"2"), ("json", b"{}")]).unwrap();
    packer.finish().unwrap();
    let found = open(&folder, &["wav"]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found.missing(), ["all-000000.tar/b: has txt, json, none of wav"]);
    let error = open(&folder, &["png", "jpg"]).unwrap_err().to_string();
    assert!(
        error.contains("no usable example: all-000000.tar/a: has wav, none of png, jpg"),
        "{error}"
    );
}

#[test]
fn field_falls_back_to_json_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("shards");
    let mut packer = Packer::create(&folder, "all", 1 << 20).unwrap();
    let metadata = br#"{"text": "from json", "label": 7, "list": [1]}"#;
    packer.add("a", &[("wav", b"1"), ("json", metadata), ("cls", b"3")]).unwrap();
    packer.add("b", &[("wav", b"1"), ("json", b"no json")]).unwrap();
    packer.finish().unwrap();
    let found = open(&folder, &["wav"]).unwrap();
    let field = |at, names: &[&str]| found.field(at, names).unwrap();
    assert_eq!(field(0, &["cls", "label"]).as_deref(), Some("3"));
    assert_eq!(field(0, &["label"]).as_deref(), Some("7"));
    assert_eq!(field(0, &["txt", "text"]).as_deref(), Some("from json"));
    assert_eq!((field(0, &["list"]), field(1, &["text"])), (None, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_directory_round_trips(
        names in proptest::collection::btree_map("[a-c.%]{1,4}(/[a-c.]{1,3}[a-c])?", 0_usize..2_000, 1..12),
        max_bytes in 1_u64..20_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("shards");
        let is_valid = |name: &&String| name.split('/').all(|part| part.chars().any(|c| c != '.'));
        let names: Vec<(String, usize)> = names.iter().filter(|(name, _)| is_valid(name))
            .map(|(name, size)| (format!("{name}.bin"), *size)).collect();
        prop_assume!(!names.is_empty());
        let mut packer = Packer::create(&folder, "any", max_bytes).unwrap();
        for (name, size) in &names {
            packer.add(&key_of(name, "bin").unwrap(), &[("bin", &vec![7; *size])]).unwrap();
        }
        packer.finish().unwrap();
        let found = open(&folder, &["bin"]).unwrap();
        let mut all: Vec<(String, usize)> =
            (0..found.len()).map(|at| (found.path(at), found.read(at).unwrap().len())).collect();
        let mut expected = names;
        all.sort();
        expected.sort();
        prop_assert_eq!(all, expected);
    }
}
