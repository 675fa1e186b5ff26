//! Reads fixtures of every format, written by other programs, and compares with what Python reads.

mod support;

use std::fs;
use std::io::Write;

use data2vec_source::{Source, SourceConfig, Value};
use flate2::Compression;
use flate2::write::GzEncoder;
use support::{all, config, error, expected, fixture, open, summarize};
use tempfile::tempdir;

#[test]
fn fixtures_match_what_python_reads() {
    let cache = tempdir().expect("writable");
    let expected = expected();
    assert_eq!(expected.len(), 14);
    for (name, expected) in expected {
        let source = open(&[&fixture(&name)], cache.path()).expect("a shard");
        let examples = all(&source);
        let found: Vec<_> = examples.iter().map(summarize).collect();
        assert_eq!(found, expected, "{name}");
        for (index, example) in examples.iter().enumerate() {
            assert_eq!(source.name(index), format!("{name}/{}", example.key));
            let fields = source.fields(index).expect("an index");
            for (name, value) in &example.fields {
                let field = fields.iter().find(|field| field.name == *name).expect("a field");
                let size = value.bytes().map(|bytes| bytes.len() as u64);
                assert!(field.size.is_none() || size.is_none() || field.size == size, "{name}");
            }
        }
    }
}

#[test]
fn mixed_formats_read_the_same_from_several_threads() {
    let cache = tempdir().expect("writable");
    let names: Vec<String> = expected().into_keys().collect();
    let paths: Vec<_> = names.iter().map(|name| fixture(name)).collect();
    let paths: Vec<_> = paths.iter().map(|path| path.as_path()).collect();
    // Small caches, so that nearly every read is a miss.
    let config =
        SourceConfig { memory_bytes: 1, cache_bytes: 40_000, block_bytes: 4096, ..config(&paths) };
    let source = Source::open(&config, cache.path(), &mut |_| ()).expect("shards");
    let expected_examples = all(&source);
    assert_eq!(expected_examples.len(), expected().into_values().flatten().count());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (source, expected_examples) = (&source, &expected_examples);
            scope.spawn(move || {
                for step in 0..3 * expected_examples.len() {
                    let index = (step * 31 + thread * 7) % expected_examples.len();
                    assert_eq!(source.read(index).expect("an example"), expected_examples[index]);
                }
            });
        }
    });
    let pieces = fs::read_dir(cache.path().join("pieces")).expect("a folder");
    let bytes: u64 =
        pieces.map(|piece| piece.and_then(|p| p.metadata()).expect("a file").len()).sum();
    assert!(bytes <= 40_100, "{bytes}");
}

#[test]
fn values_convert_to_text_and_numbers() {
    let cache = tempdir().expect("writable");
    let hub = open(&[&fixture("hub.parquet")], cache.path()).expect("a shard");
    let names = ["cat", "dog", "owl"].map(str::to_owned).to_vec();
    assert_eq!(hub.classes("label").expect("a footer"), Some(names));
    assert_eq!(hub.classes("text").expect("a footer"), None);
    let columns: Vec<_> = hub.fields(0).expect("a footer").into_iter().map(|f| f.name).collect();
    assert_eq!(columns, ["audio", "audio.path", "text", "label"]);
    let example = hub.read(4).expect("a row");
    assert_eq!(example.get("label").and_then(Value::integer), Some(1));
    assert_eq!(example.get("audio.path").and_then(Value::text), Some("speaker1/utt004.flac"));
    assert_eq!(example.get("none"), None);

    let tar = open(&[&fixture("wds-000000.tar")], cache.path()).expect("a shard");
    assert_eq!(tar.classes("cls").expect("no footer"), None);
    let example = tar.read(4).expect("an example");
    assert_eq!(example.get("cls").and_then(Value::integer), Some(1));
    assert_eq!(example.get("cls").and_then(Value::number), Some(1.0));
    assert_eq!(example.get("flac").and_then(Value::integer), None);

    let lines = open(&[&fixture("rows.jsonl")], cache.path()).expect("a shard");
    let example = lines.read(4).expect("a line");
    assert_eq!(example.get("seconds").and_then(Value::number), Some(0.5));
    assert_eq!(example.get("seconds").and_then(Value::integer), None);
    assert_eq!(lines.name(11), "rows.jsonl/13"); // one line is blank
}

