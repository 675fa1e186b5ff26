//! SHA-256 of streams, files and directories.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::files;

/// Writer that computes the SHA-256 of everything it passes on.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    written: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), written: 0 }
    }

    /// Flushes; returns the number of bytes written and their SHA-256.
    pub fn finish(mut self) -> io::Result<(u64, [u8; 32])> {
        self.inner.flush()?;
        Ok((self.written, self.hasher.finalize().into()))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Returns the SHA-256 of `bytes` in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns the SHA-256 of a file's content in hexadecimal.
pub fn sha256_file(path: &Path) -> Result<String> {
    let read = || -> io::Result<[u8; 32]> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher.finalize().into()),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    read().map(|hash| hex(&hash)).with_context(|| format!("cannot read {}", path.display()))
}

/// Digest of a directory's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeDigest {
    /// SHA-256 of the output of `sha256sum` for all files sorted by path, so that a shell can check
    /// it.
    pub sha256: String,
    /// Number of files.
    pub files: u64,
    /// Total bytes of the files.
    pub bytes: u64,
}

/// Returns the digest of all files below `dir` except the relative paths in `skip`.
pub fn tree(dir: &Path, skip: &[&str]) -> Result<TreeDigest> {
    let mut paths = files::list(dir)?;
    paths.retain(|path| !skip.contains(&path.as_str()));
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    for path in &paths {
        let file = dir.join(path);
        bytes += fs::metadata(&file)?.len();
        hasher.update(format!("{}  {path}\n", sha256_file(&file)?));
    }
    Ok(TreeDigest { sha256: hex(&hasher.finalize()), files: paths.len() as u64, bytes })
}

/// Formats bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns whether `text` is a SHA-256 as [`sha256`] formats it.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn tree_digest_matches_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/two"), "2").unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        fs::write(dir.path().join("b.txt"), "3").unwrap();
        fs::write(dir.path().join(".complete"), "x").unwrap();
        let lines =
            format!("{}  a\n{}  b.txt\n{}  b/two\n", sha256(b"1"), sha256(b"3"), sha256(b"2"));
        let digest = tree(dir.path(), &[".complete"]).unwrap();
        assert_eq!(digest, TreeDigest { sha256: sha256(lines.as_bytes()), files: 3, bytes: 3 });
        assert!(is_sha256(&digest.sha256));
    }

    #[test]
    fn computes_sha256() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(!is_sha256("E3"));
    }
}
