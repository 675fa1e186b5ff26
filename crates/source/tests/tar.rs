//! Tar shards: listing, indexing, and truncated, changed or invalid files.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use data2vec_source::Source;
use support::{all, config, error, fixture, open};
use tempfile::tempdir;

/// Writes a shard with these files.
fn pack(path: &Path, files: &[(&str, &[u8])]) {
    let mut out = tar::Builder::new(fs::File::create(path).expect("a file"));
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        out.append_data(&mut header, name, *content).expect("a member");
    }
    out.finish().expect("an end marker");
}

#[test]
fn shards_are_listed_in_order() {
    let (cache, folder) = (tempdir().expect("writable"), tempdir().expect("writable"));
    let deep = folder.path().join("b/c");
    fs::create_dir_all(&deep).expect("writable");
    for (shard, path) in ["b/c/1.tar", "a.tar", "b/0.tar"].iter().enumerate() {
        let files = (0..150).map(|at| (format!("{at:03}.txt"), format!("{shard} {at}")));
        let files: Vec<_> = files.collect::<Vec<_>>();
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, text)| (&name[..], text.as_bytes())).collect();
        pack(&folder.path().join(path), &files);
    }
    fs::write(folder.path().join("notes.md"), "no shard").expect("writable");
    let source = open(&[folder.path()], cache.path()).expect("shards");
    assert_eq!(source.len(), 450);
    for (index, shard) in [1, 2, 0].iter().flat_map(|shard| [*shard; 150]).enumerate() {
        let example = source.read(index).expect("an example");
        let text = example.get("txt").and_then(|value| value.text());
        assert_eq!(text, Some(&format!("{shard} {}", index % 150)[..]));
    }
    assert_eq!(source.name(0), "a.tar/000");
    assert_eq!(source.name(449), "b/c/1.tar/149");

    // Other ways to name the same shards.
    let list = folder.path().join("shards.list");
    fs::write(&list, "# in another order\nb/{0,c/1}.tar\n\na.tar\n").expect("writable");
    let star = folder.path().join("b").join("*.tar");
    for (paths, count, first) in [
        (vec![list.as_path()], 450, "0.tar/000"),
        (vec![star.as_path()], 150, "0.tar/000"),
        (vec![deep.as_path(), star.as_path()], 300, "1.tar/000"),
    ] {
        let source = open(&paths, cache.path()).expect("shards");
        assert_eq!((source.len(), &source.name(0)[..]), (count, first), "{paths:?}");
    }
    let duplicate =
        open(&[&star, folder.path()], cache.path()).expect_err("a duplicate").to_string();
    assert!(duplicate.contains("0.tar is listed twice"), "{duplicate}");
}

#[test]
fn index_is_rebuilt_only_when_shards_change() {
    let (cache, folder) = (tempdir().expect("writable"), tempdir().expect("writable"));
    let path = folder.path().join("a.tar");
    let count = || {
        let mut scanned = 0;
        let mut progress = |progress: data2vec_source::Progress| scanned = progress.examples;
        let source = Source::open(&config(&[&path]), cache.path(), &mut progress).expect("shards");
        (source.len(), scanned)
    };
    pack(&path, &[("a.txt", b"1")]);
    assert_eq!(count(), (1, 1));
    assert_eq!(count(), (1, 0));
    pack(&path, &[("a.txt", b"1"), ("b.txt", b"1")]);
    assert_eq!(count(), (2, 2));
    // The same size but another modification time.
    pack(&path, &[("a.txt", b"1"), ("a.wav", b"1")]);
    let later = SystemTime::now() + Duration::from_secs(5);
    fs::File::open(&path).and_then(|file| file.set_modified(later)).expect("a file");
    assert_eq!(count(), (1, 1));

    // A flipped bit: in the metadata the index is rebuilt, elsewhere reading is an error.
    let files = fs::read_dir(cache.path()).expect("a folder");
    let index: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    assert_eq!(index.len(), 1, "{index:?}");
    let good = fs::read(&index[0]).expect("an index");
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&index[0], &bad).expect("writable");
        let source = open(&[&path], cache.path()).expect("shards");
        match source.read(0) {
            Ok(example) => assert_eq!((&example.key[..], example.fields.len()), ("a", 2)),
            Err(error) => assert!(error.to_string().contains("is damaged; remove it"), "{error}"),
        }
    }
}

