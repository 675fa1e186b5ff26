//! `cargo xtask test` and `cargo xtask ci`: run tests and all checks.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::data::{self, catalog::Catalog};
use crate::{libtorch, python, repo, train};

/// Data sets that the tests read from `data/sets`.
const TEST_DATA: [&str; 2] = ["asterisk-core-sounds-en", "pocketsphinx-testdata"];

/// Variable that names a Python interpreter with transformers and TensorBoard for tests that need
/// one.
const PYTHON: &str = "DATA2VEC_PYTHON";

/// Selects xtask with its own target directory, as the `cargo xtask` alias does.
const XTASK: [&str; 4] = ["--target-dir", "target/xtask", "--package", "xtask"];

/// Selects all packages but xtask.
const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "xtask"];

/// Sets up LibTorch and data, then runs all tests, or `cargo test ARGS`.
///
/// With `python`, sets `DATA2VEC_PYTHON` for the tests that compare with Python packages, which are
/// skipped without it.
pub fn test(root: &Path, python: bool, args: &[OsString]) -> Result<()> {
    let libtorch = libtorch::ensure(root, false, None)?;
    let catalog = Catalog::read(root)?;
    for name in TEST_DATA {
        data::ensure(root, &catalog, name)?;
    }
    // Tests of other packages run the `data2vec` program. The whole workspace includes it, with other
    // features of its dependencies than a build of it alone: that would compile both.
    if !args.is_empty() {
        train::build(root, &libtorch)?;
    }
    let mut tests = repo::cargo(root);
    tests.args(["test", "--release"]);
    if !selects_packages(args) {
        tests.args(WORKSPACE);
    }
    tests.args(args);
    if python && std::env::var_os(PYTHON).is_none() {
        tests.env(PYTHON, python::environment(root)?);
    }
    repo::run(repo::with_libtorch(&mut tests, &libtorch))?;
    if args.is_empty() {
        repo::run(repo::cargo(root).args(["test", "--release"]).args(XTASK))?;
    }
    Ok(())
}

/// Returns whether the arguments for cargo select packages.
fn selects_packages(args: &[OsString]) -> bool {
    let cargo_args = args.iter().map(|arg| arg.to_string_lossy()).take_while(|arg| arg != "--");
    cargo_args.into_iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

/// Checks format, lints and documentation, then runs all tests.
pub fn ci(root: &Path) -> Result<()> {
    repo::run(repo::cargo(root).args(["fmt", "--all", "--check"]))?;
    // With `doc-only`, lints and documentation need no LibTorch and compile no C++.
    let features = doc_only(root)?;
    let features: &[&str] = if features.is_empty() { &[] } else { &["--features", &features] };
    let deny = ["--", "--deny", "warnings"];
    repo::run(
        repo::cargo(root)
            .args(["clippy", "--release", "--all-targets"])
            .args(WORKSPACE)
            .args(features)
            .args(deny),
    )?;
    repo::run(
        repo::cargo(root).args(["clippy", "--release", "--all-targets"]).args(XTASK).args(deny),
    )?;
    let document = |args: &[&str], features: &[&str]| {
        let mut docs = repo::cargo(root);
        docs.env("RUSTDOCFLAGS", "--deny warnings");
        repo::run(docs.args(["doc", "--release", "--no-deps"]).args(args).args(features))
    };
    document(&WORKSPACE, features)?;
    document(&XTASK, &[])?;
    test(root, false, &[])
}

/// Returns `PACKAGE/doc-only` of every package with that feature, separated by commas.
fn doc_only(root: &Path) -> Result<String> {
    let mut metadata = repo::cargo(root);
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = metadata.output().context("cannot run `cargo metadata`")?;
    parse_doc_only(&output.stdout)
        .with_context(|| format!("`cargo metadata` failed: {}", python::last_line(&output.stderr)))
}

fn parse_doc_only(json: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        features: std::collections::HashMap<String, Vec<String>>,
    }
    let metadata: Metadata = serde_json::from_slice(json)?;
    let packages =
        metadata.packages.iter().filter(|package| package.features.contains_key("doc-only"));
    Ok(packages.map(|package| format!("{}/doc-only", package.name)).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn detects_package_selection() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(selects_packages(&args("-p data2vec-core")));
        assert!(selects_packages(&args("--test x --package=data2vec-core")));
        assert!(!selects_packages(&args("some_test -- -p")));
    }

    #[test]
    fn finds_packages_with_doc_only() {
        let json = r#"{"packages": [
            {"name": "a", "features": {"doc-only": ["tch/doc-only"], "default": []}},
            {"name": "b", "features": {}},
            {"name": "c", "features": {"doc-only": []}}
        ]}"#;
        assert_eq!(parse_doc_only(json.as_bytes()).unwrap(), "a/doc-only,c/doc-only");
        assert!(parse_doc_only(b"").is_err());
    }
}
