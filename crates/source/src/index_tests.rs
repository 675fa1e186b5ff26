use std::fs;

use proptest::prelude::*;

use super::*;
use crate::shard::Format;

#[path = "../../../tests/src/fuzz.rs"]
mod fuzz;

fn shard(number: usize) -> Shard {
    let (name, stamp) = (format!("{number}.tar"), "1".to_owned());
    let location = format!("shards/{name}");
    Shard { name, location, format: Format::Tar, gzip: false, bytes: 1 << 40, stamp, tag: None }
}

fn write(path: &Path, entries: &[Entry], shards: &[Shard]) {
    let mut writer = Writer::create(path).expect("writable");
    for entry in entries {
        let mut record = Vec::new();
        entry.encode(&mut record);
        writer.add(&record).expect("writable");
    }
    writer.finish(shards).expect("writable");
}

fn entries(count: usize) -> Vec<Entry> {
    let part = |name: &str, start, size, kind| Part { name: name.into(), start, size, kind };
    let entry = |number: usize| Entry {
        shard: (number % 2) as u32,
        key: format!("speaker/utterance{number}"),
        parts: vec![
            part("flac", 512 + 90_000 * number as u64, 80_000 + number as u64, Kind::Plain),
            part("txt", 512 + 90_000 * number as u64 + 81_000, 40, Kind::Sparse),
        ],
    };
    (0..count).map(entry).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn round_trips(
        all in prop::collection::vec(
            (0_u32..3, ".{0,20}", prop::collection::vec(("[a-z]{0,5}", 0_u64..1 << 40, 0_u64..1 << 40), 0..4)),
            1..300,
        )
    ) {
        let folder = tempfile::tempdir().expect("writable");
        let path = folder.path().join("index");
        let part = |(name, start, size)| Part { name, start, size, kind: Kind::Plain };
        let entry = |(shard, key, parts): (u32, String, Vec<_>)| {
            Entry { shard, key, parts: parts.into_iter().map(part).collect() }
        };
        let entries: Vec<Entry> = all.into_iter().map(entry).collect();
        let shards = [0, 1, 2].map(shard);
        write(&path, &entries, &shards);
        let index = Index::open(&path, &shards).expect("an index");
        prop_assert_eq!(index.examples, entries.len() as u64);
        for (number, entry) in entries.iter().enumerate().rev() {
            prop_assert_eq!(&index.entry(number as u64).expect("an entry"), entry);
        }
        prop_assert!(Index::open(&path, &shards[..2]).is_none(), "shards differ");
    }
}

#[test]
fn entry_takes_few_bytes() {
    let folder = tempfile::tempdir().expect("writable");
    let path = folder.path().join("index");
    write(&path, &entries(10_000), &[0, 1].map(shard));
    let keys: usize = entries(10_000).iter().map(|entry| entry.key.len()).sum();
    let bytes = fs::metadata(&path).expect("a file").len() as usize - keys;
    assert!(bytes < 32 * 10_000, "{} bytes without its key", bytes as f64 / 1e4);
}

#[test]
fn index_mutations() {
    let folder = tempfile::tempdir().expect("writable");
    let path = folder.path().join("index");
    fuzz::fuzz("index", |bytes| {
        // Also decode the bytes as a record, without the checksum in front.
        if let Some(entry) = Entry::decode(&mut Bytes::new(bytes)) {
            let _ = entry.range();
        }
        // A new file each time: overwriting waits for the disk on some systems.
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).expect("writable");
        let Ok(index) = Index::read(&path) else { return false };
        let numbers = (0..index.examples).take(10).chain(index.examples.checked_sub(1));
        let read = |number| index.entry(number).is_ok();
        numbers.map(read).filter(|good| *good).count() > 0
    });
}

/// `cargo test --release -p data2vec-source write_seed -- --ignored`
#[test]
#[ignore = "writes fuzz/corpus/index"]
fn write_seed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/index");
    fs::create_dir_all(&folder).expect("writable");
    write(&folder.join("tars"), &entries(150), &[0, 1].map(shard));
}
