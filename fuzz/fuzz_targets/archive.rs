#![no_main]
#![allow(dead_code, reason = "included from xtask, which uses more of it")]

#[path = "../../xtask/src/archive.rs"]
mod archive;
#[path = "../../xtask/src/zip.rs"]
mod zip;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new().expect("writable");
    std::fs::write(file.path(), bytes).expect("writable");
    let limits = archive::Limits { bytes: 1 << 20, entries: 100 };
    let _ = archive::walk(file.path(), limits, &mut |entry| {
        entry.content.read_to_end(&mut Vec::new())?;
        Ok(())
    });
});
