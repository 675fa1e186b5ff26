//! Builds programs outside of the workspace, as their users would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::Table;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository")
}

/// Reads a TOML file.
pub fn table(path: &Path) -> Table {
    fs::read_to_string(path).expect("text").parse().expect("TOML")
}

/// Returns cargo in the directory of a program, as if its user had called it.
pub fn cargo(program: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(program);
    // Variables that cargo set for this test would make build scripts run again.
    for (name, value) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let set_by_cargo =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| text.starts_with(p));
        if set_by_cargo || (text == "LIBTORCH" && Path::new(&value) == root().join(".libtorch")) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Builds the program in the directory `program` with the workspace's versions, profile and target
/// directory, so that only our own crates are compiled again. Returns the path of the binary `name`.
pub fn build(program: &Path, name: &str) -> PathBuf {
    fs::copy(root().join("Cargo.lock"), program.join("Cargo.lock")).expect("space");
    let this = std::env::current_exe().expect("a test"); // TARGET/PROFILE/deps/TEST
    let built = this.ancestors().nth(2).expect("a directory of programs");
    let profile = match built.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut build = cargo(program);
    build.args(["build", "--offline", "--profile", profile]);
    build.arg("--target-dir").arg(built.parent().expect("the target directory"));
    let mut settings = table(&root().join("Cargo.toml"));
    settings.retain(|name, _| name == "profile");
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("profile.toml");
    fs::write(&config, settings.to_string()).expect("space");
    let output = build.arg("--config").arg(&config).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    built.join(name)
}
