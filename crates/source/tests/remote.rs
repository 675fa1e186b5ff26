//! Remote shards over a failing network: transient failures are retried, permanent ones are errors.
#![cfg(all(feature = "remote", feature = "parquet"))]

#[path = "support/store.rs"]
mod store;
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use data2vec_source::{Example, Source, SourceConfig};
use store::{Fault, Store};
use support::{all, digest, fixture, open};
use tempfile::{TempDir, tempdir};

/// Sorted names of the shards in [`folder`].
const SHARDS: [&str; 5] =
    ["deep/hub.parquet", "deep/rows.jsonl", "large.tar", "wds-000000.tar.gz", "wds-000001.tar"];

/// Creates shards of all formats, one of them with many blocks.
fn folder() -> TempDir {
    let folder = tempdir().expect("writable");
    fs::create_dir(folder.path().join("deep")).expect("writable");
    for name in SHARDS.iter().filter(|name| **name != "large.tar") {
        let file = Path::new(name).file_name().expect("a name").to_string_lossy().into_owned();
        fs::copy(fixture(&file), folder.path().join(name)).expect("writable");
    }
    let file = fs::File::create(folder.path().join("large.tar")).expect("writable");
    let mut out = tar::Builder::new(file);
    for number in 0..100_u64 {
        let content: Vec<u8> =
            (0..20_000).map(|at: u64| (number * 7 + at * at / 256) as u8).collect();
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        out.append_data(&mut header, format!("{number:03}.bin"), &content[..]).expect("a member");
    }
    out.finish().expect("an end");
    fs::write(folder.path().join("README.md"), "no shard").expect("writable");
    folder
}

fn config(urls: &[String]) -> SourceConfig {
    SourceConfig {
        shards: urls.to_vec(),
        block_bytes: 1 << 16,
        timeout_seconds: 1,
        ..SourceConfig::default()
    }
}

fn read(config: &SourceConfig, cache: &Path) -> data2vec_source::Result<Source> {
    Source::open(config, cache, &mut |_| ())
}

/// Reads all examples from local files.
fn read_local(folder: &Path) -> Vec<Example> {
    let cache = tempdir().expect("writable");
    let paths: Vec<_> = SHARDS.iter().map(|name| folder.join(name)).collect();
    let paths: Vec<_> = paths.iter().map(|path| path.as_path()).collect();
    all(&open(&paths, cache.path()).expect("shards"))
}

#[test]
fn reads_survive_errors_cut_connections_and_slow_responses() {
    let (folder, cache) = (folder(), tempdir().expect("writable"));
    let expected = read_local(folder.path());
    let store = Store::serve(folder.path().to_owned(), Duration::from_millis(3));
    store.plan(|number| match number % 60 {
        3 | 13 | 43 => Fault::Status(500),
        7 | 37 => Fault::Status(503),
        9 | 19 | 39 => Fault::Cut,
        24 => Fault::Slow(1500),
        _ => Fault::None,
    });
    let urls = SHARDS.map(|name| store.url(name));
    // A cache of half the size, so that blocks are fetched again.
    let config = SourceConfig { cache_bytes: 1_100_000, ..config(&urls) };
    let source = read(&config, cache.path()).expect("shards");
    assert_eq!(source.len(), expected.len());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (source, expected) = (&source, &expected);
            scope.spawn(move || {
                for step in 0..expected.len() {
                    let index = (step * 37 + thread * 11) % expected.len();
                    assert_eq!(source.read(index).expect("an example"), expected[index]);
                }
            });
        }
    });
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Cut, Fault::Slow(1500)] {
        assert!(store.happened(fault) > 0, "{fault:?} in {} requests", store.requests());
    }
}

#[test]
fn fetched_blocks_are_cached() {
    let (folder, cache) = (folder(), tempdir().expect("writable"));
    let store = Store::serve(folder.path().to_owned(), Duration::ZERO);
    let config = config(&SHARDS.map(|name| store.url(name)));
    let source = read(&config, cache.path()).expect("shards");
    let first = all(&source);
    let blocks = 2_100_224_u64.div_ceil(1 << 16) + 4; // those of large.tar, and one of each other shard
    assert_eq!(store.requests(), 5 + blocks);
    drop(source);
    let source = read(&config, cache.path()).expect("shards");
    assert_eq!(all(&source), first);
    assert_eq!(store.requests(), 5 + blocks + 5, "one HEAD request per shard");
}

#[test]
fn prefetch_sends_concurrent_requests() {
    let (folder, cache) = (folder(), tempdir().expect("writable"));
    let store = Store::serve(folder.path().to_owned(), Duration::from_millis(100));
    let urls = ["large.tar", "deep/hub.parquet"].map(|name| store.url(name));
    let source = read(&config(&urls), cache.path()).expect("shards");
    fs::remove_dir_all(cache.path().join("pieces")).expect("what indexing fetched");
    let source = {
        drop(source);
        read(&config(&urls), cache.path()).expect("shards")
    };
    let batch: Vec<usize> = (0..16).map(|at| at * 7).collect();
    source.prefetch(&batch);
    assert!(store.most_at_once() > 6, "{}", store.most_at_once());
    // All blocks are cached: reads succeed although the store refuses further requests
    // (read-ahead).
    store.plan(|_| Fault::Status(403));
    batch.iter().for_each(|&index| drop(source.read(index).expect("an example")));
}

