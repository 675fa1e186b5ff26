//! `cargo xtask test` and `cargo xtask ci`.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::data::{self, catalog::Catalog};
use crate::{libtorch, python, repo, train};

/// What the tests read. They look in `data/sets`.
const TEST_DATA: [&str; 2] = ["asterisk-core-sounds-en", "pocketsphinx-testdata"];

/// Names an interpreter with transformers and TensorBoard for the tests that want one.
const PYTHON: &str = "DATA2VEC_PYTHON";

/// xtask's own build folder: the one that the `cargo xtask` alias names.
const OWN_TARGET: [&str; 4] = ["--target-dir", "target/xtask", "--package", "xtask"];

/// Everything but xtask, as cargo selects it.
const ALL: [&str; 3] = ["--workspace", "--exclude", "xtask"];

/// Sets up what tests need, then runs them all, or with `args` those that `cargo test ARGS` would.
/// With `python`, what compares with Python's packages finds them; without, it is skipped unless
/// `DATA2VEC_PYTHON` is set.
pub fn test(root: &Path, python: bool, args: &[OsString]) -> Result<()> {
    let libtorch = libtorch::ensure(root, false, None)?;
    let catalog = Catalog::read(root)?;
    for name in TEST_DATA {
        data::ensure(root, &catalog, name)?;
    }
    // Tests run the program, which is no part of their own package.
    train::build(root, &libtorch)?;
    let mut tests = repo::cargo(root);
    tests.args(["test", "--release"]);
    if !names_packages(args) {
        tests.args(ALL);
    }
    tests.args(args);
    if python && std::env::var_os(PYTHON).is_none() {
        tests.env(PYTHON, python::environment(root)?);
    }
    repo::run(repo::with_libtorch(&mut tests, &libtorch))?;
    if args.is_empty() {
        repo::run(repo::cargo(root).args(["test", "--release"]).args(OWN_TARGET))?;
    }
    Ok(())
}

/// Whether the user chose packages, so that all of them are not meant.
fn names_packages(args: &[OsString]) -> bool {
    let cargos = args.iter().map(|arg| arg.to_string_lossy()).take_while(|arg| arg != "--");
    cargos.into_iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

/// Format, lints, documentation, tests: all that must pass before a change is merged.
pub fn ci(root: &Path) -> Result<()> {
    repo::run(repo::cargo(root).args(["fmt", "--all", "--check"]))?;
    // Lints and documentation need no LibTorch with it, and compile no C++.
    let features = doc_only(root)?;
    let features: &[&str] = if features.is_empty() { &[] } else { &["--features", &features] };
    let deny = ["--", "--deny", "warnings"];
    repo::run(
        repo::cargo(root)
            .args(["clippy", "--release", "--all-targets"])
            .args(ALL)
            .args(features)
            .args(deny),
    )?;
    repo::run(
        repo::cargo(root)
            .args(["clippy", "--release", "--all-targets"])
            .args(OWN_TARGET)
            .args(deny),
    )?;
    let document = |args: &[&str], features: &[&str]| {
        let mut docs = repo::cargo(root);
        docs.env("RUSTDOCFLAGS", "--deny warnings");
        repo::run(docs.args(["doc", "--release", "--no-deps"]).args(args).args(features))
    };
    document(&ALL, features)?;
    document(&OWN_TARGET, &[])?;
    test(root, false, &[])
}

/// `PACKAGE/doc-only` of every package that has that feature.
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
    let with = metadata.packages.iter().filter(|package| package.features.contains_key("doc-only"));
    Ok(with.map(|package| format!("{}/doc-only", package.name)).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn chosen_packages_are_noticed() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(names_packages(&args("-p data2vec-core")));
        assert!(names_packages(&args("--test x --package=data2vec-core")));
        assert!(!names_packages(&args("some_test -- -p")));
    }

    #[test]
    fn packages_with_the_feature_are_found() {
        let json = r#"{"packages": [
            {"name": "a", "features": {"doc-only": ["tch/doc-only"], "default": []}},
            {"name": "b", "features": {}},
            {"name": "c", "features": {"doc-only": []}}
        ]}"#;
        assert_eq!(parse_doc_only(json.as_bytes()).unwrap(), "a/doc-only,c/doc-only");
        assert!(parse_doc_only(b"").is_err());
    }
}
