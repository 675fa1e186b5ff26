//! The repository, and the commands that are run in it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::libtorch::{self, LibTorch};

/// The top of the repository, also when the tool was built in another checkout than it runs in.
pub fn root() -> Result<PathBuf> {
    let built_in = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(built_in, PathBuf::from);
    manifest.parent().map(Path::to_path_buf).context("xtask must lie in the repository")
}

/// `path` as a user would write it here: relative where it lies below the current folder.
pub fn shown(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    let below = here.as_deref().and_then(|here| path.strip_prefix(here).ok());
    below.filter(|below| !below.as_os_str().is_empty()).unwrap_or(path).to_path_buf()
}

/// The cargo that runs this tool.
pub fn cargo(root: &Path) -> Command {
    let mut command =
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root);
    forget_ourselves(&mut command);
    if std::env::var_os("LIBTORCH")
        .is_some_and(|dir| Path::new(&dir) == libtorch::default_dir(root))
    {
        // Cargo sets it by itself, from `.cargo/config.toml`.
        command.env_remove("LIBTORCH");
    }
    command
}

/// Takes out what `cargo run` set for this tool: build scripts that look at such variables would run again for nothing.
fn forget_ourselves(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PRIMARY_PACKAGE"];
        if ours.contains(&&*text)
            || text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_BIN_")
        {
            command.env_remove(&name);
        }
    }
}

/// Lets a command build against a LibTorch and load it.
///
/// `.cargo/config.toml` and its rpath do the same for the project's own `.libtorch`; what `LIBTORCH` says must not change
/// between commands, or torch-sys is compiled again.
pub fn with_libtorch<'c>(command: &'c mut Command, libtorch: &LibTorch) -> &'c mut Command {
    if libtorch.users_own {
        command.env("LIBTORCH", &libtorch.dir);
    } else {
        command.env_remove("LIBTORCH");
    }
    let variable = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
    let before = std::env::var_os(variable).filter(|before| !before.is_empty());
    let folders: Vec<PathBuf> = std::iter::once(libtorch.lib())
        .chain(before.iter().flat_map(std::env::split_paths))
        .collect();
    if let Ok(joined) = std::env::join_paths(folders) {
        command.env(variable, joined);
    }
    command
}

/// Runs a command to its end, its output seen, and fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    tell!("$ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed, see above");
    }
    Ok(())
}

/// Becomes the command, so that signals reach it and its exit code is ours. Elsewhere than on Unix, waits for it.
pub fn become_command(command: &mut Command) -> Result<ExitCode> {
    let line = line(command);
    tell!("$ {line}");
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        let error = command.exec();
        Err(error).with_context(|| format!("cannot run `{line}`"))
    }
    #[cfg(not(unix))]
    {
        let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
        Ok(status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .map_or(ExitCode::FAILURE, ExitCode::from))
    }
}

/// As one would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // The toolchain's cargo has a long path that tells nobody anything.
    let program =
        if program.file_stem() == Some(OsStr::new("cargo")) { Path::new("cargo") } else { program };
    let words = std::iter::once(shown(program).into_os_string())
        .chain(command.get_args().map(OsStr::to_os_string));
    let quoted = words.map(|word| {
        let word = word.to_string_lossy().into_owned();
        if word.is_empty() || word.contains(char::is_whitespace) {
            format!("'{word}'")
        } else {
            word
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.args(["run", "--set", "a = b"]);
        assert_eq!(line(&command), "cargo run --set 'a = b'");
    }

    #[test]
    fn the_projects_own_libtorch_leaves_the_variable_alone() {
        let libtorch =
            LibTorch { dir: PathBuf::from("/x"), origin: String::new(), users_own: false };
        let value = |libtorch: &LibTorch, name: &str| {
            let mut command = Command::new("true");
            with_libtorch(&mut command, libtorch);
            command
                .get_envs()
                .find(|(key, _)| *key == name)
                .and_then(|(_, value)| value)
                .map(OsStr::to_os_string)
        };
        assert_eq!(value(&libtorch, "LIBTORCH"), None);
        let users = LibTorch { users_own: true, ..libtorch };
        assert_eq!(value(&users, "LIBTORCH"), Some("/x".into()));
        if cfg!(target_os = "linux") {
            let path = value(&users, "LD_LIBRARY_PATH").unwrap_or_default();
            assert!(path.to_string_lossy().starts_with("/x/lib"));
        }
    }
}
