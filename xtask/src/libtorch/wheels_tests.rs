#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::http::tests::{Behavior, serve};
use crate::libtorch::pins::{LINUX_AARCH64, LINUX_X86_64, MACOS_ARM64};
use crate::zip::tests::{Memory, archive};

/// SHA-256 of "header" in Base64, as in a RECORD, and in hexadecimal.
const HEADER: [&str; 2] = [
    "HgWEol2fQ79cvQrsAesa8iIO0IW05_GDew2JlYyuNTo",
    "1e0584a25d9f43bf5cbd0aec01eb1af2220ed085b4e7f1837b0d89958cae353a",
];

fn record() -> String {
    let library = hash::sha256(b"library");
    format!(
        "torch/include/a.h,sha256={},6\n\"torch/lib/lib,x.so\",sha256={},7\nx.dist-info/RECORD,,\n",
        HEADER[0],
        encode(&library)
    )
}

/// Converts hexadecimal to the Base64 of a RECORD.
fn encode(hex: &str) -> String {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    URL_SAFE_NO_PAD.encode(bytes)
}

fn wheel(record: &str) -> Vec<u8> {
    let gap = vec![3; 600 << 10];
    archive(&[
        ("torch/include/", b"", false),
        ("torch/include/a.h", b"header", true),
        ("torch/gap", &gap, false),
        ("torch/lib/lib,x.so", b"library", false),
        ("x.dist-info/RECORD", record.as_bytes(), true),
    ])
}

fn pin(record: &str) -> Pin {
    Pin {
        requirement: "torch",
        sha256: "0000000000000000000000000000000000000000000000000000000000000000",
        record: hash::sha256(record.as_bytes()).leak(),
        take: &[("torch/include/", "include/"), ("torch/lib/lib,x.so", "lib/x.so")],
    }
}

#[test]
fn pins_have_hashes_and_exact_versions() {
    for platform in [LINUX_X86_64, LINUX_AARCH64, MACOS_ARM64] {
        assert!(
            platform
                .wheels
                .iter()
                .all(|pin| hash::is_sha256(pin.sha256) && hash::is_sha256(pin.record))
        );
        assert!(platform.wheels.iter().all(|pin| pin.requirement().contains("==")));
        assert_eq!(platform.wheels[0].requirement(), format!("torch=={VERSION}"));
    }
}

#[test]
fn parses_records() {
    assert_eq!(encode(HEADER[1]), HEADER[0]);
    let record = record();
    let hashes = parse_record(&record);
    assert_eq!(hashes.get("torch/include/a.h").map(String::as_str), Some(HEADER[1]));
    assert_eq!(hashes.get("torch/lib/lib,x.so"), Some(&hash::sha256(b"library")));
    assert_eq!(hashes.len(), 2);
}

#[test]
fn selects_members_of_the_pinned_record() {
    let record = record();
    let selected = select_members(&pin(&record), &mut Memory(wheel(&record))).unwrap();
    assert_eq!(
        selected.iter().map(|selected| selected.to.as_str()).collect::<Vec<_>>(),
        ["include/a.h", "lib/x.so"]
    );
    assert_eq!(coalesce(&selected).len(), 2);
    let error = select_members(&pin("other"), &mut Memory(wheel(&record))).err().unwrap();
    assert!(error.to_string().contains("does not match the pin"));
}

/// Installs a wheel from a server, resuming an interrupted download.
fn install(record: &str, behavior: Behavior, dir: &Path) -> Result<()> {
    let parts = dir.join("parts");
    fs::create_dir_all(&parts)?;
    let server = serve(wheel(record).leak(), behavior);
    let client = Client::without_backoff();
    let wheel = Wheel::open(&pin(record), Some(&server.url), &client, &[], &parts)?;
    let Location::Remote { ranges, .. } = &wheel.location else { bail!("not read by ranges") };
    fs::write(&ranges[0].1, "PK")?;
    fetch(std::slice::from_ref(&wheel), &client)?;
    wheel.extract(&dir.join("tree"), &ProgressBar::hidden())
}

#[test]
fn installs_wheel_by_ranges() {
    let dir = tempfile::tempdir().unwrap();
    install(&record(), Behavior::Normal, dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("tree/include/a.h")).unwrap(), b"header");
    assert_eq!(fs::read(dir.path().join("tree/lib/x.so")).unwrap(), b"library");
}

#[test]
fn installs_wheel_over_unreliable_connection() {
    let dir = tempfile::tempdir().unwrap();
    // Enough for the directory, not for the members.
    install(&record(), Behavior::TruncateAfter(70_000), dir.path()).unwrap();
}

#[test]
fn rejects_and_discards_wrong_content() {
    let dir = tempfile::tempdir().unwrap();
    let record = record().replace(HEADER[0], &encode(&hash::sha256(b"other")));
    let error = format!("{:#}", install(&record, Behavior::Normal, dir.path()).unwrap_err());
    assert!(error.contains("is corrupt") && error.contains("a.h"), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("parts")).unwrap().count(), 0);
}

#[test]
#[ignore = "downloads 340 MB; run it when a pin changes"]
fn pins_of_all_platforms_are_valid() {
    for platform in [LINUX_X86_64, LINUX_AARCH64, MACOS_ARM64] {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("parts");
        fs::create_dir(&parts).unwrap();
        super::install(&platform, &resolve(&platform).unwrap(), &dir.path().join("tree"), &parts)
            .unwrap();
    }
}
