//! Tar shards: those of other programs, and those that something happened to.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use data2vec_source::Source;
use support::{all, config, error, fixture, open};
use tempfile::tempdir;

/// A shard of these files.
fn pack(path: &Path, files: &[(&str, &[u8])]) {
    let mut out = tar::Builder::new(fs::File::create(path).expect("a file"));
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        out.append_data(&mut header, name, *content).expect("a member");
    }
    out.finish().expect("an end");
}

#[test]
fn many_shards_are_one_source_in_order() {
    let (cache, folder) = (tempdir().expect("space"), tempdir().expect("space"));
    let deep = folder.path().join("b/c");
    fs::create_dir_all(&deep).expect("space");
    for (shard, path) in ["b/c/1.tar", "a.tar", "b/0.tar"].iter().enumerate() {
        let files = (0..150).map(|at| (format!("{at:03}.txt"), format!("{shard} {at}")));
        let files: Vec<_> = files.collect::<Vec<_>>();
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, text)| (&name[..], text.as_bytes())).collect();
        pack(&folder.path().join(path), &files);
    }
    fs::write(folder.path().join("notes.md"), "no shard").expect("space");
    let source = open(&[folder.path()], cache.path()).expect("shards");
    assert_eq!(source.len(), 450);
    for (index, shard) in [1, 2, 0].iter().flat_map(|shard| [*shard; 150]).enumerate() {
        let example = source.read(index).expect("an example");
        let text = example.get("txt").and_then(|value| value.text());
        assert_eq!(text, Some(&format!("{shard} {}", index % 150)[..]));
    }
    assert_eq!(source.name(0), "a.tar/000");
    assert_eq!(source.name(449), "b/c/1.tar/149");

    // All ways to say the same.
    let list = folder.path().join("shards.list");
    fs::write(&list, "# in another order\nb/{0,c/1}.tar\n\na.tar\n").expect("space");
    let star = folder.path().join("b").join("*.tar");
    for (places, count, first) in [
        (vec![list.as_path()], 450, "0.tar/000"),
        (vec![star.as_path()], 150, "0.tar/000"),
        (vec![deep.as_path(), star.as_path()], 300, "1.tar/000"),
    ] {
        let source = open(&places, cache.path()).expect("shards");
        assert_eq!((source.len(), &source.name(0)[..]), (count, first), "{places:?}");
    }
    let twice = open(&[&star, folder.path()], cache.path()).expect_err("twice").to_string();
    assert!(twice.contains("0.tar is named twice"), "{twice}");
}

#[test]
fn the_index_is_made_once_and_again_when_shards_change() {
    let (cache, folder) = (tempdir().expect("space"), tempdir().expect("space"));
    let path = folder.path().join("a.tar");
    let count = || {
        let mut looked = 0;
        let mut progress = |progress: data2vec_source::Progress| looked = progress.examples;
        let source = Source::open(&config(&[&path]), cache.path(), &mut progress).expect("shards");
        (source.len(), looked)
    };
    pack(&path, &[("a.txt", b"1")]);
    assert_eq!(count(), (1, 1));
    assert_eq!(count(), (1, 0));
    pack(&path, &[("a.txt", b"1"), ("b.txt", b"1")]);
    assert_eq!(count(), (2, 2));
    // The same size at another time.
    pack(&path, &[("a.txt", b"1"), ("a.wav", b"1")]);
    let later = SystemTime::now() + Duration::from_secs(5);
    fs::File::open(&path).and_then(|file| file.set_modified(later)).expect("a file");
    assert_eq!(count(), (1, 1));

    // A bit that turned: in what tells of the shards the index is made again, elsewhere reading says so.
    let files = fs::read_dir(cache.path()).expect("a folder");
    let index: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    assert_eq!(index.len(), 1, "{index:?}");
    let good = fs::read(&index[0]).expect("an index");
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&index[0], &bad).expect("space");
        let source = open(&[&path], cache.path()).expect("shards");
        match source.read(0) {
            Ok(example) => assert_eq!((&example.key[..], example.fields.len()), ("a", 2)),
            Err(error) => assert!(error.to_string().contains("is damaged: remove it"), "{error}"),
        }
    }
}

