#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::http::tests::{Behavior, serve};

/// Creates a data set of one `.tar` at `url` that contains `a/one`, with these pins.
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
    // `set_path` would reject the paths of malicious archives.
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

fn archive() -> &'static [u8] {
    tar("a/one", tar::EntryType::Regular).leak()
}

fn digest() -> String {
    hash::sha256(format!("{}  b/one\n", hash::sha256(b"hello")).as_bytes())
}

fn download_without_backoff(source: &Source, parts: &Path) -> Result<Vec<PathBuf>> {
    source
        .archive
        .iter()
        .map(|archive| fetch::fetch_archive(archive, parts, &Client::without_backoff()))
        .collect()
}

fn fetch(dir: &Path, set: &DataSet) -> Result<()> {
    fetch_into(&dir.join("a-set"), set, &download_without_backoff)
}

fn error_for(dir: &Path, set: &DataSet) -> String {
    let error = format!("{:#}", fetch(dir, set).unwrap_err());
    assert!(!dir.join("a-set").exists(), "{error}");
    error
}

#[test]
fn fetches_a_set_once() {
    let dir = tempfile::tempdir().unwrap();
    for behavior in [Behavior::Normal, Behavior::TruncateAfter(700), Behavior::IgnoreRanges] {
        let server = serve(archive(), behavior);
        let set = set(&server.url, Some(&hash::sha256(archive())), Some(&digest()));
        fetch(dir.path(), &set).unwrap();
        let installed = dir.path().join("a-set");
        assert_eq!(fs::read(installed.join("b/one")).unwrap(), b"hello");
        assert!(is_complete(&installed, &set) && !dir.path().join(".a-set.partial").exists());
        fetch(dir.path(), &set).unwrap();
        fs::remove_dir_all(&installed).unwrap();
    }
}

#[test]
fn rejects_wrong_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(archive(), Behavior::Normal);
    let zeros = "0".repeat(64);
    let error = error_for(dir.path(), &set(&server.url, Some(&zeros), None));
    assert!(error.contains("sha256 does not match the catalog"), "{error}");
    let error = error_for(dir.path(), &set(&server.url, None, Some(&zeros)));
    assert!(error.contains("do not match the catalog"), "{error}");
    // The corrupt download was discarded.
    fetch(dir.path(), &set(&server.url, Some(&hash::sha256(archive())), None)).unwrap();
}

#[test]
fn rejects_truncated_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let error = error_for(
        dir.path(),
        &set(&serve(archive(), Behavior::TruncateAfter(0)).url, None, Some(&digest())),
    );
    assert!(error.contains("cannot download"), "{error}");
    let half = archive()[..700].to_vec().leak();
    let error =
        error_for(dir.path(), &set(&serve(half, Behavior::Normal).url, None, Some(&digest())));
    assert!(error.contains("all sources failed"), "{error}");
}

#[test]
fn rejects_malicious_archives() {
    use tar::EntryType::{Char, Link, Regular, Symlink};
    let cases = [
        ("../../evil", Regular, "unsafe path"),
        ("/tmp/evil", Regular, "unsafe path"),
        ("a/../../evil", Regular, "unsafe path"),
        ("a/link", Symlink, "link or device"),
        ("a/link", Link, "link or device"),
        ("a/device", Char, "link or device"),
        ("other/file", Regular, "contains no a/"),
    ];
    for (path, kind, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let bytes = tar(path, kind).leak();
        let set = set(&serve(bytes, Behavior::Normal).url, Some(&hash::sha256(bytes)), None);
        let error = error_for(dir.path(), &set);
        assert!(error.contains(expected), "{path}: {error}");
        assert!(!dir.path().join("evil").exists() && !Path::new("/tmp/evil").exists());
    }
}

#[test]
fn failed_download_keeps_the_existing_set() {
    let dir = tempfile::tempdir().unwrap();
    let installed = dir.path().join("a-set");
    fetch(dir.path(), &set(&serve(archive(), Behavior::Normal).url, None, Some(&digest())))
        .unwrap();
    // The catalog now names a version that the server does not have.
    let newer = set(&serve(archive(), Behavior::NotFound).url, None, Some(&"0".repeat(64)));
    assert!(!is_complete(&installed, &newer));
    assert!(fetch(dir.path(), &newer).is_err());
    assert_eq!(fs::read(installed.join("b/one")).unwrap(), b"hello");
}

#[test]
fn adopts_user_provided_directory_with_matching_digest() {
    let dir = tempfile::tempdir().unwrap();
    let installed = dir.path().join("a-set");
    fs::create_dir_all(installed.join("b")).unwrap();
    fs::write(installed.join("b/one"), "other").unwrap();
    let set = set(&serve(archive(), Behavior::NotFound).url, None, Some(&digest()));
    assert!(fetch(dir.path(), &set).unwrap_err().to_string().contains("move it away"));
    fs::write(installed.join("b/one"), "hello").unwrap();
    fetch(dir.path(), &set).unwrap();
    assert!(is_complete(&installed, &set));
}

#[test]
fn concurrent_fetches_download_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(archive(), Behavior::Normal);
    let set = set(&server.url, None, Some(&digest()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch(dir.path(), &set).unwrap());
        }
    });
    assert_eq!(server.requests.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn rejects_malicious_nested_archives() {
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
        let server = serve(bytes, Behavior::Normal);
        let mut set = set(&server.url, Some(&hash::sha256(bytes)), None);
        set.source[0].archive[0].inside = Some("deep/inner.tar".into());
        (server, set)
    };
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (around(&tar("../../evil", Regular), Regular), "unsafe path"),
        (around(&tar("a/link", Symlink), Regular), "link or device"),
        (around(&tar("other/file", Regular), Regular), "contains no a/"),
        (around(b"", Symlink), "link or device"),
        (archive(), "contains no deep/inner.tar"),
    ];
    for (bytes, expected) in cases {
        let (_server, set) = nested(bytes);
        let error = error_for(dir.path(), &set);
        assert!(error.contains(expected), "{error}");
    }
    let (_server, set) = nested(around(archive(), Regular));
    fetch(dir.path(), &set).unwrap();
    assert_eq!(fs::read(dir.path().join("a-set/b/one")).unwrap(), b"hello");
    assert!(!dir.path().join(".a-set.partial").exists());
}

#[test]
fn refetches_a_set_without_its_transcripts() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = tar("a/x.transcription", tar::EntryType::Regular).leak();
    let server = serve(bytes, Behavior::Normal);
    let mut set = set(&server.url, Some(&hash::sha256(bytes)), None);
    fetch(dir.path(), &set).unwrap();
    let installed = dir.path().join("a-set");
    assert!(is_complete(&installed, &set));
    set.transcripts = Some(transcripts::Layout::Sphinx);
    assert!(!is_complete(&installed, &set), "fetched by an older version");
    // The archive contains no recordings, so the conversion fails and the old set stays.
    let error = format!("{:#}", fetch(dir.path(), &set).unwrap_err());
    assert!(error.contains("no recording has a transcript"), "{error}");
    assert!(installed.join("b/x.transcription").exists());
}
