//! Text files of users.

use std::{fs, path::Path};

use data2vec_core::{Error, Result};

/// A whole text, without the mark that some editors set before it.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    // Asked before it is opened: a pipe that nobody writes to would be waited for.
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