#[test]
fn a_shard_that_is_cut_off_is_named_with_the_place() {
    let (cache, folder) = (tempdir().expect("space"), tempdir().expect("space"));
    let (good, path) = (folder.path().join("good.tar"), folder.path().join("s-17.tar"));
    pack(&good, &[("a.wav", &[1; 600]), ("b.wav", &[2; 600])]);
    let whole = fs::read(&good).expect("a shard");
    assert_eq!(whole.len(), 2 * (512 + 1024) + 1024);
    for len in (0..whole.len()).filter(|len| len % 7 == 0 || len % 512 < 2) {
        fs::write(&path, &whole[..len]).expect("space");
        if len >= 2 * (512 + 1024) + 512 {
            assert_eq!(open(&[&path], cache.path()).expect("enough of a mark").len(), 2);
            continue;
        }
        let error = error(&[&path], cache.path());
        assert!(error.starts_with("s-17.tar: ") && error.contains("at byte "), "{error}");
    }
    // The first shard is fine; the run does not begin all the same.
    assert!(open(&[&good, &path], cache.path()).is_ok());
    fs::write(&path, &whole[..1600]).expect("space");
    assert!(open(&[&good, &path], cache.path()).is_err());
}

#[test]
fn broken_shards_give_one_clear_error() {
    let (cache, folder) = (tempdir().expect("space"), tempdir().expect("space"));
    let path = folder.path().join("a.tar");
    for (names, says) in [
        (&["a.wav", "a.WAV"][..], "a.WAV is there twice in a row"),
        (&["README"], "no example in 1 shards"),
    ] {
        pack(&path, &names.iter().map(|&name| (name, &b"1"[..])).collect::<Vec<_>>());
        let error = error(&[&path], cache.path());
        assert!(error.contains(says), "{error}");
    }
    let sparse = error(&[&fixture("sparse-posix.tar")], cache.path());
    assert!(sparse.contains("a.bin is sparse: pack it as a plain file"), "{sparse}");
    fs::write(&path, [7; 2048]).expect("space");
    let garbage = error(&[&path], cache.path());
    assert!(garbage.starts_with("a.tar: at byte 0: "), "{garbage}");

    // A size that the shard does not have takes no memory.
    let mut header = tar::Header::new_gnu();
    header.set_path("a.wav").expect("short");
    header.set_size(1 << 50);
    header.set_cksum();
    fs::write(&path, [header.as_bytes(), &[0; 4096][..]].concat()).expect("space");
    let large = error(&[&path], cache.path());
    assert!(
        large.contains("a.wav has 1125899906842624 bytes, which the shard does not"),
        "{large}"
    );

    // What changes while it is read is told.
    pack(&path, &[("a.wav", &[1; 2000])]);
    let source = open(&[&path], cache.path()).expect("a shard");
    pack(&path, &[("a.wav", &[1; 20])]);
    let changed = source.read(0).expect_err("another file").to_string();
    assert!(changed.contains("it is written to"), "{changed}");

    for (place, says) in [
        ("missing.tar", "missing.tar: No such file"),
        ("notes.md", "is no shard: their names end in"),
        ("*.tar.xz", "no shards here"),
    ] {
        fs::write(folder.path().join("notes.md"), "no shard").expect("space");
        let error = error(&[&folder.path().join(place)], cache.path());
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn threads_read_the_same() {
    let cache = tempdir().expect("space");
    let places = [fixture("wds-000000.tar"), fixture("wds-000001.tar")];
    let source = open(&[&places[0], &places[1]], cache.path()).expect("shards");
    let alone = all(&source);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(all(&source), alone)));
        }
    });
}