#[test]
fn truncated_shard_is_an_error_with_name_and_offset() {
    let (cache, folder) = (tempdir().expect("writable"), tempdir().expect("writable"));
    let (good, path) = (folder.path().join("good.tar"), folder.path().join("s-17.tar"));
    pack(&good, &[("a.wav", &[1; 600]), ("b.wav", &[2; 600])]);
    let complete = fs::read(&good).expect("a shard");
    assert_eq!(complete.len(), 2 * (512 + 1024) + 1024);
    for len in (0..complete.len()).filter(|len| len % 7 == 0 || len % 512 < 2) {
        fs::write(&path, &complete[..len]).expect("writable");
        if len >= 2 * (512 + 1024) + 512 {
            assert_eq!(open(&[&path], cache.path()).expect("half an end marker").len(), 2);
            continue;
        }
        let error = error(&[&path], cache.path());
        assert!(error.starts_with("s-17.tar: ") && error.contains("at byte "), "{error}");
    }
    // One truncated shard fails the whole source.
    assert!(open(&[&good, &path], cache.path()).is_ok());
    fs::write(&path, &complete[..1600]).expect("writable");
    assert!(open(&[&good, &path], cache.path()).is_err());
}

#[test]
fn invalid_shards_give_one_clear_error() {
    let (cache, folder) = (tempdir().expect("writable"), tempdir().expect("writable"));
    let path = folder.path().join("a.tar");
    for (names, cause) in [
        (&["a.wav", "a.WAV"][..], "a.WAV is a duplicate field"),
        (&["README"], "no examples in 1 shards"),
    ] {
        pack(&path, &names.iter().map(|&name| (name, &b"1"[..])).collect::<Vec<_>>());
        let error = error(&[&path], cache.path());
        assert!(error.contains(cause), "{error}");
    }
    let sparse = error(&[&fixture("sparse-posix.tar")], cache.path());
    assert!(sparse.contains("a.bin is sparse; pack it as a plain file"), "{sparse}");
    fs::write(&path, [7; 2048]).expect("writable");
    let garbage = error(&[&path], cache.path());
    assert!(garbage.starts_with("a.tar: at byte 0: "), "{garbage}");

    // A size beyond the shard's end does not allocate memory.
    let mut header = tar::Header::new_gnu();
    header.set_path("a.wav").expect("short");
    header.set_size(1 << 50);
    header.set_cksum();
    fs::write(&path, [header.as_bytes(), &[0; 4096][..]].concat()).expect("writable");
    let large = error(&[&path], cache.path());
    assert!(large.contains("a.wav has 1125899906842624 bytes, which exceeds the shard"), "{large}");

    // A shard that changes while it is read is an error.
    pack(&path, &[("a.wav", &[1; 2000])]);
    let source = open(&[&path], cache.path()).expect("a shard");
    pack(&path, &[("a.wav", &[1; 20])]);
    let changed = source.read(0).expect_err("another file").to_string();
    assert!(changed.contains("is it being written?"), "{changed}");

    for (name, cause) in [
        ("missing.tar", "missing.tar: No such file"),
        ("notes.md", "not a shard; their names end in"),
        ("*.tar.xz", "no shards found"),
    ] {
        fs::write(folder.path().join("notes.md"), "no shard").expect("writable");
        let error = error(&[&folder.path().join(name)], cache.path());
        assert!(error.contains(cause), "{error}");
    }
}

#[test]
fn several_threads_read_the_same() {
    let cache = tempdir().expect("writable");
    let paths = [fixture("wds-000000.tar"), fixture("wds-000001.tar")];
    let source = open(&[&paths[0], &paths[1]], cache.path()).expect("shards");
    let expected = all(&source);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(all(&source), expected)));
        }
    });
}
