#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::http::tests::{Manner, serve};
use crate::libtorch::pins::{LINUX_AARCH64, LINUX_X86_64, MACOS_ARM64};
use crate::zip::tests::{Memory, archive};

/// SHA-256 of "header", as in a RECORD and as a hexadecimal number.
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

/// A hexadecimal number in RECORD's Base64.
fn encode(hex: &str) -> String {
    let bits: String =
        hex.chars().map(|digit| format!("{:04b}", digit.to_digit(16).unwrap())).collect();
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let value = |chunk: &[u8]| {
        usize::from_str_radix(&format!("{:0<6}", std::str::from_utf8(chunk).unwrap()), 2).unwrap()
    };
    bits.as_bytes().chunks(6).map(|chunk| letters.as_bytes()[value(chunk)] as char).collect()
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
fn pins_are_hashes_and_their_versions_are_fixed() {
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
fn records_are_parsed() {
    assert_eq!(encode(HEADER[1]), HEADER[0]);
    let record = record();
    let hashes = parse_record(&record);
    assert_eq!(hashes.get("torch/include/a.h").map(String::as_str), Some(HEADER[1]));
    assert_eq!(hashes.get("torch/lib/lib,x.so"), Some(&hash::sha256(b"library")));
    assert_eq!(hashes.len(), 2);
}

#[test]
fn only_what_the_record_proves_is_chosen() {
    let record = record();
    let chosen = choose(&pin(&record), &mut Memory(wheel(&record))).unwrap();
    assert_eq!(
        chosen.iter().map(|wanted| wanted.to.as_str()).collect::<Vec<_>>(),
        ["include/a.h", "lib/x.so"]
    );
    assert_eq!(runs(&chosen).len(), 2);
    let error = choose(&pin("other"), &mut Memory(wheel(&record))).err().unwrap();
    assert!(error.to_string().contains("not the one pinned"));
}

/// From the directory on a server to unpacked files, with a first attempt that broke off.
fn install(record: &str, manner: Manner, dir: &Path) -> Result<()> {
    let parts = dir.join("parts");
    fs::create_dir_all(&parts)?;
    let server = serve(wheel(record).leak(), manner);
    let client = Client::impatient();
    let wheel = Wheel::open(&pin(record), Some(&server.url), &client, &[], &parts)?;
    let Place::Remote { runs, .. } = &wheel.place else { bail!("not read by ranges") };
    fs::write(&runs[0].1, "PK")?;
    fetch(std::slice::from_ref(&wheel), &client)?;
    wheel.unpack(&dir.join("tree"), &ProgressBar::hidden())
}

#[test]
fn a_wheel_is_installed_by_ranges() {
    let dir = tempfile::tempdir().unwrap();
    install(&record(), Manner::Good, dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("tree/include/a.h")).unwrap(), b"header");
    assert_eq!(fs::read(dir.path().join("tree/lib/x.so")).unwrap(), b"library");
}

#[test]
fn a_wheel_is_installed_over_a_bad_connection() {
    let dir = tempfile::tempdir().unwrap();
    // Enough for the directory, too little for the rest.
    install(&record(), Manner::CutAfter(70_000), dir.path()).unwrap();
}

#[test]
fn wrong_content_is_refused_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let record = record().replace(HEADER[0], &encode(&hash::sha256(b"other")));
    let error = format!("{:#}", install(&record, Manner::Good, dir.path()).unwrap_err());
    assert!(error.contains("came damaged") && error.contains("a.h"), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("parts")).unwrap().count(), 0);
}

#[test]
#[ignore = "downloads 340 MB: run it when a pin changes"]
fn every_platforms_pins_are_right() {
    for platform in [LINUX_X86_64, LINUX_AARCH64, MACOS_ARM64] {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("parts");
        fs::create_dir(&parts).unwrap();
        super::install(&platform, &locate(&platform).unwrap(), &dir.path().join("tree"), &parts)
            .unwrap();
    }
}
