//! Temporary files, which become permanent by a rename.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// Creates a file in `folder` that is removed when dropped, unless it is persisted.
///
/// Its permissions follow the umask, so that users can share a cache.
pub(crate) fn create(folder: &Path, prefix: &str, suffix: &str) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(prefix).suffix(suffix).permissions(Permissions::from_mode(0o666));
    builder.tempfile_in(folder)
}