#[test]
fn invalid_line_is_an_unreadable_example() {
    let (cache, folder) = (tempdir().expect("writable"), tempdir().expect("writable"));
    let path = folder.path().join("a.jsonl");
    fs::write(&path, "{\"text\": \"a\"}\n[1]\n{\"text\": \n{\"text\": \"\\ud800\"}\n{\"t\": 1}")
        .expect("writable");
    let source = open(&[&path], cache.path()).expect("a shard");
    assert_eq!(source.len(), 5);
    assert_eq!(source.read(0).expect("a line").get("text").and_then(Value::text), Some("a"));
    assert_eq!(source.read(4).expect("a line").get("t").and_then(Value::integer), Some(1));
    for (index, cause) in [(1, "not a JSON object"), (2, "not a JSON object"), (3, "hex escape")] {
        let error = source.read(index).expect_err("an invalid line").to_string();
        let name = format!("a.jsonl/{}: ", index + 1);
        assert!(error.starts_with(&name) && error.contains(cause), "{error}");
    }
    fs::write(&path, "{\"text\": \"a\"}\n{\"text\": \"b").expect("writable");
    let truncated = error(&[&path], cache.path());
    assert!(truncated.starts_with("a.jsonl: ends in the middle of line 2"), "{truncated}");
}

#[test]
fn compressed_shards_are_unpacked_within_the_cache_capacity() {
    let (cache, folder) = (tempdir().expect("writable"), tempdir().expect("writable"));
    let path = folder.path().join("a.jsonl.gz");
    let pack = |text: &[u8]| {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(text).expect("memory");
        out.finish().expect("memory")
    };
    let text = "{\"text\": \"a\"}\n".repeat(10_000);
    let packed = pack(text.as_bytes());
    fs::write(&path, &packed[..packed.len() / 2]).expect("writable");
    let truncated = error(&[&path], cache.path());
    assert!(truncated.starts_with("a.jsonl.gz: cannot be unpacked: "), "{truncated}");
    let mut bad = packed.clone();
    let end = bad.len() - 6; // within the checksum
    bad[end] ^= 1;
    fs::write(&path, bad).expect("writable");
    let damaged = error(&[&path], cache.path());
    assert!(damaged.starts_with("a.jsonl.gz: cannot be unpacked: "), "{damaged}");
    fs::write(&path, packed).expect("writable");
    let small = SourceConfig { cache_bytes: 5000, block_bytes: 4096, ..config(&[&path]) };
    let large = Source::open(&small, cache.path(), &mut |_| ()).map(|_| ()).expect_err("too large");
    assert!(
        large.to_string().contains("more than the cache's 5000 bytes; increase cache_bytes"),
        "{large}"
    );
    let pieces = || fs::read_dir(cache.path().join("pieces")).expect("a folder").count();
    assert_eq!(pieces(), 0, "failures leave no files");

    let source = open(&[&path], cache.path()).expect("a shard");
    assert_eq!((source.len(), pieces()), (10_000, 2)); // and the file with the total
    // A deleted cache is rebuilt.
    drop(source);
    fs::remove_dir_all(cache.path().join("pieces")).expect("a folder");
    let source = open(&[&path], cache.path()).expect("a shard");
    assert_eq!(source.read(9_999).expect("a line").get("text").and_then(Value::text), Some("a"));
}

#[test]
fn truncated_or_damaged_parquet_is_an_error_with_its_name() {
    let (cache, folder) = (tempdir().expect("writable"), tempdir().expect("writable"));
    let path = folder.path().join("a.parquet");
    let good = fs::read(fixture("zstd.parquet")).expect("a file");
    for len in (0..good.len()).step_by(97) {
        fs::write(&path, &good[..len]).expect("writable");
        let error = error(&[&path], cache.path());
        assert!(error.starts_with("a.parquet: "), "{error}");
    }
    for at in (0..good.len()).step_by(41) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        fs::write(&path, &bad).expect("writable");
        let Ok(source) = open(&[&path], cache.path()) else { continue };
        for index in 0..source.len().min(20) {
            if let Err(error) = source.read(index) {
                assert!(error.to_string().starts_with("a.parquet/"), "{error}");
            }
        }
    }
}
