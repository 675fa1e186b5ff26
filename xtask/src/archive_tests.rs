#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

#[path = "../../tests/src/fuzz.rs"]
mod fuzz;

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 100 };

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Creates a Debian package with `data` as the member `name`.
fn deb(data: &[u8], name: &str) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, content) in
        [("debian-binary", b"2.0\n".as_slice()), ("control.tar", b"odd"), (name, data)]
    {
        writeln!(bytes, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, 100_644, content.len())
            .unwrap();
        bytes.extend(content);
        if content.len() % 2 == 1 {
            bytes.push(b'\n');
        }
    }
    bytes
}

fn read(bytes: &[u8], limits: Limits) -> Result<Vec<(String, bool, Vec<u8>)>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("archive");
    fs::write(&path, bytes)?;
    let mut found = Vec::new();
    walk(&path, limits, &mut |entry| {
        let mut content = Vec::new();
        entry.content.read_to_end(&mut content)?;
        found.push((entry.path.to_owned(), entry.is_file, content));
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn reads_all_formats() {
    let files: [(&str, &[u8]); 2] = [("./a/one", b"1"), ("two", b"22")];
    let expected =
        [(String::from("a/one"), true, b"1".to_vec()), (String::from("two"), true, b"22".to_vec())];
    let plain = tar(&files);
    let zipped = zip::tests::archive(&[("a/one", b"1", true), ("two", b"22", false)]);
    for bytes in [
        plain.clone(),
        gz(&plain),
        zipped,
        deb(&plain, "data.tar"),
        deb(&gz(&plain), "data.tar.gz/"),
    ] {
        assert_eq!(read(&bytes, LIMITS).unwrap(), expected);
    }
}

/// Fixtures made by `printf hello > one && tar c one | xz` and `zstd`.
#[test]
fn reads_xz_and_zstd() {
    for bytes in [
        &include_bytes!("../fixtures/hello.tar.xz")[..],
        include_bytes!("../fixtures/hello.tar.zst"),
    ] {
        assert_eq!(read(bytes, LIMITS).unwrap(), [(String::from("one"), true, b"hello".to_vec())]);
        assert!(read(&bytes[..bytes.len() / 2], LIMITS).is_err());
    }
}

#[test]
fn rejects_decompression_bombs() {
    let zeros = vec![0; 2 << 20];
    for bytes in [gz(&tar(&[("zeros", &zeros)])), zip::tests::archive(&[("zeros", &zeros, true)])] {
        let error = read(&bytes, LIMITS).unwrap_err();
        assert!(format!("{error:#}").contains("far more"), "{error:#}");
    }
    let names: Vec<String> = (0..101).map(|i| i.to_string()).collect();
    let many: Vec<(&str, &[u8])> =
        names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    assert!(format!("{:#}", read(&tar(&many), LIMITS).unwrap_err()).contains("100 entries"));
}

#[test]
fn links_and_devices_are_not_files() {
    let mut builder = tar::Builder::new(Vec::new());
    for kind in
        [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Char, tar::EntryType::Fifo]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, "link", "/etc/passwd").unwrap();
    }
    let found = read(&builder.into_inner().unwrap(), LIMITS).unwrap();
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|(_, is_file, _)| !is_file));
}

#[test]
fn detects_corruption() {
    let mut zipped = zip::tests::archive(&[("a", b"content", false)]);
    zipped[31] ^= 1;
    assert!(format!("{:#}", read(&zipped, LIMITS).unwrap_err()).contains("corrupt"));
    let packed = gz(&tar(&[("a", &[5; 5_000])]));
    assert!(read(&packed[..packed.len() - 20], LIMITS).is_err());
    assert!(read(&deb(b"x", "other.tar"), LIMITS).is_err());
    assert!(
        read(b"no archive at all, only some text that is longer than a block", LIMITS).is_err()
    );
}

#[test]
fn rejects_unsafe_paths() {
    let dir = Path::new("/tree");
    assert_eq!(safe_path(dir, "a/b.wav").unwrap(), Path::new("/tree/a/b.wav"));
    for path in ["", "..", "../a", "a/../../b", "/etc/passwd", "a\\..\\b", "c:/a", "a/\0"] {
        assert!(safe_path(dir, path).is_err(), "{path}");
    }
}

#[test]
fn survives_mutations() {
    fuzz::fuzz("archive", |bytes| read(bytes, LIMITS).is_ok());
}
