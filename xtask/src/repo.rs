//! Paths of the repository, and commands run in it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::libtorch::{self, LibTorch};

/// Returns the repository root of the current checkout, even if the tool was built in another one.
pub fn root() -> Result<PathBuf> {
    let at_build = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(at_build, PathBuf::from);
    manifest
        .parent()
        .map(Path::to_path_buf)
        .context("cannot find the repository: CARGO_MANIFEST_DIR has no parent directory")
}

/// Shortens `path` for messages: relative to the working directory if below it.
pub fn display_path(path: &Path) -> PathBuf {
    let cwd = std::env::current_dir().ok();
    let relative = cwd.as_deref().and_then(|cwd| path.strip_prefix(cwd).ok());
    relative.filter(|path| !path.as_os_str().is_empty()).unwrap_or(path).to_path_buf()
}

/// Returns a command for the cargo that runs this tool, in the repository root.
pub fn cargo(root: &Path) -> Command {
    let mut command =
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root);
    remove_xtask_vars(&mut command);
    if std::env::var_os("LIBTORCH")
        .is_some_and(|dir| Path::new(&dir) == libtorch::default_dir(root))
    {
        // cargo sets it from `.cargo/config.toml`.
        command.env_remove("LIBTORCH");
    }
    command
}

/// Removes the variables that `cargo run` set for this tool: build scripts that depend on them
/// would run again for no reason.
fn remove_xtask_vars(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let set_by_cargo =
            ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PRIMARY_PACKAGE"];
        if set_by_cargo.contains(&&*text)
            || text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_BIN_")
        {
            command.env_remove(&name);
        }
    }
}

/// Sets the environment of a command so that it builds against `libtorch` and loads it.
///
/// For the project's own `.libtorch`, `.cargo/config.toml` sets `LIBTORCH` and an rpath. `LIBTORCH`
/// must not change between commands, or cargo recompiles torch-sys.
pub fn with_libtorch<'c>(command: &'c mut Command, libtorch: &LibTorch) -> &'c mut Command {
    if libtorch.user_provided {
        command.env("LIBTORCH", &libtorch.dir);
    } else {
        command.env_remove("LIBTORCH");
    }
    let variable = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
    let inherited = std::env::var_os(variable).filter(|paths| !paths.is_empty());
    let dirs: Vec<PathBuf> = std::iter::once(libtorch.lib())
        .chain(inherited.iter().flat_map(std::env::split_paths))
        .collect();
    if let Ok(joined) = std::env::join_paths(dirs) {
        command.env(variable, joined);
    }
    command
}

/// Prints and runs a command with inherited output; fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    status!("$ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}; see its output above");
    }
    Ok(())
}

/// Replaces this process by the command (`exec`), so that signals reach it and its exit code is
/// returned. Runs it as a child where there is no `exec`.
pub fn exec(command: &mut Command) -> Result<ExitCode> {
    let line = command_line(command);
    status!("$ {line}");
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

/// Formats a command as a user would type it.
pub fn command_line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // The path of the toolchain's cargo is long and of no use to the reader.
    let program =
        if program.file_stem() == Some(OsStr::new("cargo")) { Path::new("cargo") } else { program };
    let words = std::iter::once(display_path(program).into_os_string())
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
    fn quotes_arguments_with_spaces() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.args(["run", "--set", "a = b"]);
        assert_eq!(command_line(&command), "cargo run --set 'a = b'");
    }

    #[test]
    fn sets_libtorch_only_for_user_provided_copies() {
        let libtorch =
            LibTorch { dir: PathBuf::from("/x"), origin: String::new(), user_provided: false };
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
        let user_provided = LibTorch { user_provided: true, ..libtorch };
        assert_eq!(value(&user_provided, "LIBTORCH"), Some("/x".into()));
        if cfg!(target_os = "linux") {
            let path = value(&user_provided, "LD_LIBRARY_PATH").unwrap_or_default();
            assert!(path.to_string_lossy().starts_with("/x/lib"));
        }
    }
}
