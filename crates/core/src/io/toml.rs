//! TOML files with error messages that name the line.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use crate::io::file::write_file;
use crate::{Error, Result};

/// Reads a TOML file.
///
/// # Errors
/// Returns [`Error::Io`] if the file cannot be read and [`Error::File`] naming the line if it is
/// invalid.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let content = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    toml::from_str(&content).map_err(|e| Error::file(path, toml_error(&content, &e)))
}

/// Writes `value` to a TOML file, atomically.
///
/// # Errors
/// Returns [`Error::File`] if `value` cannot be serialised and [`Error::Io`] if the file cannot be
/// written.
pub fn write_toml(path: &Path, value: &impl Serialize) -> Result<()> {
    let content = toml::to_string(value).map_err(|e| Error::file(path, e.to_string()))?;
    write_file(path, content)
}

/// Formats a parse error of the TOML document `content` with number and content of the line.
pub fn toml_error(content: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| content.get(..span.start)).unwrap_or_default();
    let number = before.matches('\n').count();
    let line = content.lines().nth(number).unwrap_or_default().trim();
    format!("line {} (`{line}`): {}", number + 1, error.message())
}
