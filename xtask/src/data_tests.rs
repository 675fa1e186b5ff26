#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::http::tests::{Manner, serve};

/// A set of one `.tar` at `url` that holds `a/one`, with these pins.
fn set(url: &str, sha256: Option<&str>, digest: Option<&str>) -> DataSet {
    let line = |key: &str, value: Option<&str>| {
        value.map_or(String::new(), |value| format!("{key} = \"{value}\"\n"))
    };
    let text = format!(
        "[[set]]\nname = \"a-set\"\nmodality = \"speech\"\nlicence = \"MIT\"\ndescription = \"d\"\nbytes = 1\n{}\
         [[set.source]]\nname = \"loopback\"\n[[set.source.archive]]\nurl = \"{url}\"\n{}take = [{{ from = \"a/\", to = \"b/\" }}]\n",
        line("digest", digest),
        line("sha256", sha256)
    );
    Catalog::parse(&text).unwrap().set.remove(0)
}

fn tar(path: &str, kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_old();
    // Not by `set_path`, which would refuse what a malicious archive may well hold.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(if kind.is_file() { 5 } else { 0 });
    if !kind.is_file() {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, if kind.is_file() { &b"hello"[..] } else { b"" }).unwrap();
    builder.into_inner().unwrap()
}

fn good() -> &'static [u8] {
    tar("a/one", tar::EntryType::Regular).leak()
}

fn digest() -> String {
    hash::sha256(format!("{}  b/one\n", hash::sha256(b"hello")).as_bytes())
}

fn impatient(source: &Source, parts: &Path) -> Result<Vec<PathBuf>> {
    source
        .archive
        .iter()
        .map(|archive| fetch::archive(archive, parts, &Client::impatient()))
        .collect()
}

fn fetch(dir: &Path, set: &DataSet) -> Result<()> {
    fetch_into(&dir.join("a-set"), set, &impatient)
}

fn complaint(dir: &Path, set: &DataSet) -> String {
    let error = format!("{:#}", fetch(dir, set).unwrap_err());
    assert!(!dir.join("a-set").exists(), "{error}");
    error
}

#[test]
fn a_set_arrives_whole_and_once() {
    let dir = tempfile::tempdir().unwrap();
    for manner in [Manner::Good, Manner::CutAfter(700), Manner::NoRanges] {
        let server = serve(good(), manner);
        let set = set(&server.url, Some(&hash::sha256(good())), Some(&digest()));
        fetch(dir.path(), &set).unwrap();
        let there = dir.path().join("a-set");
        assert_eq!(fs::read(there.join("b/one")).unwrap(), b"hello");
        assert!(is_complete(&there, &set) && !dir.path().join(".a-set.partial").exists());
        fetch(dir.path(), &set).unwrap();
        fs::remove_dir_all(&there).unwrap();
    }
}

#[test]
fn wrong_hashes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(good(), Manner::Good);
    let zeros = "0".repeat(64);
    let error = complaint(dir.path(), &set(&server.url, Some(&zeros), None));
    assert!(error.contains("sha256 is not the one in the catalog"), "{error}");
    let error = complaint(dir.path(), &set(&server.url, None, Some(&zeros)));
    assert!(error.contains("not those that the catalog pins"), "{error}");
    // What came wrong was forgotten.
    fetch(dir.path(), &set(&server.url, Some(&hash::sha256(good())), None)).unwrap();
}

#[test]
fn a_body_that_ends_early_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error =
        complaint(dir.path(), &set(&serve(good(), Manner::CutAfter(0)).url, None, Some(&digest())));
    assert!(error.contains("cannot download"), "{error}");
    let half = good()[..700].to_vec().leak();
    let error = complaint(dir.path(), &set(&serve(half, Manner::Good).url, None, Some(&digest())));
    assert!(error.contains("no source had it"), "{error}");
}

#[test]
fn malicious_archives_are_refused() {
    use tar::EntryType::{Char, Link, Regular, Symlink};
    let cases = [
        ("../../evil", Regular, "does not name a file below"),
        ("/tmp/evil", Regular, "does not name a file below"),
        ("a/../../evil", Regular, "does not name a file below"),
        ("a/link", Symlink, "link or a device"),
        ("a/link", Link, "link or a device"),
        ("a/device", Char, "link or a device"),
        ("other/file", Regular, "it has no a/"),
    ];
    for (path, kind, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        let bytes = tar(path, kind).leak();
        let set = set(&serve(bytes, Manner::Good).url, Some(&hash::sha256(bytes)), None);
        let error = complaint(dir.path(), &set);
        assert!(error.contains(wanted), "{path}: {error}");
        assert!(!dir.path().join("evil").exists() && !Path::new("/tmp/evil").exists());
    }
}

#[test]
fn a_broken_download_does_not_replace_a_good_set() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("a-set");
    fetch(dir.path(), &set(&serve(good(), Manner::Good).url, None, Some(&digest()))).unwrap();
    // The catalog moves on to a version that cannot be had.
    let newer = set(&serve(good(), Manner::NotFound).url, None, Some(&"0".repeat(64)));
    assert!(!is_complete(&there, &newer));
    assert!(fetch(dir.path(), &newer).is_err());
    assert_eq!(fs::read(there.join("b/one")).unwrap(), b"hello");
}

#[test]
fn a_folder_filled_by_hand_is_taken_if_it_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("a-set");
    fs::create_dir_all(there.join("b")).unwrap();
    fs::write(there.join("b/one"), "other").unwrap();
    let set = set(&serve(good(), Manner::NotFound).url, None, Some(&digest()));
    assert!(fetch(dir.path(), &set).unwrap_err().to_string().contains("move it away"));
    fs::write(there.join("b/one"), "hello").unwrap();
    fetch(dir.path(), &set).unwrap();
    assert!(is_complete(&there, &set));
}

#[test]
fn two_at_once_download_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(good(), Manner::Good);
    let set = set(&server.url, None, Some(&digest()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch(dir.path(), &set).unwrap());
        }
    });
    assert_eq!(server.requests.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn an_archive_inside_another_is_as_safe() {
    use tar::EntryType::{Regular, Symlink};
    let around = |inner: &[u8], kind| -> &'static [u8] {
        let mut header = tar::Header::new_gnu();
        header.set_path("deep/inner.tar").unwrap();
        header.set_entry_type(kind);
        header.set_size(inner.len() as u64);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, inner).unwrap();
        builder.into_inner().unwrap().leak()
    };
    let nested = |bytes: &'static [u8]| {
        let server = serve(bytes, Manner::Good);
        let mut set = set(&server.url, Some(&hash::sha256(bytes)), None);
        set.source[0].archive[0].inside = Some("deep/inner.tar".into());
        (server, set)
    };
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (around(&tar("../../evil", Regular), Regular), "does not name a file below"),
        (around(&tar("a/link", Symlink), Regular), "link or a device"),
        (around(&tar("other/file", Regular), Regular), "it has no a/"),
        (around(b"", Symlink), "link or a device"),
        (good(), "it has no deep/inner.tar"),
    ];
    for (bytes, wanted) in cases {
        let (_server, set) = nested(bytes);
        let error = complaint(dir.path(), &set);
        assert!(error.contains(wanted), "{error}");
    }
    let (_server, set) = nested(around(good(), Regular));
    fetch(dir.path(), &set).unwrap();
    assert_eq!(fs::read(dir.path().join("a-set/b/one")).unwrap(), b"hello");
    assert!(!dir.path().join(".a-set.partial").exists());
}
