#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

use super::*;

/// Creates a ZIP archive of `(name, content, deflated)` files.
pub fn archive(files: &[(&str, &[u8], bool)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content, deflated) in files {
        let data = if *deflated {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        } else {
            content.to_vec()
        };
        let mut crc = Crc::new();
        crc.update(content);
        let mut shared = Vec::new();
        for value in [0, u16::from(*deflated) * 8, 0, 0] {
            shared.extend(u16::to_le_bytes(value));
        }
        for value in [crc.sum(), data.len() as u32, content.len() as u32] {
            shared.extend(u32::to_le_bytes(value));
        }
        shared.extend(u16::to_le_bytes(name.len() as u16));
        shared.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\x03\x14\0".iter().chain(&shared));
        // No comment, first disk, no internal attributes; then the mode of a regular file.
        directory.extend([0; 6]);
        directory.extend(u32::to_le_bytes(0o100_644 << 16));
        directory.extend(u32::to_le_bytes(bytes.len() as u32));
        directory.extend(name.as_bytes());
        bytes.extend(b"PK\x03\x04\x14\0".iter().chain(&shared));
        bytes.extend(name.as_bytes());
        bytes.extend(data);
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([u16::to_le_bytes(files.len() as u16); 2].as_flattened());
    bytes.extend(u32::to_le_bytes(directory.len() as u32));
    bytes.extend(u32::to_le_bytes(start));
    bytes.extend([0, 0]);
    bytes
}

/// [`ReadRange`] of bytes in memory.
pub struct Memory(pub Vec<u8>);

impl ReadRange for Memory {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_range(&mut self, range: Range<u64>) -> Result<Vec<u8>> {
        Ok(self.0[range.start as usize..range.end as usize].to_vec())
    }
}

fn content(bytes: &[u8], member: &Member) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    member
        .open(&bytes[member.span.start as usize..member.span.end as usize])?
        .read_to_end(&mut plain)?;
    Ok(plain)
}

#[test]
fn reads_members() {
    let long = vec![b'x'; 200_000];
    let bytes = archive(&[("a.txt", b"one", false), ("b/c", &long, true), ("empty", b"", false)]);
    let members = directory(&mut Memory(bytes.clone())).unwrap();
    assert_eq!(
        members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(),
        ["a.txt", "b/c", "empty"]
    );
    assert_eq!(content(&bytes, &members[0]).unwrap(), b"one");
    assert_eq!(content(&bytes, &members[1]).unwrap(), long);
    assert_eq!(content(&bytes, &members[2]).unwrap(), b"");
    assert!(members[1].span.end - members[1].span.start < 1_000);
    assert_eq!(members[1].size, 200_000);
}

#[test]
fn reads_archive_with_comment() {
    let mut bytes = archive(&[("a", b"one", false)]);
    let at = bytes.len() - 2;
    bytes[at] = 22;
    bytes.extend(b"PK\x05\x06 is only a comment");
    bytes.truncate(at + 2 + 22);
    assert_eq!(directory(&mut Memory(bytes)).unwrap().len(), 1);
}

#[test]
fn reads_directory_larger_than_the_tail() {
    let names: Vec<String> = (0..2_000).map(|i| format!("{i:0>40}")).collect();
    let files: Vec<(&str, &[u8], bool)> =
        names.iter().map(|name| (name.as_str(), b"x".as_slice(), false)).collect();
    assert_eq!(directory(&mut Memory(archive(&files))).unwrap().len(), 2_000);
}

#[test]
fn rejects_corrupt_archives() {
    assert!(directory(&mut Memory(Vec::new())).is_err());
    assert!(directory(&mut Memory(vec![0; 100])).is_err());
    let good = archive(&[("a", b"one", true)]);
    for cut in 1..good.len() {
        assert!(directory(&mut Memory(good[..cut].to_vec())).is_err(), "{cut}");
    }
    // Corrupt bytes must not cause a panic.
    for at in 0..good.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            for member in directory(&mut Memory(bytes.clone())).unwrap_or_default() {
                let _ = content(&bytes, &member);
            }
        }
    }
}

#[test]
fn limits_members_to_their_declared_size() {
    let mut bytes = archive(&[("a", &[7; 50_000], true)]);
    let at = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap() + 24;
    bytes[at..at + 4].copy_from_slice(&10_u32.to_le_bytes());
    let members = directory(&mut Memory(bytes.clone())).unwrap();
    assert_eq!(content(&bytes, &members[0]).unwrap().len(), 11);
}