#[test]
fn permanent_failure_is_one_line_with_the_shard() {
    let (folder, cache) = (folder(), tempdir().expect("writable"));
    let store = Store::serve(folder.path().to_owned(), Duration::ZERO);
    let failed = |name: &str, retries: u32| {
        let config = SourceConfig { retries, ..config(&[store.url(name)]) };
        let error = read(&config, cache.path()).map(|_| ()).expect_err("no shard").to_string();
        assert!(error.starts_with(&store.url(name)) && error.lines().count() == 1, "{error}");
        error
    };
    let missing = failed("none.tar", 8);
    assert!(missing.contains("not found"), "{missing}");
    assert_eq!(store.requests(), 1, "no retry of a permanent failure");
    let query = failed("large.tar?key=1", 8);
    assert!(query.contains("cannot have a query"), "{query}");
    let listing = failed("deep", 8);
    assert!(listing.contains("cannot list shards; name each"), "{listing}");
    let other = failed("README.md", 8);
    assert!(other.contains("cannot list shards"), "{other}");
    store.plan(|_| Fault::Status(403));
    let refused = failed("large.tar", 8);
    assert!(refused.contains("privileges"), "{refused}");
    store.plan(|_| Fault::Status(500));
    let before = store.requests();
    let down = failed("large.tar", 2);
    assert!(down.contains("500") && down.ends_with(", after 3 attempts"), "{down}");
    assert_eq!(store.requests(), before + 3);

    // Replaced by another file of the same size.
    store.plan(|_| Fault::None);
    let source = read(&config(&[store.url("large.tar")]), cache.path()).expect("a shard");
    fs::remove_dir_all(cache.path().join("pieces")).expect("what indexing fetched");
    let path = folder.path().join("large.tar");
    let mut bytes = fs::read(&path).expect("a shard");
    bytes[600] ^= 1;
    fs::write(&path, bytes).expect("writable");
    let changed = source.read(90).expect_err("another file").to_string();
    assert!(
        changed.starts_with("large.tar/090: ") && changed.contains("precondition"),
        "{changed}"
    );
}

/// Uses child processes, since S3 is configured by environment variables.
#[test]
fn s3_is_listed_and_read() {
    let folder = folder();
    let expected: Vec<String> = read_local(folder.path()).iter().map(|e| e.key.clone()).collect();
    let store = Store::serve(folder.path().to_owned(), Duration::ZERO);
    store.plan(|number| if number % 4 == 1 { Fault::Status(500) } else { Fault::None });
    let list = folder.path().join("some.list");
    fs::write(&list, "wds-00000?.tar\ndeep/rows.jsonl\n").expect("writable");
    for (location, expected_result) in [
        ("s3://bucket", format!("{} {}", expected.len(), digest(expected.join(" ").as_bytes()))),
        ("s3://bucket/deep/", "24".into()),
        ("s3://bucket/wds-*.tar", "5".into()),
        ("s3://bucket/deep/hub.parquet", "12".into()),
        ("s3://bucket/some.list", "17".into()),
        ("s3://bucket/*.zip", "s3://bucket/*.zip: no shards found".into()),
        ("s3://bucket/none/{1..2}.list", "s3://bucket/none/1.list: ".into()),
    ] {
        let program = std::env::current_exe().expect("a path");
        let output = Command::new(program)
            .args(["--ignored", "--exact", "reads_s3", "--nocapture"])
            .env("S3_LOCATION", location)
            .env("AWS_ENDPOINT", store.url("").trim_end_matches('/'))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "none")
            .env("AWS_ACCESS_KEY_ID", "id")
            .env("AWS_SECRET_ACCESS_KEY", "key")
            .output()
            .expect("a process");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let line =
            output.lines().find_map(|line| line.split_once("result: ")).unwrap_or_default().1;
        assert!(line.starts_with(&expected_result), "{location}: {output}");
    }
    assert!(store.happened(Fault::Status(500)) > 5);
}

#[test]
#[ignore = "child process of `s3_is_listed_and_read`"]
fn reads_s3() {
    let location = std::env::var("S3_LOCATION").expect("set by the parent");
    let cache = tempdir().expect("writable");
    match read(&config(&[location]), cache.path()) {
        Ok(source) => {
            let keys: Vec<String> = all(&source).iter().map(|e| e.key.clone()).collect();
            println!("result: {} {}", keys.len(), digest(keys.join(" ").as_bytes()));
        }
        Err(error) => println!("result: {error}"),
    }
}
