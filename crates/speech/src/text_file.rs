//! Reads text files that users wrote.

use std::fs;
use std::path::Path;

use data2vec_core::{Error, Result};

/// Reads a text file, without a byte order mark.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    // Checked before opening: reading a named pipe without a writer would block.
    let meta = fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if !meta.is_file() {
        return Err(Error::file(path, "is not a file"));
    }
    let mut text = fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::InvalidData => Error::file(path, "is not UTF-8 text"),
        _ => Error::io(path, source),
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}
