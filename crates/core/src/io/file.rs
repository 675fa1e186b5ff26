//! Atomic replacement of files.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// Prefix of files and directories that are being written or removed; they are never read.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// Replaces the file `path` atomically: readers see the old or the new content, never a part of it.
///
/// `write` fills a temporary file in the same directory, or replaces it by another file. The result
/// is flushed to disk and renamed; its permissions follow the umask.
///
/// # Errors
/// Returns the error of `write`, or [`Error::Io`] if the file cannot be replaced; then the old file
/// stays as it was.
pub fn replace_file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let io_error = |e| Error::io(path, e);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temp = create_temp(dir).map_err(io_error)?;
    let permissions = temp.as_file().metadata().map_err(io_error)?.permissions();
    let temp = temp.into_temp_path();
    write(&temp)?;
    fs::set_permissions(&temp, permissions)
        .and_then(|()| File::open(&temp)?.sync_all())
        .map_err(io_error)?;
    temp.persist(path).map_err(|e| io_error(e.error))
}

/// Replaces the file `path` by one with the given content, see [`replace_file`].
///
/// # Errors
/// Returns [`Error::Io`] if the file cannot be replaced; then the old file stays as it was.
pub fn write_file(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    replace_file(path, |temp| fs::write(temp, content).map_err(|e| Error::io(path, e)))
}

fn create_temp(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The default of temporary files is 0600; the umask applies to this mode.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_content_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.txt");
        write_file(&path, "old").expect("written");
        write_file(&path, "new").expect("written");
        let failed = replace_file(&path, |temp| {
            fs::write(temp, "part").expect("written");
            Err(Error::Input("failed".into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path).expect("UTF-8"), "new");
        assert_eq!(fs::read_dir(dir.path()).expect("entries").count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let [plain, replaced, tensors] =
            ["plain", "replaced", "tensors"].map(|name| dir.path().join(name));
        fs::write(&plain, "").expect("written");
        write_file(&replaced, "").expect("written");
        let weights = [("w".to_owned(), tch::Tensor::from(1.0_f32))].into();
        crate::io::checkpoint::write_tensors(&tensors, &weights).expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode();
        assert_eq!([mode(&replaced), mode(&tensors)], [mode(&plain); 2]);
    }
}
